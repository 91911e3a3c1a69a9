"""Focal loss, IoU or GIoU loss weighted by centerness, and centerness (FCOS, ATSS)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from detsearch_kernels.boxes import aligned_iou, aligned_overlap
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.formulas.language import LEAST_IOU
from detsearch_cli.slots.losses.base import DetectionLoss, focal_sum, mean_over_ranks
from detsearch_cli.structures import Assignment, Dense, Targets

OUTSIDE_WEIGHT = 0.1
"""Weight of a positive whose centre lies outside its ground truth, where centerness is 0. FCOS and ATSS never choose one,
but a dynamic assignment may, and a ground truth with such positives alone would have no regression loss."""


class FocalIoU(DetectionLoss):
    """Source: Tian et al. 2019 (FCOS), Eq. 2 and the released code; Zhang et al. 2020 (ATSS): GIoU, weight 2.

    Classification and centerness are divided by the number of positives, regression by the sum of its
    weights, both averaged over ranks. Without a centerness branch every positive weighs 1.
    """

    trains_centerness: ClassVar[bool] = True
    later_options: ClassVar[frozenset[str]] = frozenset({"quality"})

    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: float = Field(default=2.0, ge=0)
    iou: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "iou"
    regression_weight: float = Field(default=1.0, ge=0)
    quality: Literal["centerness", "iou"] = Field(
        default="centerness", description="what the centerness branch predicts and boxes weigh"
    )

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        pairs = assignment.matches()
        num_positive = mean_over_ranks(assignment.positive.sum())
        classification = focal_sum(dense, assignment, targets, self.alpha, self.gamma) / num_positive
        gt = targets.boxes[pairs.gt]
        regression = iou_loss(dense.boxes[pairs.image, pairs.prior], gt, self.iou)
        if dense.centerness is None:
            total = mean_over_ranks(pairs.weight.sum())
            regression = (regression * pairs.weight).sum() / total
            return {"classification": classification, "regression": self.regression_weight * regression}
        if self.quality == "iou":
            weight = iou_quality(dense.boxes[pairs.image, pairs.prior], gt) * pairs.weight
        else:
            central = boxes.centerness(dense.priors.points[pairs.prior], gt)
            weight = torch.where(central > 0, central, OUTSIDE_WEIGHT) * pairs.weight
        # weights are centernesses, whose sum may be far below 1: the usual minimum of 1 would shrink the loss
        total = mean_over_ranks(weight.sum(), minimum=1e-6)
        return {
            "classification": classification,
            "regression": self.regression_weight * (regression * weight).sum() / total,
            "centerness": quality_sum(dense.centerness, dense, assignment, targets, self.quality)
            / num_positive,
        }


@torch.no_grad()
def iou_quality(predicted: Tensor, gt: Tensor) -> Tensor:
    """IoU of paired boxes (N, 4) without gradient, at least 1e-7, so that it may be divided by. (N,)."""
    return aligned_iou(predicted, gt, "iou").clamp(LEAST_IOU, 1)


def quality_sum(
    logits: Tensor,
    dense: Dense,
    assignment: Assignment,
    targets: Targets,
    quality: Literal["centerness", "iou"],
) -> Tensor:
    """Cross entropy of the quality of every positive, soft pairs or not. logits (B, A) -> scalar."""
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = targets.boxes[assignment.matched[image, prior]]
    if quality == "iou":
        target = iou_quality(dense.boxes[image, prior], gt)
    else:
        target = boxes.centerness(dense.priors.points[prior], gt)
    return F.binary_cross_entropy_with_logits(logits[image, prior], target, reduction="sum")


def iou_loss(
    predicted: Tensor, gt: Tensor, kind: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "iou"
) -> Tensor:
    """Loss of paired boxes. predicted, gt (N, 4) xyxy px -> (N,). -ln IoU, 1 - IoU, or 1 - GIoU, DIoU or CIoU.

    For -ln IoU one px^2 is added to intersection and union as in FCOS's code: finite without overlap.
    """
    if kind in ("giou", "diou", "ciou"):
        return 1 - aligned_iou(predicted, gt, kind, eps=1e-7)
    if kind == "linear_iou":
        return 1 - aligned_iou(predicted, gt, "iou")
    # by parts: the IoU itself is 0 for all boxes that miss, without a gradient
    overlap = aligned_overlap(predicted, gt)
    return -((overlap.intersection + 1) / (overlap.union + 1)).log()
