"""What travels between data, detectors, slots and engine: ragged targets, dense predictions, detections.

Boxes are xyxy in absolute pixels everywhere. Batches are ragged, never padded and never looped over:
the ground truths of all images are concatenated and `splits` tells where each image's begin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from detsearch_kernels.assign import Tiling
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Ground truths of a batch. boxes (ΣG, 4) xyxy px, labels (ΣG,) int64 in [0, C), splits (B+1,) int64."""

    boxes: Tensor
    labels: Tensor
    splits: Tensor

    @property
    def num_images(self) -> int:
        return self.splits.numel() - 1

    def image_index(self) -> Tensor:
        """Image of every ground truth, (ΣG,) int64."""
        counts = self.splits.diff()
        # output_size: without it a GPU would be waited for, to learn how long the result is
        return torch.repeat_interleave(
            torch.arange(self.num_images, device=counts.device), counts, output_size=self.boxes.shape[0]
        )

    def to(self, device: torch.device) -> Targets:
        return Targets(*(t.to(device, non_blocking=True) for t in (self.boxes, self.labels, self.splits)))

    @staticmethod
    def from_lists(boxes: list[Tensor], labels: list[Tensor]) -> Targets:
        """One entry an image: boxes (G_i, 4), labels (G_i,)."""
        counts = torch.tensor([0] + [len(b) for b in boxes])
        # reshape: the boxes of a batch without any may come as (0,)
        return Targets(torch.cat(boxes).reshape(-1, 4), torch.cat(labels), counts.cumsum(0))


@dataclass(frozen=True)
class Priors:
    """Anchors or points of all levels, shared by the images of a batch, level after level, row-major.

    boxes (A, 4) xyxy px: the anchors; for points a cell of one stride centred on the point.
    points (A, 2) xy px: the centres. level (A,) int64 in [0, L). strides (L,) px.
    ranges (L, 2) px: (low, high] of the largest regression distance a level is meant for (FCOS),
    None where the detector has no such ranges. counts (L,) priors a level, as Python ints.
    sizes: height and width in cells of every level, as Python ints.
    tiling: the same as a few numbers, where the priors of a cell repeat in every cell; kernels need it.
    image: height and width px of the padded images that they lie in.
    """

    boxes: Tensor
    points: Tensor
    level: Tensor
    strides: Tensor
    counts: tuple[int, ...]
    ranges: Tensor | None = None
    tiling: Tiling | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    image: tuple[int, int] | None = None

    def sides(self) -> Tensor:
        """Width, height, width, height of the padded images, (4,) px: what a box is divided by to be a part of them."""
        assert self.image is not None  # whatever predicts boxes knows its images
        return self.boxes.new_tensor([self.image[1], self.image[0]] * 2)

    @property
    def num_levels(self) -> int:
        return len(self.counts)

    @property
    def per_cell(self) -> int:
        """Priors of a cell, the same on all levels."""
        return self.counts[0] // (self.sizes[0][0] * self.sizes[0][1])

    def cell_shapes(self) -> Tensor:
        """Width and height in px of a cell's priors, (L, S, 2), with gradient where they learn."""
        starts = [sum(self.counts[:level]) for level in range(self.num_levels)]
        cell = torch.stack([self.boxes[start : start + self.per_cell] for start in starts])
        return cell[..., 2:] - cell[..., :2]

    def detached(self) -> Priors:
        """The same without gradient towards the shapes of anchors that learn."""
        if not self.boxes.requires_grad:
            return self
        tiling = None if self.tiling is None else replace(self.tiling, cell=self.tiling.cell.detach())
        return replace(self, boxes=self.boxes.detach(), tiling=tiling)


