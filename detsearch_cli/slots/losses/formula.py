"""A loss that is written down: a formula for classes, another one for boxes (CSE-Autoloss)."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from detsearch_kernels.boxes import aligned_iou, aligned_overlap
from pydantic import Field, field_validator
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.formulas import library
from detsearch_cli.formulas.language import LEAST_IOU, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.reading import parse
from detsearch_cli.slots.losses._formulas import Expression, dual, expression, sum_and_slopes, value
from detsearch_cli.slots.losses.base import DetectionLoss, focal_sum, mean_over_ranks
from detsearch_cli.slots.losses.focal_iou import OUTSIDE_WEIGHT, iou_quality, quality_sum
from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets


class Formula(DetectionLoss):
    """Source: Liu et al. 2021 (Loss Function Discovery for Object Detection via Convergence-Simulation Driven Search),
    section 3.1, and its released code.

    Classes: x is the logit, y its target, w the IoU of a positive's predicted box and 1 elsewhere, where the released code
    of one stage has 0, with which FLI would learn nothing from negatives. w carries no gradient. A formula with softmax or
    dot is one of two stages: x and y have a last column for background, and it stands as `region_loss` alone. Boxes: i, u
    and e are the areas of intersection, union and enclosing box, of u and e 1e-7 more. `alpha` weighs positives outside of
    the formula, 1 - alpha negatives, as in the focal loss; two stages have none. A positive's box weighs what its quality
    is, where the detector predicts one, and each its own, where the released code takes the mean.

    A name of the library, such as cse_b, stands for its formula, so that the recipe's hash names the function, not the word.
    """

    trains_centerness: ClassVar[bool] = True

    cls: str | None = Field(
        default=None, description="formula in x, y, w, or a name such as cse_b; null: the focal loss"
    )
    reg: str | None = Field(
        default=None, description="formula in i, u, e, or a name such as cse_b; null: 1 - GIoU"
    )
    quality: Literal["iou", "centerness"] = Field(
        default="iou", description="what the detector's centerness branch predicts, where it has one"
    )
    alpha: float = Field(default=0.25, ge=0, le=1, description="weight of positives, 1 - alpha of negatives")
    area: Literal["px", "stride"] = Field(default="px", description="unit of the areas: px^2 or strides^2")
    regression_weight: float = Field(default=1.0, ge=0, le=1000, description="of the regression term")

    @field_validator("cls")
    @classmethod
    def _classes(cls, said: str | None) -> str | None:
        return None if said is None else library.resolve(said, _language(said)).text

    @field_validator("reg")
    @classmethod
    def _boxes(cls, said: str | None) -> str | None:
        return None if said is None else library.resolve(said, REGRESSION).text

    @property
    def background_logit(self) -> bool:  # type: ignore[override]
        """Whether the formula of classes has columns, and so one for background."""
        return self.cls is not None and _language(self.cls).columns

    @property
    def probabilities(self) -> Any:
        return _without_background if self.background_logit else DetectionLoss.probabilities

    @cached_property
    def _parts(self) -> tuple[Expression, Expression]:
        """The formula of one stage, and what is left of it where y is 0 and w is 1."""
        assert self.cls is not None
        formula = parse(self.cls, ONE_STAGE)
        return expression(formula), expression(formula, {"y": 0.0, "w": 1.0})

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        image, prior = assignment.positive.nonzero(as_tuple=True)
        gt = assignment.matched[image, prior]
        overlap = iou_quality(dense.boxes[image, prior], targets.boxes[gt])
        if self.background_logit:
            return self._regions(dense, assignment, targets, overlap)
        number = mean_over_ranks(assignment.positive.sum())
        if self.cls is None:
            classification = focal_sum(dense, assignment, targets, self.alpha, 2.0)
        else:
            levels = dense.rows()
            classification = _Classes.apply(
                self, (image, prior, targets.labels[gt], overlap), assignment.matched == IGNORE, *levels
            )
        terms = {"classification": classification / number}
        return terms | self._localisation(dense, assignment, targets, number)

    def _regions(
        self, dense: Dense, assignment: Assignment, targets: Targets, overlap: Tensor
    ) -> dict[str, Tensor]:
        """Both terms over all regions, as cross entropy's are."""
        assert self.cls is not None
        counted = assignment.matched != IGNORE
        x, matched = dense.logits[counted], assignment.matched[counted]
        labels = torch.full_like(matched, x.shape[1] - 1)
        labels[matched >= 0] = targets.labels[matched[matched >= 0]]
        y = F.one_hot(labels, x.shape[1]).to(x)
        w = torch.ones_like(x)
        rows = (matched >= 0).nonzero()[:, 0]
        w[rows, labels[rows]] = overlap.to(x)
        found = value(expression(parse(self.cls, TWO_STAGE)), {"x": x, "y": y, "w": w})
        number = mean_over_ranks(torch.tensor(len(matched), device=x.device))
        terms = {"classification": found.sum() / number}
        return terms | self._localisation(dense, assignment, targets, number)

    def _localisation(
        self, dense: Dense, assignment: Assignment, targets: Targets, number: Tensor
    ) -> dict[str, Tensor]:
        """The regression term, and that of the quality where the detector predicts one. number: what sums are divided by."""
        pairs = assignment.matches()
        predicted, gt = dense.boxes[pairs.image, pairs.prior], targets.boxes[pairs.gt]
        losses = self._box_losses(predicted, gt, dense.priors.strides[dense.priors.level[pairs.prior]])
        if dense.centerness is None:
            total = number if self.background_logit else mean_over_ranks(pairs.weight.sum())
            return {"regression": self.regression_weight * (losses * pairs.weight).sum() / total}
        weight = self._quality(predicted, gt, dense.priors.points[pairs.prior]) * pairs.weight
        total = mean_over_ranks(weight.sum(), minimum=1e-6)
        quality = quality_sum(dense.centerness, dense, assignment, targets, self.quality)
        return {
            "regression": self.regression_weight * (losses * weight).sum() / total,
            "quality": quality / number,
        }

    def _box_losses(self, predicted: Tensor, gt: Tensor, strides: Tensor) -> Tensor:
        if self.reg is None:
            return 1 - aligned_iou(predicted, gt, "giou", eps=1e-7)
        overlap = aligned_overlap(predicted, gt, "giou")
        unit = strides**2 if self.area == "stride" else 1.0
        areas = {
            "i": overlap.intersection / unit,
            "u": overlap.union / unit + LEAST_IOU,
            "e": overlap.enclosing / unit + LEAST_IOU,
        }
        return value(expression(parse(self.reg, REGRESSION)), areas).expand_as(areas["i"])

    @torch.no_grad()
    def _quality(self, predicted: Tensor, gt: Tensor, points: Tensor) -> Tensor:
        if self.quality == "iou":
            return iou_quality(predicted, gt)
        central = boxes.centerness(points, gt)
        return torch.where(central > 0, central, OUTSIDE_WEIGHT)


