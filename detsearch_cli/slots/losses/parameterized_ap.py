"""Average precision with its steps replaced by piecewise linear curves (Parameterized AP Loss), one loss for both tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from detsearch_kernels.ap_loss import Curves, parameterized_ap_loss
from detsearch_kernels.boxes import aligned_iou
from pydantic import Field, field_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.losses.base import DetectionLoss
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


class ParameterizedAP(DetectionLoss):
    """1 + Eq. 6 of Tao et al. 2022 (Searching Parameterized AP Loss) over all predictions and classes of the batch: 1 minus
    an average precision whose Heaviside steps are the five curves, 0 where all is right.

    Scores are logits; their differences are clipped to [-1, 1] and mapped to [0, 1]. The localisation score is 0 for
    predictions that are no positives. The gradient into the boxes is multiplied by `scale`, the paper's lambda; nothing else
    is. Ignored predictions take part in no sum. While anchors learn softly, each prior counts with its hard match.

    `sigmoid` is the paper's Table 2: sigmoid(s_j - s_i), which is no curve from (0, 0) to (1, 1), in both functions of
    scores; those of localisation are then linear, where the paper says nothing. It holds positives x predictions
    numbers, in pieces.

    A loss of a ranking does not change when all scores do by the same, so a detector's default score threshold is 0 with
    it. Micro-batches (`optim.accumulate`) and the processes of a distributed training rank their own images: their
    average is not the ranking of the whole batch.
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
        if isinstance(value, str) and value not in NAMED:
            raise ValueError(f"curves are points, or one of {', '.join(NAMED)}")
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
        logits = dense.logits
        if bool((assignment.matched == IGNORE).any()):
            logits = logits.masked_fill((assignment.matched == IGNORE)[..., None], -math.inf)
        reached = _Scaled.apply(dense.boxes[image, prior], self.scale)
        quality = localisation_score(reached, targets.boxes[gt], self.localisation)
        at = prior * logits.shape[2] + targets.labels[gt]
        if self.over == "batch":
            rows = logits.flatten()[None]
            positives = [(image * logits[0].numel() + at, quality)]
        else:
            rows = logits.flatten(1)
            positives = [(at[image == i], quality[image == i]) for i in range(len(rows))]
        losses = [self._loss(row, index, score) for row, (index, score) in zip(rows, positives, strict=True)]
        known = [loss for loss, (index, _) in zip(losses, positives, strict=True) if len(index)]
        # without positives a sum over nothing, which still reaches every prediction
        return {"ap": 1 + torch.stack(known).mean() if known else torch.stack(losses).sum()}

    def _loss(self, scores: Tensor, positives: Tensor, quality: Tensor) -> Tensor:
        if len(positives) == 0:
            return scores[:0].sum() + quality.sum()
        if self.curves == "sigmoid":
            return _sigmoid_loss(scores, positives, quality, self.through_denominator)
        try:
            return parameterized_ap_loss(scores, positives, quality, self._operator, self.through_denominator)
        except (
            ValueError
        ):  # scores that are NaN or beyond all bounds: the training has diverged, and says so itself
            return scores.sum() * math.nan

    def stuck(self, terms: Mapping[str, float]) -> bool:
        """At 1, where no positive counts for anything: the released search gives up there, too."""
        return abs(terms["ap"] - 1) < STUCK

    def points(self) -> list[list[tuple[float, float]]]:
        """The five curves. Raises ValueError for the sigmoid, which is none."""
        return [list(curve) for curve in self._operator.points]

    @cached_property
    def _operator(self) -> Curves:
        return _five(self.curves)


def _five(curves: Any) -> Curves:
    """The operator's five curves. Raises ValueError naming the function and the point that break its rules."""
    if curves == "sigmoid":
        raise ValueError("the sigmoid of score differences is no curve from (0, 0) to (1, 1)")
    if isinstance(curves, str):
        return Curves([named_curve(curves)] * 5)
    if not curves:
        raise ValueError("it is five lists of points, or one list of points for all five")
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


def _sigmoid_loss(scores: Tensor, positives: Tensor, quality: Tensor, through_denominator: bool) -> Tensor:
    """Eq. 6 with sigmoid(s_j - s_i) for the second and fourth function and the identity for the others."""
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
