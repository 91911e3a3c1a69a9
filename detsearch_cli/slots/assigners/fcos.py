"""All points inside a box on the level whose range fits; the smallest box wins (FCOS)."""

from __future__ import annotations

from detsearch_kernels import matchers
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.assigners._candidates import find_candidates
from detsearch_cli.slots.assigners.base import Assigner, compiled_tiling, pick_highest
from detsearch_cli.structures import Assignment, Dense, Priors, Targets


class FCOSAssigner(Assigner):
    """Source: Tian et al. 2019 (FCOS), section 3.1 and 3.2; the released code for centre sampling.

    Of equally small boxes the lower row of the ground truths wins. One that is not finite gets no point.
    """

    center_sampling: bool = Field(default=False, description="only points near the middle of the box")
    radius: float = Field(default=1.5, gt=0, description="of centre sampling, in strides")

    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        priors, device = dense.priors, targets.boxes.device
        num_priors = priors.points.shape[0]
        if priors.ranges is None:
            raise RecipeError("assign fcos needs priors with level ranges, got anchors; use priors: points")
        if targets.boxes.shape[0] == 0:
            return Assignment.background(targets.num_images, num_priors, device)
        tiling = compiled_tiling(dense)
        if tiling is not None:
            radius = self.radius if self.center_sampling else None
            return Assignment(
                matchers.fcos_targets(targets.boxes.float(), targets.splits, tiling, radius=radius)
            )
        pairs = find_candidates(priors, targets.boxes, 0.0)
        # an infinite side passes the open range of the last level, but such a box is to get no point
        finite = targets.boxes.isfinite().all(1)[pairs.gt]
        gt, prior = pairs.gt[finite], pairs.prior[finite]
        if self.center_sampling:
            central = self.central(targets.boxes[gt], priors, prior)
            gt, prior = gt[central], prior[central]
        # the smallest box is to win, and the reduction picks the highest
        negative_area = -boxes.area(targets.boxes)
        return Assignment(pick_highest(gt, prior, negative_area[gt], targets, num_priors))

    def central(self, gt: Tensor, priors: Priors, prior: Tensor) -> Tensor:
        """Whether points are within `radius` strides of their box's middle. gt (P, 4), prior (P,) -> (P,)."""
        offset = (priors.points[prior] - boxes.centers(gt)).abs().amax(1)
        return offset < self.radius * priors.strides[priors.level[prior]]
