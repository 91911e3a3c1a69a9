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
from detsearch_cli.structures import Assignment, Dense, Targets, TrainingStep


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

    def before_step(self, step: TrainingStep) -> None:
        """Called before every training step, on every rank."""

    def state(self) -> dict[str, float]:
        """What it remembers of earlier steps, for a training that goes on after an interruption; nothing, mostly."""
        return {}

    def restore(self, state: dict[str, float], device: torch.device) -> None:
        """Remember `state` again. device: of the predictions to come. Raises KeyError where it is another loss's."""

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
    """Of positives (image, prior, gt), each (P,): smooth L1 summed over `offsets`, or 1 - GIoU. (P,)."""
    if kind == "giou":
        image, prior, gt = pairs
        return 1 - aligned_iou(dense.boxes[image, prior], targets.boxes[gt], "giou", eps=1e-7)
    predicted, wanted = offsets(dense, pairs, targets)
    return F.smooth_l1_loss(predicted, wanted, beta=1 / 9, reduction="none").sum(1)


def offsets(dense: Dense, pairs: tuple[Tensor, Tensor, Tensor], targets: Targets) -> tuple[Tensor, Tensor]:
    """Predicted and wanted offsets of positives (image, prior, gt), each (P,), from their anchors. (P, 4), (P, 4).

    Points predict distances and no offsets from an anchor, so that theirs are corners in strides.
    """
    image, prior, gt = pairs
    if dense.priors.ranges is None:
        return dense.deltas[image, prior], boxes.encode_deltas(dense.priors.boxes[prior], targets.boxes[gt])
    strides = dense.priors.strides[dense.priors.level[prior]][:, None]
    return dense.boxes[image, prior] / strides, targets.boxes[gt] / strides


def focal_sum(dense: Dense, assignment: Assignment, targets: Targets, alpha: float, gamma: float) -> Tensor:
    """Focal loss summed over all priors that are not ignored and all classes. Scalar.

    Source: Lin et al. 2017, Eq. 5. No one-hot tensor of (B, A, C) is ever made, nor the maps joined to one.
    """
    return kernels.focal_sum(dense.rows(), assignment.matched, targets.labels, alpha=alpha, gamma=gamma)
