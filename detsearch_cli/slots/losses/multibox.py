"""Softmax with a background class, trained on the hardest negatives, and smooth L1 (SSD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.losses.base import DetectionLoss, mean_over_ranks
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets


class MultiBox(DetectionLoss):
    """Source: Liu et al. 2016 (SSD), Eq. 1 to 3 and "hard negative mining".

    Logits are relative to that of background, which counts as 0: softmax knows no common offset. Both terms are
    divided by the number of positives. In every image the negatives of highest loss count, `negatives` for each
    positive. An image without any counts as if it had one: the released code learns nothing from it, but images
    without objects are where false alarms show.
    """

    negatives: float = Field(
        default=3.0, gt=0, description="hardest negatives for every positive of an image"
    )
    beta: float = Field(default=1.0, gt=0, description="where smooth L1 turns from square to straight")
    regression_weight: float = Field(default=1.0, ge=0, description="of the regression term")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        if dense.priors.ranges is not None:
            raise RecipeError("loss multibox compares offsets from anchors, got points; use loss: focal_iou")
        pairs = assignment.matches()
        wanted = boxes.encode_deltas(dense.priors.boxes[pairs.prior], targets.boxes[pairs.gt])
        predicted = dense.deltas[pairs.image, pairs.prior]
        each = F.smooth_l1_loss(predicted, wanted, beta=self.beta, reduction="none").sum(-1)
        number = mean_over_ranks(assignment.positive.sum())
        return {
            "classification": self._classification(dense.logits, assignment, targets) / number,
            "regression": self.regression_weight * (each * pairs.weight).sum() / number,
        }

    def _classification(self, logits: Tensor, assignment: Assignment, targets: Targets) -> Tensor:
        """Cross entropy summed over the positives and the hardest negatives of every image."""
        positive = assignment.positive
        total = F.pad(logits, (1, 0)).logsumexp(-1)  # minus the log of the background's probability
        with torch.no_grad():
            # IGNORE and positives get -1, below every real hardness, so that they are never chosen as negatives
            hardness = torch.where(assignment.matched == BACKGROUND, total, -1.0)
            wanted = (self.negatives * positive.sum(1).clamp(min=1)).long()
            most = min(int(wanted.max()), hardness.shape[1])
            highest, prior = hardness.topk(most, dim=1)
            chosen = (highest >= 0) & (torch.arange(most, device=prior.device) < wanted[:, None])
        image, column = chosen.nonzero(as_tuple=True)
        negative = total[image, prior[image, column]].sum()
        image, own = positive.nonzero(as_tuple=True)
        label = targets.labels[assignment.matched[image, own]]
        return negative + (total[image, own] - logits[image, own, label]).sum()

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        return F.pad(logits, (1, 0)).softmax(-1)[..., 1:]
