"""Cross entropy with background, and smooth L1, L1 or an IoU for boxes (Fast R-CNN's regions)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.losses.base import DetectionLoss, box_loss, mean_over_ranks
from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets


class CrossEntropy(DetectionLoss):
    """Source: Girshick 2015 (Fast R-CNN), Eq. 1; both terms are divided by the number of regions, as torchvision's are.

    A softmax over the classes and background, whose logit is the last. With `smooth_l1` and `l1` the regression compares
    encoded offsets, with `giou` decoded boxes.
    """

    background_logit: ClassVar[bool] = True

    regression: Literal["smooth_l1", "l1", "giou"] = Field(default="smooth_l1", description="of boxes")
    beta: float = Field(default=1 / 9, gt=0, description="where smooth L1 turns from square to straight")
    regression_weight: float = Field(default=1.0, ge=0, description="of the regression term")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        background = dense.logits.shape[-1] - 1
        image, prior = (assignment.matched != IGNORE).nonzero(as_tuple=True)
        matched = assignment.matched[image, prior]
        labels = torch.full_like(matched, background)
        labels[matched >= 0] = targets.labels[matched[matched >= 0]]
        number = mean_over_ranks(torch.tensor(len(labels), device=labels.device))
        # without a positive these are sums over nothing, not constants: every parameter still gets a gradient
        classification = F.cross_entropy(dense.logits[image, prior], labels, reduction="sum")
        image, prior, gt = image[matched >= 0], prior[matched >= 0], matched[matched >= 0]
        return {
            "classification": classification / number,
            "regression": self.regression_weight
            * self._regression(dense, image, prior, gt, targets)
            / number,
        }

    def _regression(self, dense: Dense, image: Tensor, prior: Tensor, gt: Tensor, targets: Targets) -> Tensor:
        if self.regression == "giou":
            return box_loss(dense, (image, prior, gt), targets, "giou").sum()
        wanted = boxes.encode_deltas(dense.priors.boxes[prior], targets.boxes[gt].to(dense.boxes))
        predicted = dense.deltas[image, prior]
        if self.regression == "l1":
            return F.l1_loss(predicted, wanted, reduction="sum")
        return F.smooth_l1_loss(predicted, wanted, beta=self.beta, reduction="sum")

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Of the classes (..., C), from logits (..., C + 1)."""
        return logits.softmax(-1)[..., :-1]