def _language(said: str) -> Language:
    """Of a formula of classes or a name of one: that of two stages where it joins columns."""
    if said in library.CLASSIFICATION:
        return library.CLASSIFICATION[said][0]
    return TWO_STAGE if "softmax" in said or "dot" in said else ONE_STAGE


def _without_background(logits: Tensor) -> Tensor:
    return logits.softmax(-1)[..., :-1]


class _Classes(torch.autograd.Function):
    """The formula summed over all logits that are not ignored, read where the head wrote them.

    Nearly every target is 0, so every logit is one of a negative first, in the order of memory; the few others are corrected
    afterwards. Slopes are computed with the values: there is no graph, and no other tensor of the logits' size.
    """

    @staticmethod
    def forward(
        ctx: Any, loss: Formula, positives: tuple[Tensor, ...], ignored: Tensor, *levels: Tensor
    ) -> Tensor:
        image, prior, label, overlap = positives
        whole, negative = loss._parts
        total = levels[0].new_zeros((), dtype=torch.float64)
        gradients, first = [], 0
        for level in map(_packed, levels):
            gradient = torch.empty_like(level)  # lies in memory as the level does
            slopes = gradient.permute(_order(gradient)).view(-1)
            negatives = sum_and_slopes(negative, level.permute(_order(level)).view(-1), slopes)
            total += (1 - loss.alpha) * negatives
            gradient *= 1 - loss.alpha
            cells = level[0, ..., 0].numel()
            own = (prior >= first) & (prior < first + cells)
            at = _at(level, image[own], prior[own] - first, label[own])
            x, y = level[at], torch.ones_like(overlap[own])
            total -= (1 - loss.alpha) * dual(negative, x)[0].sum(dtype=torch.float64)
            left_image, left = ignored[:, first : first + cells].nonzero(as_tuple=True)
            out = _at(level, left_image, left)
            total -= (1 - loss.alpha) * dual(negative, level[out].reshape(-1))[0].sum(dtype=torch.float64)
            gradient[out] = 0.0
            result, slope = dual(whole, x, {"y": y, "w": overlap[own].to(x)})
            total += loss.alpha * result.sum(dtype=torch.float64)
            gradient[at] = torch.zeros_like(x) if slope is None else loss.alpha * slope
            gradients.append(gradient)
            first += cells
        ctx.save_for_backward(*gradients)
        return total.to(levels[0].dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
        return None, None, None, *(gradient * factor for gradient in ctx.saved_tensors)


def _order(level: Tensor) -> list[int]:
    """The dimensions of a view in the order of its memory."""
    strides = level.stride()
    return sorted(range(level.dim()), key=lambda k: -strides[k])


def _packed(level: Tensor) -> Tensor:
    """The view itself where it covers its memory without a gap, as a head writes it; else a copy."""
    return level if level.permute(_order(level)).is_contiguous() else level.contiguous()


def _at(level: Tensor, image: Tensor, prior: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
    """Index of priors of a level, and of one class each: views are (B, H, W, S, C) or (B, A, C)."""
    place: tuple[Tensor, ...] = (image, prior)
    if level.dim() == 5:
        width, cell = level.shape[2], level.shape[3]
        place = (image, prior // (width * cell), prior // cell % width, prior % cell)
    return place if label is None else (*place, label)
