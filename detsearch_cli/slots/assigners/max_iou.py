"""IoU above .5 is positive, below .4 negative, between ignored; a box keeps its best prior (RetinaNet)."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.assigners.base import Assigner, chunks, pick_highest
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Targets


class MaxIoU(Assigner):
    """Source: Lin et al. 2017 (focal loss), section 4; maskrcnn-benchmark's Matcher with low-quality matches.

    As there, a prior that is some ground truth's best goes to the ground truth *it* overlaps most. A ground
    truth that overlaps no prior at all (an empty box) gets none; the Matcher would give it every prior.
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
        priors, num_gt = dense.priors.boxes, targets.boxes.shape[0]
        if num_gt == 0:
            return Assignment.background(targets.num_images, priors.shape[0], priors.device)
        found = [self._pairs(targets.boxes[c], priors, c.start) for c in chunks(num_gt, priors.shape[0])]
        gt, prior, overlap, best = (torch.cat(column) for column in zip(*found, strict=True))
        if not self.low_quality:
            best = torch.zeros_like(best)
        rescued = _rivals(gt[best], prior[best], targets, priors.shape[0])
        rescued_overlap = boxes.iou(targets.boxes[rescued[0]], priors[rescued[1]])
        enough = overlap >= self.negative_iou
        gt = torch.cat((gt[enough], rescued[0]))
        prior = torch.cat((prior[enough], rescued[1]))
        overlap = torch.cat((overlap[enough], rescued_overlap))
        matched = pick_highest(gt, prior, overlap, targets, priors.shape[0])
        return Assignment(self._ignore_between(matched, gt, prior, overlap, rescued, targets))

    def _pairs(self, gt: Tensor, priors: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs that may matter: IoU of at least negative_iou, or a ground truth's highest. Each (P,)."""
        overlap = boxes.pairwise_iou(gt, priors)
        highest = overlap.amax(1, keepdim=True)
        best = (overlap == highest) & (highest > 0)
        row, prior = (best | (overlap >= max(self.negative_iou, 1e-9))).nonzero(as_tuple=True)
        return row + start, prior, overlap[row, prior], best[row, prior]

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
    count = targets.splits.diff()[image]
    owner = torch.repeat_interleave(torch.arange(len(cell), device=cell.device), count)
    position = torch.arange(len(owner), device=cell.device) - (count.cumsum(0) - count)[owner]
    return targets.splits[image][owner] + position, prior[owner]
