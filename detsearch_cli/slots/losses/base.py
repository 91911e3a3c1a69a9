"""What every detection loss is, and the terms several of them share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from detsearch_cli.parts import Part
from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets


class DetectionLoss(Part):
    """What training minimises: the sum of the named terms.

    A term over no positives must still be a sum over an empty selection of the predictions, not a constant:
    then every parameter receives a gradient in every step and no rank of a distributed training hangs.
    """

    trains_objectness: ClassVar[bool] = False
    """Whether it compares `Dense.objectness`; a detector that has it needs such a loss."""

    @abstractmethod
    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Scalar terms by name. `dense` carries gradient and is float32."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Class scores in [0, 1] of the logits that this loss trains, of the same shape."""
        return logits.sigmoid()


def mean_over_ranks(value: Tensor, minimum: float = 1.0) -> Tensor:
    """A scalar averaged over all ranks of a distributed training, without gradient; their sum at least `minimum`.

    Dividing by it makes averaged gradients those of one large batch; safe on a rank without objects.
    """
    value, ranks = value.detach().float(), 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        ranks = torch.distributed.get_world_size()
    return value.clamp(min=minimum) / ranks


def focal(logits: Tensor, positive: bool, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every logit as if its target were 1 (positive) or 0. Same shape as logits.

    Source: Lin et al. 2017, Eq. 5. softplus keeps log(sigmoid) finite at any logit.
    """
    if positive:
        return alpha * torch.sigmoid(-logits) ** gamma * F.softplus(-logits)
    return (1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)


def focal_sum(dense: Dense, assignment: Assignment, targets: Targets, alpha: float, gamma: float) -> Tensor:
    """Focal loss summed over all priors that are not ignored and all classes. Scalar.

    Every logit counts as a negative first, then the few of positives' own classes are corrected: no one-hot
    tensor of (B, A, C) is ever made.
    """
    negative = focal(dense.logits, False, alpha, gamma).sum(-1)
    image, prior = assignment.positive.nonzero(as_tuple=True)
    own = dense.logits[image, prior, targets.labels[assignment.matched[image, prior]]]
    correction = focal(own, True, alpha, gamma) - focal(own, False, alpha, gamma)
    return negative[assignment.matched != IGNORE].sum() + correction.sum()
