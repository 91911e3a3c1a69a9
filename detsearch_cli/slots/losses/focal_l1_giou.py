"""Focal loss, L1 of centre, width and height as parts of the image, and GIoU (Deformable DETR)."""

from __future__ import annotations

from detsearch_kernels.boxes import aligned_iou
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.losses.base import DetectionLoss, focal_sum, mean_over_ranks
from detsearch_cli.structures import Assignment, Dense, Targets


class FocalL1GIoU(DetectionLoss):
    """Source: Zhu et al. 2021 (Deformable DETR), section 5; Carion et al. 2020 (DETR), section 3.1; the released code.

    All terms are divided by the number of positives, averaged over ranks. Boxes are compared as parts of the padded
    batch, so that the same error in px weighs more in a small image.
    """

    alpha: float = Field(
        default=0.25, ge=0, le=1, description="weight of positives in the focal loss, 1 - alpha of negatives"
    )
    gamma: float = Field(default=2.0, ge=0, description="focusing exponent of the focal loss")
    class_weight: float = Field(default=2.0, ge=0, le=1000, description="of the focal loss")
    l1_weight: float = Field(default=5.0, ge=0, le=1000, description="of L1")
    giou_weight: float = Field(default=2.0, ge=0, le=1000, description="of 1 - GIoU")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        pairs = assignment.matches()
        predicted, truth = dense.boxes[pairs.image, pairs.prior], targets.boxes[pairs.gt]
        apart = (boxes.center_size(predicted) - boxes.center_size(truth)) / dense.priors.sides()
        l1 = (apart.abs().sum(1) * pairs.weight).sum()
        giou = ((1 - aligned_iou(predicted, truth, "giou", eps=1e-7)) * pairs.weight).sum()
        number = mean_over_ranks(assignment.positive.sum())
        weight = mean_over_ranks(pairs.weight.sum())
        classes = focal_sum(dense, assignment, targets, self.alpha, self.gamma)
        return {
            "classification": self.class_weight * classes / number,
            "l1": self.l1_weight * l1 / weight,
            "giou": self.giou_weight * giou / weight,
        }
