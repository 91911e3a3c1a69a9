"""Scores of a detector's head, read where the head wrote them: what the operators over all logits accept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def packed(level: Tensor) -> Tensor:
    """The tensor itself where it lies as a convolution writes it, in either memory format; else a copy."""
    if level.is_contiguous() or (level.dim() == 5 and level.permute(0, 3, 4, 1, 2).is_contiguous()):
        return level
    return level.contiguous()


def check_levels(name: str, levels: Sequence[Tensor]) -> int:
    """The number of priors of all levels, each (B, H, W, S, C) or (B, A, C), of one floating-point dtype.

    Raises TypeError or ValueError, naming the level that does not fit.
    """
    if not levels:
        raise ValueError(f"{name} must have at least one level, got none")
    first = levels[0]
    for number, level in enumerate(levels):
        if level.dim() not in (3, 5):
            raise ValueError(
                f"{name} must be (B, A, C) or (B, H, W, S, C), got {tuple(level.shape)} at {number}"
            )
        if not level.is_floating_point() or level.dtype != first.dtype:
            raise TypeError(f"{name} must share one floating-point dtype, got {level.dtype} at {number}")
        if (level.shape[0], level.shape[-1]) != (first.shape[0], first.shape[-1]):
            raise ValueError(
                f"levels must share images and classes, got {tuple(first.shape)} and {tuple(level.shape)}"
            )
    return sum(math.prod(level.shape[1:-1]) for level in levels)


def working(level: Tensor) -> Tensor:
    """float32 for half precision, else the tensor itself."""
    return level.float() if level.dtype in (torch.float16, torch.bfloat16) else level
