"""Average precision with its steps replaced by piecewise linear curves (Parameterized AP Loss), one loss for both tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from detsearch_kernels.ap_loss import Curves, parameterized_ap_loss
from detsearch_kernels.boxes import aligned_iou
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detsearch_cli.errors import RecipeError
from detsearch_cli.reading import decimal
from detsearch_cli.slots.losses.base import DetectionLoss, mean_over_ranks, number_of_ranks
from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets

Points = tuple[tuple[float, float], ...]
NAMED = ("linear", "square", "sqrt", "sigmoid")
SEGMENTS = 32  # of a named curve
MOST_PAIRS = 100_000_000
"""Positives x predictions that the sigmoid takes, which no compiled operator can express: some seconds a step."""
PAIRS_AT_ONCE = 4_000_000
STUCK = 1e-6


def named_curve(name: str) -> Points:
    """`linear`, `square` or `sqrt`: a hand-made curve of the paper's Table 2, as a polygon on it.

    It is off by at most 2.5e-4 (square) and 4.9e-4 (sqrt).

    The knots of sqrt lie at fourth powers, where its polygon is off by nearly the same everywhere.
    """
    if name == "linear":
        return ((0.0, 0.0), (1.0, 1.0))
    parts = [k / SEGMENTS for k in range(SEGMENTS + 1)]
    return tuple((t, t**2) if name == "square" else (t**4, t**2) for t in parts)


@dataclass(frozen=True)
class _Ranking:
    """Predictions that are ranked together.

    levels: views of the scores, (B, H, W, priors a cell, C) a level, or one (B, A, C). ignored (B, A) bool. Of the positives
    image, prior, label (P,) int64 and quality (P,), their localisation scores with gradient.
    """

    levels: Sequence[Tensor]
    ignored: Tensor
    image: Tensor
    prior: Tensor
    label: Tensor
    quality: Tensor

    def positives(self) -> Tensor:
        """Their indices among the scores, as if these were one (B, A, C): (P,) int64."""
        return (self.image * self.ignored.shape[1] + self.prior) * self.levels[0].shape[-1] + self.label

    def images(self) -> list[_Ranking]:
        """Each image alone. The views of a level are made at once, or each would have a gradient as large as the level."""
        own = zip(*(level.split(1) for level in self.levels), strict=True)
        parts = []
        for number, levels in enumerate(own):
            mine = self.image == number
            index = torch.zeros_like(self.image[mine])
            positives = index, self.prior[mine], self.label[mine], self.quality[mine]
            parts.append(_Ranking(levels, self.ignored[number, None], *positives))
        return parts


class ParameterizedAP(DetectionLoss):
    """1 + Eq. 6 of Tao et al. 2022 (Searching Parameterized AP Loss) over all predictions and classes of the batch: 1 minus
    an average precision whose Heaviside steps are the five curves, 0 where all is right.

    Scores are logits; their differences are clipped to [-1, 1] and mapped to [0, 1]. The localisation score is 0 for
    predictions that are no positives. The gradient into the boxes is multiplied by `scale`, the paper's lambda; nothing else
    is. Ignored predictions take part in no sum. While anchors learn softly, each prior counts with its hard match.

    `sigmoid` is the paper's Table 2: sigmoid(s_j - s_i), which is no curve from (0, 0) to (1, 1), in both functions of
    scores; those of localisation are then linear, where the paper says nothing. It holds positives x predictions
    numbers, in pieces, and a copy of all scores.

    A loss of a ranking does not change when all scores do by the same, so a detector's default score threshold is 0 with
    it. The processes of a distributed training rank their images together, as one process would; with `sigmoid` each
    ranks its own. Micro-batches (`optim.accumulate`) always rank among themselves: their average is not the ranking of
    the whole batch.
    """

    ranks: ClassVar[bool] = True

    curves: tuple[Points, ...] | Points | Literal["linear", "square", "sqrt", "sigmoid"] = Field(
        default="linear",
        description="five lists of points (x, y) in the order of Eq. 6, one list for all five, or a name",
    )
    scale: float = Field(default=1.0, gt=0, le=1000, description="of the gradient into the boxes")
    localisation: Literal["giou", "iou", "l1"] = Field(
        default="giou",
        description="localisation score; l1: 1 - summed corner differences in sides of the ground truth",
    )
    over: Literal["batch", "image"] = Field(
        default="batch", description="whose predictions are ranked together"
    )
    through_denominator: bool = Field(
        default=False, description="let gradient through the fourth function, too (Table 7)"
    )

    @field_validator("curves", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not (value in NAMED if isinstance(value, str) else _are_points(value)):
            raise ValueError(
                "curves are five lists of points (x, y), one such list for all five functions, or one of "
                f"{', '.join(NAMED)}"
            )
        return value

    @field_validator("curves")
    @classmethod
    def _curves(cls, value: Any) -> Any:
        if not isinstance(value, str):
            _five(value)  # raises ValueError for what the operator would refuse
        return value

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        image, prior = assignment.positive.nonzero(as_tuple=True)
        gt = assignment.matched[image, prior]
        reached = _Scaled.apply(dense.boxes[image, prior], self.scale)
        quality = localisation_score(reached, targets.boxes[gt], self.localisation)
        ranking = _Ranking(
            levels_of(dense), assignment.matched == IGNORE, image, prior, targets.labels[gt], quality
        )
        if self.over == "batch" and self.curves != "sigmoid":
            return {"ap": self._of_all_processes(ranking)}
        parts = ranking.images() if self.over == "image" else [ranking]
        # without positives a sum over nothing, which still reaches every prediction
        losses = [self._rank(part) + (len(part.prior) > 0) for part in parts]
        number = torch.tensor(sum(len(part.prior) > 0 for part in parts), device=dense.device)
        return {"ap": torch.stack(losses).sum() / mean_over_ranks(number)}

    def _of_all_processes(self, ranking: _Ranking) -> Tensor:
        """The loss of the whole batch, the same on every rank; its gradient as the others expect, who average them."""
        number = torch.tensor(len(ranking.prior), device=ranking.quality.device)
        loss = _Scaled.apply(self._rank(ranking, across=True), number_of_ranks())
        return loss + (mean_over_ranks(number, minimum=0) > 0)

    def _rank(self, part: _Ranking, across: bool = False) -> Tensor:
        """Eq. 6; 0 without positives."""
        if self.curves == "sigmoid":
            return _sigmoid_loss(part, self.through_denominator)
        try:
            return parameterized_ap_loss(
                part.levels,
                part.positives(),
                part.quality,
                self._operator,
                self.through_denominator,
                ignored=part.ignored.flatten().nonzero()[:, 0],
                across=across,
            )
        # scores that are NaN or beyond all bounds: the training has diverged, and says so itself
        except ValueError:
            return torch.stack([level.sum() for level in part.levels]).sum() * math.nan

    def stuck(self, terms: Mapping[str, float]) -> bool:
        """At 1, where no positive counts for anything: the released search gives up there, too."""
        return abs(terms["ap"] - 1) < STUCK

    def points(self) -> list[list[tuple[float, float]]]:
        """The five curves. Raises ValueError for the sigmoid, which is none."""
        return [list(curve) for curve in self._operator.points]

    @cached_property
    def _operator(self) -> Curves:
        return _five(self.curves)


def _are_points(value: Any) -> bool:
    """Whether these are pairs of numbers, or lists of such pairs."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return _are_pairs(value) or all(isinstance(one, list | tuple) and _are_pairs(one) for one in value)


