"""Cross entropy and smooth L1 on a balanced sample of priors (Faster R-CNN's proposals)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Count
from detsearch_cli.slots.losses._sampling import BalancedSample, balanced
from detsearch_cli.slots.losses.base import DetectionLoss, mean_over_ranks
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets


class RPN(DetectionLoss):
    """Source: Ren et al. 2015 (Faster R-CNN), Eq. 1 and section 3.1.3; torchvision's RegionProposalNetwork.

    As in torchvision, both terms are divided by the number of sampled priors, and smooth L1 compares plain offsets,
    not those scaled by boxes.DELTA_WEIGHTS. The paper divides regression by another number, which its lambda of 10
    undoes. With a soft assignment every pair counts, times its weight and the sampled share of the positives in the
    image: a sample of the priors would drop pairs that Eq. 10 of anchor box optimization wants weighed, not drawn.
    """

    samples: Count = Field(default=256, description="priors an image that are trained on")
    positive_share: float = Field(default=0.5, gt=0, le=1, description="of them, positive at most")
    beta: float = Field(default=1 / 9, gt=0, description="where smooth L1 turns from square to straight")
    regression_weight: float = Field(default=1.0, ge=0, description="of the regression term")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        if dense.priors.ranges is not None:
            raise RecipeError("loss rpn compares offsets from anchors, got points; use loss: focal_iou")
        positive = assignment.positive
        sample = balanced(positive, assignment.matched == BACKGROUND, self.samples, self.positive_share)
        number = mean_over_ranks(torch.tensor(len(sample.image), device=positive.device))
        classification = _classification(dense, assignment, targets, sample)
        regression = self._regression(dense, assignment, targets, sample)
        return {
            "classification": classification / number,
            "regression": self.regression_weight * regression / number,
        }

    def _regression(
        self, dense: Dense, assignment: Assignment, targets: Targets, sample: BalancedSample
    ) -> Tensor:
        image, prior, gt, weight = _pairs(assignment, sample)
        unit = dense.deltas.new_tensor(boxes.DELTA_WEIGHTS)
        wanted = boxes.encode_deltas(dense.priors.boxes[prior], targets.boxes[gt]) / unit
        predicted = dense.deltas[image, prior] / unit
        return (F.smooth_l1_loss(predicted, wanted, beta=self.beta, reduction="none") * weight[:, None]).sum()


def _classification(dense: Dense, assignment: Assignment, targets: Targets, sample: BalancedSample) -> Tensor:
    """Binary cross entropy of the sampled priors, summed over them and the classes."""
    logits = dense.logits[sample.image, sample.index]
    wanted = torch.zeros_like(logits)
    row = sample.positive.nonzero()[:, 0]
    wanted[row, targets.labels[assignment.matched[sample.image[row], sample.index[row]]]] = 1
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def _pairs(assignment: Assignment, sample: BalancedSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """image, prior, gt and weight (P,) of what the regression goes over."""
    image, prior = sample.image[sample.positive], sample.index[sample.positive]
    if assignment.soft is None:
        gt = assignment.matched[image, prior]
        return image, prior, gt, torch.ones(gt.shape, device=gt.device)
    pairs, positive = assignment.matches(), assignment.positive
    drawn = torch.bincount(image, minlength=positive.shape[0])
    # of an image without a positive the share is 0 / 1
    share = drawn / positive.sum(1).clamp(min=1)
    return pairs.image, pairs.prior, pairs.gt, pairs.weight * share[pairs.image]
