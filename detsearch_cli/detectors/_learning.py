"""Anchor shapes that learn: the parameters, and the three techniques that help them.

    gradient           through log(g / a) in the encoded target or the decoded box    Eq. 8, 9
    soften             soft assignment: every shape of a cell gets a part of a match  Eq. 10
    clustering_loss    pulls shapes to the boxes that they are assigned to            Eq. 11, 12
    SizeNorm           batch norm without shift on the predicted widths and heights   section 3.2.3

Source: Zhong et al. 2020 (anchor box optimization), section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detsearch_cli.detectors._learned_part import LearnedGroup
from detsearch_cli.fragments import Fragment
from detsearch_cli.schema import Optim, Recipe
from detsearch_cli.slots.losses.base import mean_over_ranks
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import Assignment, Matches, Priors, Targets, TrainingStep

SMALLEST = 1.01
"""px. Encoding counts smaller sides as 1 px, and a clamped side has no gradient."""
MOMENTUM, EPSILON = 0.1, 1e-5
"""Of the running statistics and in the root, as torch's batch norms."""
COLDEST = 1e-4
"""Temperature at which a softmax of distances is an assignment to the nearest; colder ones would overflow."""
DIGITS = 3
"""Decimals of a pixel that learned shapes are kept with; they are scored with these too."""
RATE_TIMES_STEPS, LARGEST_RATE = 100.0, 0.1
"""Where the recipe gives no lr_factor: the shapes' learning rate times the steps, and their largest learning rate, both
with momentum counted in. The paper's schedule for VOC comes to 162 with one rate for all, over 30,000 steps; with
the rate of weights, shapes of a few hundred steps would stay where they are, and with more than this the
network's early errors throw them about."""
ADAM_EPSILON = 1e4
"""Of Adam, for shapes, whose rate is as many times larger: a step is then the rate times the mean gradient, as with the
paper's SGD. Adam's own eps divides by the size of past gradients: a shape would move equally fast however few boxes
ask for it, and where it began far away, for a thousand steps hardly."""


