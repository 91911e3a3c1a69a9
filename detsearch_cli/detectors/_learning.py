"""Anchor shapes that learn: the parameters, and the three techniques that help them.

    gradient     through log(g / a) in the encoded target or the decoded box          Eq. 8, 9
    share        soft assignment: every shape of a cell has its part in a match       Eq. 10
    cluster      pulls shapes to the boxes they answer for                            Eq. 11, 12
    SizeNorm     batch norm without shift on the predicted widths and heights         section 3.2.3

Source: Zhong et al. 2020 (anchor box optimization), section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detsearch_cli.slots.losses.base import mean_over_ranks
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import Assignment, Matches, Moment, Priors, Targets

SMALLEST = 1.01
"""px. Encoding counts smaller sides as 1 px, and a clamped side has no gradient."""
MOMENTUM, EPSILON = 0.1, 1e-5
"""Of the running statistics and in the root, as torch's batch norms."""
COLDEST = 1e-4
"""Temperature at which a softmax of distances is an assignment to the nearest; colder ones would overflow."""
DIGITS = 3
"""Decimals of a pixel that learned shapes are kept with; they are scored with these too."""


class LearnedShapes(nn.Module):
    """log_shapes (L, S, 2): log width and log height in px of the S shapes of each of L levels.

    A level's shapes stay between a quarter of its stride and the largest side of a training image: the bounds are
    applied to whatever reads the shapes, without taking their gradient, and to the parameters before each step.
    """

    low: Tensor
    high: Tensor

    def __init__(self, options: Learned, levels: tuple[int, int], image: int) -> None:
        super().__init__()
        self.options = options
        initial = torch.tensor(options.level_boxes(levels), dtype=torch.float32).log()
        quarter = [max(2**level / 4, SMALLEST) for level in range(levels[0], levels[1] + 1)]
        low = torch.tensor(quarter).log()[:, None, None]
        # not saved: they follow from the recipe
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", low.clamp(min=math.log(image)), persistent=False)
        self.log_shapes = nn.Parameter(torch.clamp(initial, self.low, self.high))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring the parameters back into their bounds."""
        self.log_shapes.copy_(torch.clamp(self.log_shapes, self.low, self.high))

    def forward(self) -> Tensor:
        """Log width and height within the bounds, (L, S, 2)."""
        beyond = torch.clamp(self.log_shapes, self.low, self.high) - self.log_shapes
        return self.log_shapes + beyond.detach()

    def place(self, priors: Priors) -> Priors:
        """These priors with boxes of the present shapes. priors: of a grid with as many shapes a cell."""
        half = self().exp() / 2
        cell = torch.cat((-half, half), -1)
        shapes = cell.shape[1]
        corners = priors.points.repeat(1, 2).split(priors.counts)
        boxes = [(c.view(-1, shapes, 4) + own).view(-1, 4) for c, own in zip(corners, cell, strict=True)]
        tiling = None if priors.tiling is None else replace(priors.tiling, cell=cell)
        return replace(priors, boxes=torch.cat(boxes), tiling=tiling)

    def rounded(self) -> tuple[tuple[tuple[float, float], ...], ...]:
        """Width and height in px, level by level, as they are written down."""
        sizes = self().detach().exp().double().cpu()
        return tuple(
            tuple((round(w, DIGITS), round(h, DIGITS)) for w, h in level) for level in sizes.tolist()
        )

    def fixed(self) -> Shapes:
        """The priors that these shapes have become."""
        return Shapes(shapes=self.rounded())

    # ------------------------------------------------------------------ the warm-ups

    @torch.no_grad()
    def share(self, assignment: Assignment, priors: Priors, targets: Targets, moment: Moment) -> Assignment:
        """The assignment with soft matches while the warm-up lasts; `matched` stays as it is.

        For each ground truth and each cell that holds one of its positives, the shapes of the cell share it:
        delta = softmax(-distance / T), Eq. 10. They share one match, however many of them were positive, so
        that a cell counts as in YOLOv2, where the paper tried it. The distance is between shapes, as if prior
        and ground truth had one centre (YOLOv2 assigns so, too): how far the cell lies off is not the shapes'
        affair. "L2" is the plain distance; the paper writes "squared" where it means the square (Eq. 12).
        """
        temperature = self.options.temperature_at(moment)
        shapes = self.log_shapes.shape[1]
        if temperature == 0 or shapes == 1:
            return assignment
        hard = assignment.matches()
        cells = len(priors.points) // shapes
        place = torch.unique(hard.gt * cells + hard.prior // shapes)
        gt, cell = place // cells, place % cells
        own = self()[priors.level[cell * shapes]]
        weight = softened(own, log_sizes(targets.boxes[gt])[:, None], temperature, self.options.distance)
        prior = cell[:, None] * shapes + torch.arange(shapes, device=cell.device)
        image = targets.image_index()[gt][:, None].expand_as(prior)
        pairs = (image, prior, gt[:, None].expand_as(prior), weight)
        return replace(assignment, soft=Matches(*(t.reshape(-1) for t in pairs)))

    def cluster(
        self, assignment: Assignment, priors: Priors, targets: Targets, moment: Moment
    ) -> dict[str, Tensor]:
        """The term of online clustering, Eq. 11 and 12; 0 after the warm-up, nothing where it is switched off.

        Its normaliser, the sum of the assignments, is averaged over ranks as those of the other terms are.
        """
        weight = self.options.clustering_at(moment)
        if weight == 0:
            return {"clustering": self.log_shapes.new_zeros(())} if self.options.clustering else {}
        pairs = assignment.matches()
        shapes = self.log_shapes.shape[1]
        own = self().flatten(0, 1)[priors.level[pairs.prior] * shapes + pairs.prior % shapes]
        distance = (own - log_sizes(targets.boxes[pairs.gt])).square().sum(-1)
        total = mean_over_ranks(pairs.weight.sum())
        return {"clustering": weight / 2 * (pairs.weight * distance).sum() / total}


def log_sizes(boxes: Tensor) -> Tensor:
    """Log width and height in px, of at least 1 px as in `encode_deltas`. boxes (..., 4) -> (..., 2)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).log()


