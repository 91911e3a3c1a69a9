"""The cell a box's centre lies in, and in it the shape most like the box; good predictions are ignored (YOLOv2)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.assigners.base import Assigner, chunks
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Priors, Targets


class Yolo(Assigner):
    """Source: Redmon and Farhadi 2017 (YOLO9000), section 2; the region layer of the released code (darknet).

    As in darknet, a prior that is right for several ground truths is matched to the last of them, a centre on the
    border of two cells belongs to the right or lower one, and of equally good shapes the first is taken. darknet
    shuffles the boxes of an image, so any may be the last; here it is the last of the annotation, so that a seed
    decides everything. A ground truth without width or height gets no prior: darknet leaves such boxes out when it
    reads them. With several levels the shapes of all levels are compared, as YOLOv3 does.
    """

    compares_shapes: ClassVar[bool] = True

    distance: Literal["iou", "log_l2"] = Field(
        default="iou",
        description="how shapes are compared: IoU at one centre, or L2 between log sizes (Zhong et al. 2020, 3.2)",
    )
    ignore_iou: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="a prior whose predicted box overlaps any object more is no background",
    )

    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        priors, num_priors = dense.priors, dense.priors.boxes.shape[0]
        if priors.ranges is not None:
            raise RecipeError(
                "assign yolo compares shapes of anchors, got points; use priors: shapes or anchors"
            )
        if targets.boxes.shape[0] == 0:
            return Assignment.background(targets.num_images, num_priors, priors.boxes.device)
        matched = torch.where(self._best_overlap(dense, targets) > self.ignore_iou, IGNORE, BACKGROUND)
        gt = torch.arange(targets.boxes.shape[0], device=matched.device)
        whole = (targets.boxes[:, 2:] > targets.boxes[:, :2]).all(1)
        row = targets.image_index() * num_priors + self._prior(priors, targets.boxes)
        # amax: a ground truth, at least 0, wins over both marks, and a later one over an earlier one
        chosen = torch.where(whole, gt, BACKGROUND)
        served = gt.new_full((matched.numel(),), BACKGROUND).scatter_reduce(0, row, chosen, "amax")
        return Assignment(torch.where(served >= 0, served, matched.view(-1)).view_as(matched))

    def _prior(self, priors: Priors, gt: Tensor) -> Tensor:
        """The prior that answers for each ground truth. gt (G, 4) -> (G,) in [0, A)."""
        shapes = priors.cell_shapes()
        num_levels, per_cell = shapes.shape[:2]
        best = self._likeness(gt[:, 2:] - gt[:, :2], shapes.view(-1, 2)).argmax(1)
        level = best // per_cell
        size = torch.tensor(priors.sizes, device=gt.device)[level]
        # the first prior of each level
        first = torch.tensor([sum(priors.counts[:i]) for i in range(num_levels)], device=gt.device)[level]
        # a centre on the far border, or beyond it, belongs to the last cell
        cell = (boxes.centers(gt) / priors.strides[level][:, None]).floor().long().clamp(min=0)
        column, row = cell[:, 0].minimum(size[:, 1] - 1), cell[:, 1].minimum(size[:, 0] - 1)
        return first + (row * size[:, 1] + column) * per_cell + best % per_cell

    def _likeness(self, gt: Tensor, shapes: Tensor) -> Tensor:
        """How alike widths and heights are, higher is better. gt (G, 2), shapes (S, 2), px -> (G, S)."""
        if self.distance == "log_l2":
            # sizes count as at least 1 px, as wherever boxes are encoded
            return -(gt.clamp(min=1).log()[:, None] - shapes.log()).square().sum(-1)
        shared = torch.minimum(gt[:, None], shapes).clamp(min=0).prod(-1)
        return shared / (gt.clamp(min=0).prod(-1)[:, None] + shapes.prod(-1) - shared)

    def _best_overlap(self, dense: Dense, targets: Targets) -> Tensor:
        """Highest IoU of every predicted box with a ground truth of its image, (B, A)."""
        image, num_priors = targets.image_index(), dense.boxes.shape[1]
        best = dense.boxes.new_zeros(dense.boxes.shape[:2])
        for part in chunks(targets.boxes.shape[0], num_priors):
            overlap = boxes.iou(targets.boxes[part, None], dense.boxes[image[part]])
            best = best.scatter_reduce(0, image[part, None].expand(-1, num_priors), overlap, "amax")
        return best
