"""IoU above .5 is positive, below .4 negative, between ignored; a box keeps its best prior (RetinaNet)."""

from __future__ import annotations

from dataclasses import replace

import torch
from detsearch_kernels import matchers
from pydantic import Field, model_validator
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.assigners._candidates import find_candidates
from detsearch_cli.slots.assigners.base import Assigner, compiled_tiling, pairs_with_image, pick_highest
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Priors, Targets

MARGIN = 1e-4
"""The candidate search compares strictly and may round otherwise: it looks for a little more, which is dropped here."""


class MaxIoU(Assigner):
    """Source: Lin et al. 2017 (focal loss), section 4; maskrcnn-benchmark's Matcher with low-quality matches.

    As in the Matcher, a prior that is the best of some ground truth goes to the ground truth that *the prior* overlaps
    most. A ground truth that overlaps no prior at all (an empty box) gets none; the Matcher would give it every prior.
    """

    positive_iou: float = Field(default=0.5, gt=0, le=1)
    negative_iou: float = Field(default=0.4, ge=0, le=1)
    low_quality: bool = Field(default=True, description="a ground truth's best priors are always positive")

    @model_validator(mode="after")
    def _ordered(self) -> MaxIoU:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou} must not exceed positive_iou {self.positive_iou}"
            )
        return self

    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        priors, num_priors = dense.priors.boxes, dense.priors.boxes.shape[0]
        if targets.boxes.shape[0] == 0:
            return Assignment.background(targets.num_images, num_priors, priors.device)
        tiling = compiled_tiling(dense)
        if tiling is not None:
            return Assignment(matchers.max_iou(targets.boxes.float(), targets.splits, tiling, **dict(self)))
        gt, prior, overlap = self._overlapping(dense.priors, targets.boxes)
        rescued = gt[:0], prior[:0]
        if self.low_quality:
            highest = overlap.new_zeros(targets.boxes.shape[0]).scatter_reduce(0, gt, overlap, "amax")
            # all of equal overlap, not one: so does the Matcher
            best = overlap == highest[gt]
            rescued = _rivals(gt[best], prior[best], targets, num_priors)
        enough = overlap >= self.negative_iou
        gt, prior = torch.cat((gt[enough], rescued[0])), torch.cat((prior[enough], rescued[1]))
        # a box that is not a number overlaps nothing
        overlap = boxes.iou(targets.boxes[gt], priors[prior]).nan_to_num(nan=0.0)
        matched = pick_highest(gt, prior, overlap, targets, num_priors)
        return Assignment(self._ignore_between(matched, gt, prior, overlap, rescued, targets))

    def _overlapping(self, priors: Priors, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gt, prior, IoU (P,) of the pairs that may matter.

        All of IoU at least negative_iou; for a ground truth without such a pair, all that overlap at all, so
        that its best is among them.
        """
        # without ranges the search goes by IoU, also for points
        anchors = replace(priors, ranges=None)
        near = find_candidates(anchors, gt_boxes, max(0.0, self.negative_iou - MARGIN))
        lonely = (torch.bincount(near.gt, minlength=gt_boxes.shape[0]) == 0).nonzero()[:, 0]
        far = find_candidates(anchors, gt_boxes[lonely], 0.0)
        # the second search has its own numbering: rows of `lonely`
        gt, prior = torch.cat((near.gt, lonely[far.gt])), torch.cat((near.prior, far.prior))
        return gt, prior, boxes.iou(gt_boxes[gt], priors.boxes[prior])

    def _ignore_between(
        self,
        matched: Tensor,
        gt: Tensor,
        prior: Tensor,
        overlap: Tensor,
        rescued: tuple[Tensor, Tensor],
        targets: Targets,
    ) -> Tensor:
        """Matches below positive_iou become IGNORE, but for rescued priors."""
        image = targets.image_index()
        positive = torch.zeros_like(matched, dtype=torch.bool)
        sure = overlap >= self.positive_iou
        positive[image[gt[sure]], prior[sure]] = True
        positive[image[rescued[0]], rescued[1]] = True
        return torch.where(positive | (matched == BACKGROUND), matched, IGNORE)


def _rivals(gt: Tensor, prior: Tensor, targets: Targets, num_priors: int) -> tuple[Tensor, Tensor]:
    """Every given (image, prior) with all ground truths of its image. (P,), (P,) -> gt, prior (Q,)."""
    image = targets.image_index()[gt]
    cell = torch.unique(image * num_priors + prior)
    image, prior = cell // num_priors, cell % num_priors
    gt, owner = pairs_with_image(targets, image)
    return gt, prior[owner]