def softened(shapes: Tensor, gt: Tensor, temperature: float, distance: str) -> Tensor:
    """delta of Eq. 10 for every shape of a cell. shapes (Q, S, 2), gt (Q, 1, 2) log sizes -> (Q, S)."""
    if distance == "log_l2":
        apart = torch.linalg.vector_norm(shapes - gt, dim=-1)
    else:
        # logs of areas, so that neither a giant nor an empty box can overflow
        shared, own, other = (t.sum(-1) for t in (torch.minimum(shapes, gt), shapes, gt))
        apart = 1 - 1 / ((own - shared).exp() + (other - shared).exp() - 1)
    return torch.softmax(-apart / max(temperature, COLDEST), dim=1)


class _NormedSizes(torch.autograd.Function):
    """Batch norm without shift of the w and h columns of cells (N, S K); the others pass. Its own gradient, because
    whole rows go through a few passes then: a third of the time of cutting columns out and putting them back.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, scale: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normed cells, mean and variance (2 S,) of the columns."""
        average = cells.mean(0)
        mean = _of_sizes(average, width)
        var = _of_sizes((cells - average).square_().mean(0), width)
        factor = scale * torch.rsqrt(var + EPSILON)
        ctx.save_for_backward(cells, scale, mean, var)
        ctx.width = width
        ctx.mark_non_differentiable(mean, var)
        shift = _columns(-mean * factor, width, 0.0)
        return torch.addcmul(shift, cells, _columns(factor, width, 1.0)), mean, var

    @staticmethod
    def backward(ctx: Any, *sent: Tensor) -> tuple[Tensor, Tensor, None]:
        """Source: Ioffe and Szegedy 2015, section 3. With x' the normed x: g' = f (g - mean(g) - x' mean(g x'))."""
        (cells, scale, mean, var), width, gradient = ctx.saved_tensors, ctx.width, sent[0]
        inverse = torch.rsqrt(var + EPSILON)
        factor = scale * inverse
        centred = cells - _columns(mean, width, 0.0)
        along = inverse * _of_sizes(centred.mul_(gradient).sum(0), width)
        slope = -factor * inverse * along / len(cells)
        constant = -factor * _of_sizes(gradient.sum(0), width) / len(cells) - slope * mean
        result = torch.addcmul(_columns(constant, width, 0.0), gradient, _columns(factor, width, 1.0))
        return result.addcmul_(cells, _columns(slope, width, 0.0)), along, None