class LearnedShapes(nn.Module):
    """A `LearnedPart`. log_shapes (L, S, 2): log width and log height in px of the S shapes of each of L levels.

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
        # clamped from below: at a coarse level a quarter of the stride may exceed a small image
        self.register_buffer("high", low.clamp(min=math.log(image)), persistent=False)
        self.log_shapes = nn.Parameter(torch.clamp(initial, self.low, self.high))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring the parameters back into their bounds."""
        self.log_shapes.copy_(torch.clamp(self.log_shapes, self.low, self.high))

    def forward(self) -> Tensor:
        """Log width and height within the bounds, (L, S, 2)."""
        # added, not clamped: a clamped shape would have no gradient, and never come back from its bound
        beyond = torch.clamp(self.log_shapes, self.low, self.high) - self.log_shapes
        return self.log_shapes + beyond.detach()

    def anchors_at(self, priors: Priors) -> Priors:
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
        # within the bounds, as they are scored; double, so that rounding is that of Python
        sizes = self().detach().exp().double().cpu()
        return tuple(
            tuple((round(w, DIGITS), round(h, DIGITS)) for w, h in level) for level in sizes.tolist()
        )

    def fixed(self) -> Shapes:
        """The priors that these shapes have become."""
        return Shapes(shapes=self.rounded(), offset=self.options.offset, spread=self.options.spread)

    # ------------------------------------------------------------------ as a LearnedPart

    def optimizer_group(self, optim: Optim, steps: int) -> LearnedGroup:
        """Without weight decay, which would pull the shapes towards 1 px."""
        factor = self.options.lr_factor or default_lr_factor(optim, steps)
        if optim.name == "adamw":
            factor *= ADAM_EPSILON
        return LearnedGroup((self.log_shapes,), factor, ADAM_EPSILON)

    def log_entry(self) -> dict[str, Any]:
        """The present shapes, [w, h] in px level by level."""
        return {"anchors": self.rounded()}

    def fragment(self, deployed: Recipe) -> Fragment:
        """The fixed shapes of the kept weights: not those of the last step, which may be others."""
        assert deployed.priors is not None, "Detector.deployed_recipe names the shapes"
        return Shapes.model_validate(deployed.priors.options).fragment()

    # ------------------------------------------------------------------ the warm-ups

    @torch.no_grad()
    def soften(
        self, assignment: Assignment, priors: Priors, targets: Targets, step: TrainingStep
    ) -> Assignment:
        """The assignment with soft matches while the warm-up lasts; `matched` stays as it is.

        Take a ground truth and a cell that holds one of its positives. All shapes of the cell share the match by
        delta = softmax(-distance / T), Eq. 10. The match counts once, however many of the shapes were positive:
        a cell counts once in YOLOv2, where the paper tried it. The distance compares width and height alone, as
        YOLOv2 assigns; the offset to the cell is learned by the head. "log_l2" is the L2 distance itself; the paper
        writes "squared" where it means the square (Eq. 12).
        """
        temperature = self.options.temperature_at(step)
        shapes = self.log_shapes.shape[1]
        if temperature == 0 or shapes == 1:
            return assignment
        hard = assignment.matches()
        cells = len(priors.points) // shapes
        # several positive shapes of one cell become one pair here, so that the cell counts once
        pair = torch.unique(hard.gt * cells + hard.prior // shapes)
        gt, cell = pair // cells, pair % cells
        # without gradient here: a weight says how much, the loss says where to
        own = self()[priors.level[cell * shapes]]
        weight = softened(own, log_sizes(targets.boxes[gt])[:, None], temperature, self.options.distance)
        prior = cell[:, None] * shapes + torch.arange(shapes, device=cell.device)
        image = targets.image_index()[gt][:, None].expand_as(prior)
        pairs = (image, prior, gt[:, None].expand_as(prior), weight)
        return replace(assignment, soft=Matches(*(t.reshape(-1) for t in pairs)))

    def clustering_loss(
        self, assignment: Assignment, priors: Priors, targets: Targets, step: TrainingStep
    ) -> dict[str, Tensor]:
        """The term of online clustering, Eq. 11 and 12; 0 after the warm-up, no term where it is switched off.

        The term is divided by the sum of the assignments, averaged over ranks like every normaliser.
        """
        weight = self.options.clustering_at(step)
        if weight == 0:
            # a term of 0, not a missing one: every step then logs the same columns
            return {"clustering": self.log_shapes.new_zeros(())} if self.options.clustering else {}
        pairs = assignment.matches()
        shapes = self.log_shapes.shape[1]
        own = self().flatten(0, 1)[priors.level[pairs.prior] * shapes + pairs.prior % shapes]
        distance = (own - log_sizes(targets.boxes[pairs.gt])).square().sum(-1)
        total = mean_over_ranks(pairs.weight.sum())
        return {"clustering": weight / 2 * (pairs.weight * distance).sum() / total}


def default_lr_factor(optim: Optim, steps: int) -> float:
    """lr_factor of shapes in a training of so many steps: they are never slower than the weights."""
    rate = min(LARGEST_RATE, RATE_TIMES_STEPS / max(1, steps))
    # momentum m makes every step of SGD 1 / (1 - m) times as long; Adam's steps are averages
    return max(1.0, rate * (1 - optim.momentum if optim.name == "sgd" else 1) / optim.lr)


def log_sizes(boxes: Tensor) -> Tensor:
    """Log width and height in px, of at least 1 px as in `encode_deltas`. boxes (..., 4) -> (..., 2)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=1).log()


def softened(shapes: Tensor, gt: Tensor, temperature: float, distance: str) -> Tensor:
    """delta of Eq. 10 for every shape of a cell. shapes (Q, S, 2), gt (Q, 1, 2) log sizes -> (Q, S)."""
    if distance == "log_l2":
        apart = torch.linalg.vector_norm(shapes - gt, dim=-1)
    else:
        # logs of areas, so that neither a giant nor an empty box can overflow; a sum of logs is that of a product
        shared, own, other = (t.sum(-1) for t in (torch.minimum(shapes, gt), shapes, gt))
        apart = 1 - 1 / ((own - shared).exp() + (other - shared).exp() - 1)
    return torch.softmax(-apart / max(temperature, COLDEST), dim=1)


class _NormedSizes(torch.autograd.Function):
    """Batch norm without shift of the w and h columns of cells (N, S K); the other columns pass unchanged.

    The gradient is written out, because whole rows then go through a few passes: that takes a third of the time of
    cutting columns out and putting them back.
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, scale: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normed cells, mean and variance (2 S,) of the columns."""
        # two passes: the mean of squares less the square of the mean loses what is small beside it
        average = cells.mean(0)
        mean = _of_sizes(average, width)
        var = _of_sizes((cells - average).square_().mean(0), width)
        factor = scale * torch.rsqrt(var + EPSILON)
        ctx.save_for_backward(cells, scale, mean, var)
        ctx.width = width
        # the running statistics read them, and must send no gradient
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
    convolution serves all levels. With several processes each uses the statistics of its own images, like every
    batch norm here. `scale` is the standard deviation that the prediction begins with; the paper names none. 0.2 in
    logs is a fifth more or less, which is what well-fitting shapes leave to predict. Where the offsets are multiplied
    by five (boxes.DELTA_WEIGHTS), give five times that.

    convolution: writes the S x K channels that are normalised, K a prior, w and h third and fourth of them.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, convolution: nn.Conv2d, per_cell: int, scale: float = 0.2) -> None:
        super().__init__()
        # in a tuple, or the convolution would be a submodule twice, with two names in the weights file
        self._convolution = (convolution,)
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
                # the running variance is unbiased, that of the batch is not: so do torch's batch norms
                self.var.lerp_(var * (len(cells) / (len(cells) - 1)), MOMENTUM)
            return normed.view(rows.shape)
        # also in training where there is one cell alone, which has no deviation
        factor = self.scale * torch.rsqrt(self.var + EPSILON)
        shift = _columns(-self.mean * factor, width, 0.0)
        return torch.addcmul(shift, cells, _columns(factor, width, 1.0)).view(rows.shape)

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """Change the convolution so that it writes what this norm gives in eval mode, and return it."""
        (convolution,) = self._convolution
        factor = self.scale / (self.var + EPSILON).sqrt()
        # third and fourth channel of every prior: w and h
        weight = convolution.weight.view(len(self.scale) // 2, -1, *convolution.weight.shape[1:])[:, 2:4]
        bias = convolution.bias.view(len(self.scale) // 2, -1)[:, 2:4]  # type: ignore[union-attr]
        # views of the convolution's own parameters, changed in place
        weight.mul_(factor.view(-1, 2, 1, 1, 1))
        bias.sub_(self.mean.view(-1, 2)).mul_(factor.view(-1, 2))
        return convolution
