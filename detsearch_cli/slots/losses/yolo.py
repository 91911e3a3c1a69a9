"""Squared errors of coordinates and objectness, softmax over classes, each with its weight (YOLOv2)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.losses.base import DetectionLoss, mean_over_ranks
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets


class Yolo(DetectionLoss):
    """Source: Redmon and Farhadi 2017 (YOLO9000); weights and form from the released code (darknet).

    darknet writes gradients, not losses: they are those of half squared errors, through a sigmoid for x, y and
    objectness, and of the cross entropy of a softmax. Everything is summed and divided by the number of images,
    as its learning rate is. Zhong et al. 2020 (section 4.1) use the same weights. The size errors
    (dw + log a - log g)^2 are their Eq. 3, so shapes that learn have the gradient of Eq. 9, times the weights.
    """

    trains_objectness: ClassVar[bool] = True

    object_weight: float = Field(default=5.0, ge=0, description="of objectness of an object")
    background_weight: float = Field(default=1.0, ge=0, description="of objectness of background")
    coordinate_weight: float = Field(default=1.0, ge=0, description="of the box")
    class_weight: float = Field(default=1.0, ge=0, description="of the class")
    small_boxes: bool = Field(
        default=True, description="a box's weight is 2 minus the part of the image that it covers"
    )
    rescore: bool = Field(
        default=True, description="objectness of an object is to be the predicted box's IoU with it; else 1"
    )

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        if dense.objectness is None:
            raise RecipeError("loss yolo needs a detector with objectness; use --detector yolov2")
        images = mean_over_ranks(dense.logits.new_tensor(dense.logits.shape[0]))
        image, prior = assignment.positive.nonzero(as_tuple=True)
        gt = assignment.matched[image, prior]
        classes = F.cross_entropy(dense.logits[image, prior], targets.labels[gt], reduction="sum")
        terms = {
            "classification": self.class_weight * classes,
            "objectness": self._objectness(dense, assignment, targets),
            "regression": self.coordinate_weight * self._coordinates(dense, assignment, targets),
        }
        return {name: term / images for name, term in terms.items()}

    def _objectness(self, dense: Dense, assignment: Assignment, targets: Targets) -> Tensor:
        assert dense.objectness is not None
        score = dense.objectness.sigmoid()
        image, prior = assignment.positive.nonzero(as_tuple=True)
        # detached: the IoU is a target, and must not be raised by moving the box
        overlap = boxes.iou(
            dense.boxes[image, prior].detach(), targets.boxes[assignment.matched[image, prior]]
        )
        wanted = overlap if self.rescore else torch.ones_like(overlap)
        objects = (score[image, prior] - wanted).square().sum()
        background = score[assignment.matched == BACKGROUND].square().sum()
        return 0.5 * (self.object_weight * objects + self.background_weight * background)

    def _coordinates(self, dense: Dense, assignment: Assignment, targets: Targets) -> Tensor:
        """Half the squared errors of every match's box, weighted, summed. Only sizes reach the priors' shapes."""
        pairs, priors = assignment.matches(), dense.priors
        gt, predicted = targets.boxes[pairs.gt], dense.deltas[pairs.image, pairs.prior]
        stride = priors.strides[priors.level[pairs.prior]][:, None]
        # from the cell's upper left corner, in strides; a centre outside the image keeps to its cell
        offset = ((boxes.centers(gt) - priors.points[pairs.prior]) / stride + 0.5).clamp(0, 1)
        own = priors.boxes[pairs.prior]
        shape = (own[:, 2:] - own[:, :2]).log()
        # sizes count as at least 1 px, so that an empty box cannot give -inf
        size = (gt[:, 2:] - gt[:, :2]).clamp(min=1).log()
        errors = (predicted[:, :2].sigmoid() - offset).square() + (predicted[:, 2:] + shape - size).square()
        return 0.5 * (errors.sum(1) * pairs.weight * self._small_box_factor(dense, gt)).sum()

    def _small_box_factor(self, dense: Dense, gt: Tensor) -> Tensor:
        """2 - w h with sides in parts of the image, padding included, (N,): from 1 to 2."""
        if not self.small_boxes:
            return torch.ones_like(gt[:, 0])
        (rows, columns), stride = dense.priors.sizes[0], dense.priors.strides[0]
        return 2 - (boxes.area(gt) / (rows * columns * stride**2)).clamp(max=1)


def coordinate_warmup(dense: Dense, assignment: Assignment, weight: float) -> Tensor:
    """Draws every prior that has no object towards its own shape in the middle of its cell. Scalar.

    Half the squared errors times `weight`, divided by the number of images. Source: darknet's region layer, which
    does so with weight .01 while it has seen fewer than 12,800 images.
    """
    # also the ignored ones: darknet draws every prior that no object took
    free = dense.deltas[~assignment.positive]
    errors = (free[:, :2].sigmoid() - 0.5).square().sum() + free[:, 2:].square().sum()
    return 0.5 * weight * errors / mean_over_ranks(dense.logits.new_tensor(dense.logits.shape[0]))
