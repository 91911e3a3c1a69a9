"""All points inside a box on the level whose range fits; the smallest box wins (FCOS)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.assigners.base import Assigner, chunks, pick_highest
from detsearch_cli.structures import Assignment, Dense, Priors, Targets


class FCOSAssigner(Assigner):
    """Source: Tian et al. 2019 (FCOS), section 3.1 and 3.2; the released code for centre sampling."""

    center_sampling: bool = Field(default=False, description="only points near the middle of the box")
    radius: float = Field(default=1.5, gt=0, description="of centre sampling, in strides")

    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        priors, device = dense.priors, targets.boxes.device
        num_priors = priors.points.shape[0]
        if targets.boxes.shape[0] == 0:
            return Assignment.background(targets.num_images, num_priors, device)
        found = []
        for part in chunks(targets.boxes.shape[0], num_priors):
            gt, prior = self.candidates(targets.boxes[part], priors).nonzero(as_tuple=True)
            found.append((gt + part.start, prior))
        gt, prior = (torch.cat(column) for column in zip(*found, strict=True))
        negative_area = -boxes.area(targets.boxes)
        return Assignment(pick_highest(gt, prior, negative_area[gt], targets, num_priors))

    def candidates(self, gt: Tensor, priors: Priors) -> Tensor:
        """Points that may answer for a ground truth. gt (G, 4) -> (G, A) bool."""
        if priors.ranges is None:
            raise RecipeError("assign fcos needs priors with level ranges, got anchors; use priors: points")
        low, high = priors.ranges[priors.level].unbind(-1)
        sides = boxes.encode_distances(priors.points[None], gt[:, None])
        farthest = sides.amax(-1)
        fits = (farthest > low) & (farthest <= high)
        if not self.center_sampling:
            return fits & (sides.amin(-1) > 0)
        reach = (self.radius * priors.strides[priors.level])[None, :, None]
        middle = boxes.centers(gt)[:, None]
        region = torch.cat(
            (torch.maximum(middle - reach, gt[:, None, :2]), torch.minimum(middle + reach, gt[:, None, 2:])),
            -1,
        )
        return fits & (boxes.encode_distances(priors.points[None], region).amin(-1) > 0)
