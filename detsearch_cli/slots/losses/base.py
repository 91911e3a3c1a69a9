"""What every detection loss is, and the terms several of them share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from detsearch_kernels import focal as kernels
from detsearch_kernels.boxes import aligned_iou
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.parts import Part
from detsearch_cli.structures import Assignment, Dense, Targets


class DetectionLoss(Part):
    """What training minimises: the sum of the named terms.

    A term over no positives must still be a sum over an empty selection of the predictions, not a constant:
    then every parameter receives a gradient in every step and no rank of a distributed training hangs.
    """

    trains_objectness: ClassVar[bool] = False
    """Whether it compares `Dense.objectness`; a detector that has it needs such a loss."""
    trains_centerness: ClassVar[bool] = False
    """Whether it compares `Dense.centerness`; a detector that has it needs such a loss."""
    ranks: ClassVar[bool] = False
    """Whether only the order of scores matters to it: then no score threshold means anything beforehand."""
    background_logit: ClassVar[bool] = False
    """Whether the last of its logits is background's (softmax); such logits come from a second stage alone."""

    @abstractmethod
    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Scalar terms by name. `dense` carries gradient and is float32."""

    def stuck(self, terms: Mapping[str, float]) -> bool:
        """Whether these terms are where the loss has no slope, so that a training that stays there learns nothing."""
        return False

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Class scores in [0, 1] of the logits (..., C) that this loss trains, of the same shape."""
        return logits.sigmoid()


def mean_over_ranks(value: Tensor, minimum: float = 1.0) -> Tensor:
    """A scalar averaged over all ranks of a distributed training, without gradient; their sum at least `minimum`.

    Dividing by it makes averaged gradients those of one large batch; safe on a rank without objects.
    """
    value, ranks = value.detach().float(), number_of_ranks()
    if ranks > 1:
        value = value.clone()  # all_reduce writes in place, and `value` may be the caller's
        torch.distributed.all_reduce(value)
    return value.clamp(min=minimum) / ranks


def number_of_ranks() -> int:
    """Processes of a distributed training, over which gradients are averaged; 1 of any other."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def box_loss(
    dense: Dense, pairs: tuple[Tensor, Tensor, Tensor], targets: Targets, kind: Literal["l1", "giou"]
) -> Tensor:
    """Of positives (image, prior, gt), each (P,): smooth L1 summed over encoded offsets, or 1 - GIoU. (P,).

    Points predict distances and no offsets from an anchor, so that theirs are compared as corners in strides.
    """
    image, prior, gt = pairs
    if kind == "giou":
        return 1 - aligned_iou(dense.boxes[image, prior], targets.boxes[gt], "giou", eps=1e-7)
    if dense.priors.ranges is None:
        wanted = boxes.encode_deltas(dense.priors.boxes[prior], targets.boxes[gt])
        return F.smooth_l1_loss(dense.deltas[image, prior], wanted, beta=1 / 9, reduction="none").sum(1)
    strides = dense.priors.strides[dense.priors.level[prior]][:, None]
    difference = (dense.boxes[image, prior] - targets.boxes[gt]) / strides
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=1 / 9, reduction="none").sum(1)


def focal_sum(dense: Dense, assignment: Assignment, targets: Targets, alpha: float, gamma: float) -> Tensor:
    """Focal loss summed over all priors that are not ignored and all classes. Scalar.

    Source: Lin et al. 2017, Eq. 5. No one-hot tensor of (B, A, C) is ever made, nor the maps joined to one.
    """
    return kernels.focal_sum(dense.rows(), assignment.matched, targets.labels, alpha=alpha, gamma=gamma)
