"""Focal loss and smooth L1 on encoded offsets (RetinaNet)."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli.slots.losses.base import DetectionLoss, focal_sum, mean_over_ranks, offsets
from detsearch_cli.structures import Assignment, Dense, Targets


class FocalSmoothL1(DetectionLoss):
    """Source: Lin et al. 2017 (focal loss), section 4; numbers from maskrcnn-benchmark's RetinaNet.

    There, classification is divided by positives + images and regression by 4 x positives (BBOX_REG_WEIGHT),
    on offsets scaled by (10, 10, 5, 5). With points the offsets are corners in strides.
    """

    alpha: float = Field(default=0.25, ge=0, le=1)
    gamma: float = Field(default=2.0, ge=0)
    beta: float = Field(default=0.11, gt=0, description="where smooth L1 turns from square to straight")
    regression_weight: float = Field(default=0.25, ge=0)

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        pairs = assignment.matches()
        predicted, wanted = offsets(dense, (pairs.image, pairs.prior, pairs.gt), targets)
        distance = F.smooth_l1_loss(predicted, wanted, beta=self.beta, reduction="none").sum(-1)
        regression = (distance * pairs.weight).sum()
        num_positive = assignment.positive.sum()
        classification = focal_sum(dense, assignment, targets, self.alpha, self.gamma)
        return {
            "classification": classification / mean_over_ranks(num_positive + dense.boxes.shape[0]),
            "regression": self.regression_weight * regression / mean_over_ranks(pairs.weight.sum()),
        }