@dataclass(frozen=True)
class Dense:
    """Predictions at every prior, before any selection.

    maps: raw class scores where the head wrote them, (B, priors a cell x C, H, W) a level; or all in one (B, A, C).
    boxes (B, A, 4) decoded, xyxy px, with gradient. deltas (B, A, 4): the regression output they were decoded from.
    centerness (B, A) raw logits, None where the detector has no such branch. priors: the A priors.
    objectness (B, A) raw logits, None where the detector has no such branch; where it has, `logits` tell classes
    of objects apart by softmax (YOLOv2).
    """

    maps: tuple[Tensor, ...]
    boxes: Tensor
    deltas: Tensor
    priors: Priors
    centerness: Tensor | None = None
    objectness: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """The maps as one (B, A, C): a copy, made when first asked for. Prefer `rows`, or the maps themselves."""
        if self.maps[0].dim() == 3:
            return self.maps[0]
        # kept for all who ask later: made where gradients are off, it would train no class, without a word
        with torch.enable_grad():
            return torch.cat([level.flatten(1, 3) for level in self.rows()], 1)

    @property
    def device(self) -> torch.device:
        """Where the predictions lie; asking makes no copy of them."""
        return self.boxes.device

    def rows(self) -> list[Tensor]:
        """Views of the scores in the order of priors: of every level (B, H, W, priors a cell, C), or (B, A_l, C)."""
        if self.maps[0].dim() == 3:
            return list(self.maps[0].split(self.priors.counts, 1))
        cells = [level.permute(0, 2, 3, 1) for level in self.maps]
        counts = zip(cells, self.priors.counts, strict=True)
        return [x.unflatten(-1, (count // (x.shape[1] * x.shape[2]), -1)) for x, count in counts]

    def detached(self) -> Dense:
        """The same without gradient, in float32: what assigners get."""
        centerness = None if self.centerness is None else self.centerness.detach().float()
        objectness = None if self.objectness is None else self.objectness.detach().float()
        return replace(
            self,
            priors=self.priors.detached(),
            maps=tuple(level.detach().float() for level in self.maps),
            boxes=self.boxes.detach().float(),
            deltas=self.deltas.detach().float(),
            centerness=centerness,
            objectness=objectness,
        )


BACKGROUND = -1
IGNORE = -2


@dataclass(frozen=True)
class Matches:
    """Which prior regresses to which ground truth, and how much. P pairs, in no particular order.

    image (P,) int64, prior (P,) int64 in [0, A), gt (P,) int64: row of `Targets.boxes`. weight (P,) float32
    in [0, 1], without gradient: the delta of Zhong et al. 2020 (anchor box optimization), Eq. 1. While it is
    soft, a prior may have several pairs.
    """

    image: Tensor
    prior: Tensor
    gt: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Assignment:
    """matched (B, A) int64: row of `Targets.boxes` (0..ΣG-1), BACKGROUND (-1) or IGNORE (-2).

    soft: the pairs of a soft assignment, None where every positive weighs 1. Localisation losses go over
    `matches()`; classification, objectness and centerness go by `matched`, which is always hard: Eq. 1 and 10
    of the paper define delta in L_loc alone.
    """

    matched: Tensor
    soft: Matches | None = None

    def matches(self) -> Matches:
        """What localisation losses go over: the soft pairs, else every positive with weight 1."""
        if self.soft is not None:
            return self.soft
        image, prior = self.positive.nonzero(as_tuple=True)
        weight = torch.ones(image.shape[0], device=image.device)
        return Matches(image, prior, self.matched[image, prior], weight)

    @property
    def positive(self) -> Tensor:
        """(B, A) bool."""
        return self.matched >= 0

    @staticmethod
    def background(num_images: int, num_priors: int, device: torch.device) -> Assignment:
        return Assignment(torch.full((num_images, num_priors), BACKGROUND, dtype=torch.int64, device=device))


@dataclass(frozen=True)
class TrainingStep:
    """The step that a training is about to take. index: from 0; total: steps of the training; images: seen before.

    epoch: from 0.
    """

    index: int
    total: int
    images: int
    epoch: int = 0


@dataclass(frozen=True)
class Detections:
    """Final detections of one image, best first. boxes (N, 4) xyxy px, scores (N,), labels (N,) int64.

    proposals (P, 4) xyxy px, best first: what a first stage proposed, None where a detector has one stage.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    proposals: Tensor | None = None
