"""One prior for each object, so that the sum of class, L1 and GIoU costs is the least (DETR, Deformable DETR)."""

from __future__ import annotations

from itertools import pairwise

import torch
from detsearch_kernels.boxes import aligned_iou
from detsearch_kernels.focal import elementwise
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.assigners.base import Assigner, chunks
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets

ALPHA, GAMMA = 0.25, 2.0
NEVER = 1e9
"""Cost of a pair with a number that is none; scipy refuses those, and no sum of real costs comes near."""


class Hungarian(Assigner):
    """Source: Carion et al. 2020 (DETR), section 3.1; Zhu et al. 2021 (Deformable DETR), section 5 and the released code:
    the class cost is the focal loss of the object's class as a positive less that as a negative, L1 compares centre, width
    and height as parts of the padded batch.

    Of more objects than priors, those that cost most get none. An object that is not finite gets none. scipy solves one
    image after the other on the CPU: one transfer a step, and a matrix of all objects and priors, so it is meant for
    detectors of few hundred priors.
    """

    class_weight: float = Field(default=2.0, ge=0, le=1000, description="of the class cost")
    l1_weight: float = Field(default=5.0, ge=0, le=1000, description="of the L1 cost")
    giou_weight: float = Field(default=2.0, ge=0, le=1000, description="of the GIoU cost")

    @torch.no_grad()
    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        num_images, num_priors = dense.boxes.shape[:2]
        matched = torch.full((num_images, num_priors), BACKGROUND, dtype=torch.int64)
        pieces = [self.cost(dense, targets, rows) for rows in chunks(len(targets.boxes), 8 * num_priors)]
        if pieces:
            cost = torch.cat(pieces).cpu()
            finite = targets.boxes.isfinite().all(1).cpu()
            for image, (start, end) in enumerate(pairwise(targets.splits.tolist())):
                (own,) = finite[start:end].nonzero(as_tuple=True)
                gt, prior = linear_sum_assignment(cost[start:end][own].numpy())
                matched[image, torch.from_numpy(prior)] = start + own[torch.from_numpy(gt)]
        return Assignment(matched.to(dense.device))

    def cost(self, dense: Dense, targets: Targets, rows: slice) -> Tensor:
        """Cost of every prior of its image for these ground truths (g of them) -> (g, A)."""
        image, truth = targets.image_index()[rows], targets.boxes[rows].float()[:, None]
        logits = dense.logits[image, :, targets.labels[rows]]
        classes = elementwise(logits, True, ALPHA, GAMMA) - elementwise(logits, False, ALPHA, GAMMA)
        predicted = dense.boxes[image]
        apart = boxes.center_size(predicted) - boxes.center_size(truth)
        l1 = (apart / dense.priors.sides()).abs().sum(-1)
        giou = aligned_iou(
            predicted.flatten(0, 1), truth.expand_as(predicted).flatten(0, 1), "giou", eps=1e-7
        ).view_as(l1)
        cost = self.class_weight * classes + self.l1_weight * l1 - self.giou_weight * giou
        return torch.where(cost.isfinite(), cost, NEVER)