def _are_pairs(value: Sequence[Any]) -> bool:
    return all(isinstance(x, list | tuple) and len(x) == 2 and all(map(_is_number, x)) for x in value)


def _is_number(value: Any) -> bool:
    """YAML reads 1e-3 as text, which becomes a number in the conversion."""
    return type(value) in (int, float) or (isinstance(value, str) and decimal(value) is not None)


def _five(curves: Any) -> Curves:
    """The operator's five curves. Raises ValueError naming the function and the point that break its rules."""
    if curves == "sigmoid":
        raise ValueError("the sigmoid of score differences is no curve from (0, 0) to (1, 1)")
    if isinstance(curves, str):
        return Curves([named_curve(curves)] * 5)
    shared = len(curves[0]) == 2 and not isinstance(curves[0][0], tuple | list)
    return Curves([curves] * 5 if shared else curves)


def localisation_score(predicted: Tensor, gt: Tensor, kind: Literal["giou", "iou", "l1"]) -> Tensor:
    """How well paired boxes (P, 4) xyxy px agree: (P,) in [0, 1], with gradient.

    giou: (1 + GIoU) / 2. l1: 1 - the summed differences of corners over the ground truth's sides, where the paper only
    says "L1"; its released code takes the anchor's sides, which points do not have.
    """
    if kind == "l1":
        sides = (gt[:, 2:] - gt[:, :2]).clamp(min=1.0).repeat(1, 2)
        return (1 - ((predicted - gt).abs() / sides).sum(1)).clamp(0, 1)
    if kind == "iou":
        return aligned_iou(predicted, gt, "iou")
    return (1 + aligned_iou(predicted, gt, "giou", eps=1e-7)) / 2


class _Scaled(torch.autograd.Function):
    """The same boxes, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return boxes.view_as(boxes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def levels_of(dense: Dense) -> list[Tensor]:
    """The scores where the head wrote them: (B, H, W, priors a cell, C) a level, or all in one (B, A, C)."""
    # such maps are one tensor, whose parts by level would not lie in one piece
    return list(dense.maps) if dense.maps[0].dim() == 3 else dense.rows()


def _sigmoid_loss(part: _Ranking, through_denominator: bool) -> Tensor:
    """Eq. 6 with sigmoid(s_j - s_i) for the second and fourth function and the identity for the others."""
    logits = torch.cat([level.flatten(1, -2) for level in part.levels], 1)
    scores = logits.masked_fill(part.ignored[..., None], -math.inf).flatten()
    positives, quality = part.positives(), part.quality
    if len(positives) == 0:
        return logits[:0].sum() + quality.sum()
    pairs = len(positives) * len(scores)
    if pairs > MOST_PAIRS:
        raise RecipeError(
            f"loss parameterized_ap with curves: sigmoid compares at most {MOST_PAIRS} pairs of a positive and a "
            f"prediction, got {pairs}; use smaller images or batches, over: image, or other curves"
        )
    # how much each prediction counts as wrong: 1 but for positives
    wrong = torch.ones_like(scores).index_put((positives,), 1 - quality)
    step = max(1, PAIRS_AT_ONCE // len(scores))
    total = scores.new_zeros(())
    for start in range(0, len(positives), step):
        own = slice(start, start + step)
        # again in the backward pass: the matrix of all pairs would not fit
        total = total + checkpoint(
            _sigmoid_rows,
            scores,
            positives[own],
            quality[own],
            wrong,
            through_denominator,
            use_reentrant=False,
        )
    return total / len(positives)


def _sigmoid_rows(
    scores: Tensor, positives: Tensor, quality: Tensor, wrong: Tensor, through_denominator: bool
) -> Tensor:
    above = (scores[None] - scores[positives][:, None]).sigmoid()  # 0 where a score is -inf
    above = above.scatter(1, positives[:, None], 0.0)  # j is not i
    rank = 1 + (above if through_denominator else above.detach()).sum(1)
    return -(quality - quality * (above * wrong).sum(1) / rank).sum()
