"""What every assigner is, and the ragged reductions they share.

An assigner sees (ground truth, prior) pairs of a whole batch. None loops over images or ground truths: it
lists the pairs that qualify and lets every prior pick its best pair by a scatter.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import detsearch_kernels as kernels
import torch
from detsearch_kernels.assign import Tiling
from torch import Tensor

from detsearch_cli.parts import Part
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets

MAX_PAIRS = 2**24
"""Ground truths are taken in chunks of at most this many pairs with priors: 64 MiB a float matrix."""


class Assigner(Part):
    """Decides which prior answers for which ground truth. No gradient flows through it."""

    compares_shapes: ClassVar[bool] = False
    """Whether it compares shapes of anchors, which points do not have."""

    @abstractmethod
    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        """matched (B, A). `dense` is detached and float32; priors are `dense.priors`."""

    def check(self, num_levels: int) -> None:
        """Called when a detector is built. Raises RecipeError where the options do not fit its levels."""


def compiled_tiling(dense: Dense) -> Tiling | None:
    """The priors' tiling where a compiled operator takes it, None where PyTorch has to assign."""
    tiling = dense.priors.tiling
    return tiling if tiling is not None and kernels.ready(dense.boxes.device) else None


def chunks(num_gt: int, num_priors: int) -> Iterator[slice]:
    """Slices of the ground truths that keep a (G, A) matrix within MAX_PAIRS; one slice for usual batches."""
    step = max(1, MAX_PAIRS // max(1, num_priors))
    for start in range(0, num_gt, step):
        yield slice(start, min(start + step, num_gt))


def pick_highest(gt: Tensor, prior: Tensor, score: Tensor, targets: Targets, num_priors: int) -> Tensor:
    """Every prior takes its pair of highest score; of equal scores the first ground truth.

    gt, prior, score (P,): the qualifying pairs. Returns matched (B, A), BACKGROUND where no pair qualifies.
    Order-independent reductions only, so the result is deterministic on every device.
    """
    num_images, num_gt = targets.num_images, targets.boxes.shape[0]
    cell = targets.image_index()[gt] * num_priors + prior
    best = score.new_full((num_images * num_priors,), -torch.inf).scatter_reduce(0, cell, score, "amax")
    wins = score == best[cell]
    first = gt.new_full((num_images * num_priors,), num_gt).scatter_reduce(0, cell[wins], gt[wins], "amin")
    return torch.where(first < num_gt, first, BACKGROUND).view(num_images, num_priors)


def pairs_with_image(targets: Targets, image: Tensor) -> tuple[Tensor, Tensor]:
    """Every given image (N,) with each of its ground truths, in order -> gt (Q,), position in `image` (Q,)."""
    count = targets.splits.diff()[image]
    owner = torch.repeat_interleave(torch.arange(len(image), device=image.device), count)
    position = torch.arange(len(owner), device=image.device) - (count.cumsum(0) - count)[owner]
    return targets.splits[image][owner] + position, owner
