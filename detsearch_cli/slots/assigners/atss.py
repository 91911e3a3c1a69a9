"""The nearest priors of every level whose IoU exceeds its mean plus deviation (ATSS)."""

from __future__ import annotations

import torch
from detsearch_kernels import matchers
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.parts import Count
from detsearch_cli.slots.assigners.base import Assigner, chunks, compiled_tiling, pick_highest
from detsearch_cli.structures import Assignment, Dense, Priors, Targets


class ATSSAssigner(Assigner):
    """Source: Zhang et al. 2020 (ATSS), Algorithm 1; its code for contested priors: the highest IoU wins.

    Of cells equally near the first count; of equal IoUs the lower row of the ground truths wins. A ground truth
    that is not finite gets no prior.
    """

    top_k: Count = Field(default=9, description="candidates a level and prior of a cell")

    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        priors, device = dense.priors, targets.boxes.device
        num_gt, num_priors = targets.boxes.shape[0], priors.points.shape[0]
        if num_gt == 0:
            return Assignment.background(targets.num_images, num_priors, device)
        tiling = compiled_tiling(dense)
        if tiling is not None:
            return Assignment(matchers.atss(targets.boxes.float(), targets.splits, tiling, top_k=self.top_k))
        pieces = [self.nearest(targets.boxes[c], priors) for c in chunks(num_gt, 4 * max(priors.counts))]
        candidate = torch.cat(pieces)
        gt_boxes = targets.boxes[:, None]
        overlap = boxes.iou(gt_boxes, priors.boxes[candidate])
        positive = (overlap >= mean_plus_deviation(overlap)) & gt_boxes.isfinite().all(-1)
        # the margin of the released code, in px
        inside = boxes.encode_distances(priors.points[candidate], gt_boxes).amin(-1) > 0.01
        gt, column = (positive & inside).nonzero(as_tuple=True)
        matched = pick_highest(gt, candidate[gt, column], overlap[gt, column], targets, num_priors)
        return Assignment(matched)

    def nearest(self, gt: Tensor, priors: Priors) -> Tensor:
        """Priors with the nearest centres, `top_k` on every level. gt (G, 4) -> (G, K) int64."""
        middle = boxes.centers(gt.float())
        nearest, start = [], 0
        for count in priors.counts:
            offset = middle[:, None] - priors.points[None, start : start + count]
            squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
            # the bits of floats >= 0 order as the floats do; below them the prior, so that no two are equal
            key = squared.view(torch.int32).long() << 31 | torch.arange(count, device=gt.device)
            per_cell = _priors_per_cell(priors, start, count)
            nearest.append(key.topk(min(self.top_k * per_cell, count), largest=False).indices + start)
            start += count
        return torch.cat(nearest, 1)


def mean_plus_deviation(overlap: Tensor) -> Tensor:
    """Threshold of every ground truth. overlap (G, K) -> (G, 1) float64. A single candidate has no deviation.

    float64, so that the order of summation does not decide which IoU is above it.
    """
    overlap = overlap.double()
    mean = overlap.mean(1, keepdim=True)
    return mean + overlap.std(1, keepdim=True) if overlap.shape[1] > 1 else mean


def _priors_per_cell(priors: Priors, start: int, count: int) -> int:
    """Priors that share the first cell's centre; they lie together."""
    points = priors.points[start : start + count]
    return int((points == points[0]).all(-1).sum())