def _of_sizes(columns: Tensor, width: int) -> Tensor:
    """Of a value for every column (S K,), those of w and h (2 S,)."""
    return columns.view(-1, width)[:, 2:4].reshape(-1)


def _columns(sizes: Tensor, width: int, other: float) -> Tensor:
    """A value for every column (S K,): those of w and h (2 S,) in their places, `other` elsewhere."""
    own = sizes.view(-1, 2)
    before, after = (own.new_full((len(own), n), other) for n in (2, width - 4))
    return torch.cat((before, own, after), 1).view(-1)


class SizeNorm(nn.Module):
    """Batch norm without shift on the widths and heights that a convolution predicts.

    The statistics of a shape's w and h are those of all cells, images and levels together, because one
    convolution serves all levels; with several processes each uses its own share's, as every batch norm here.
    `scale` is the standard deviation that the prediction begins with; the paper names none. 0.2 in logs is a
    fifth more or less, what a regression of well-fitting shapes has to say; give five times that where offsets
    count five times (boxes.DELTA_WEIGHTS).

    convolution: whose output it follows; it writes S x K channels, K a prior, w and h third and fourth of them.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, convolution: nn.Conv2d, per_cell: int, scale: float = 0.2) -> None:
        super().__init__()
        self._convolution = (convolution,)  # in a tuple: it belongs to the head, and keeps its name there
        self.scale = nn.Parameter(torch.full((per_cell * 2,), scale))
        self.register_buffer("mean", torch.zeros(per_cell * 2))
        self.register_buffer("var", torch.ones(per_cell * 2))

    def forward(self, rows: Tensor) -> Tensor:
        """rows (B, A, K), the priors of a cell together -> the same with w and h normalised, float32."""
        width = rows.shape[-1]
        cells = rows.float().reshape(-1, self.scale.numel() // 2 * width)
        if self.training and len(cells) > 1:
            normed, mean, var = _NormedSizes.apply(cells, self.scale, width)
            with torch.no_grad():
                self.mean.lerp_(mean, MOMENTUM)
                self.var.lerp_(var * (len(cells) / (len(cells) - 1)), MOMENTUM)
            return normed.view(rows.shape)
        factor = self.scale * torch.rsqrt(self.var + EPSILON)  # one cell alone has no deviation
        shift = _columns(-self.mean * factor, width, 0.0)
        return torch.addcmul(shift, cells, _columns(factor, width, 1.0)).view(rows.shape)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """Give the convolution the norm's effect in eval mode; it then needs the norm no more."""
        (convolution,) = self._convolution
        factor = self.scale / (self.var + EPSILON).sqrt()
        weight = convolution.weight.view(len(self.scale) // 2, -1, *convolution.weight.shape[1:])[:, 2:4]
        bias = convolution.bias.view(len(self.scale) // 2, -1)[:, 2:4]  # type: ignore[union-attr]
        weight.mul_(factor.view(-1, 2, 1, 1, 1))
        bias.sub_(self.mean.view(-1, 2)).mul_(factor.view(-1, 2))
        return convolution
