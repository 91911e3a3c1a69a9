"""A random, balanced share of many candidates: what Faster R-CNN trains on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BalancedSample:
    """Chosen candidates, image after image. image (S,) int64, index (S,) int64, positive (S,) bool."""

    image: Tensor
    index: Tensor
    positive: Tensor


def balanced(positive: Tensor, negative: Tensor, count: int, share: float) -> BalancedSample:
    """At most `count` candidates an image, at most `share` of them positive, negatives for the rest.

    positive, negative (B, N) bool. Drawn uniformly from torch's random state, which every step of a training sets
    (engine/state.py). Source: Ren et al. 2015 (Faster R-CNN), section 3.1.3; Girshick 2015 (Fast R-CNN), 2.3.
    """
    # one draw for both: a candidate is positive or negative, never both
    draws = torch.rand(positive.shape, device=positive.device)
    chosen_positive, is_positive = _draw(draws, positive, int(count * share))
    chosen_negative, is_negative = _draw(draws, negative, count)
    # negatives fill what the positives of the image leave of `count`; the draws are sorted, so the first stay
    room = count - is_positive.sum(1, keepdim=True)
    is_negative &= torch.arange(is_negative.shape[1], device=draws.device) < room
    chosen = torch.cat((chosen_positive, chosen_negative), 1)
    image, column = torch.cat((is_positive, is_negative), 1).nonzero(as_tuple=True)
    return BalancedSample(image, chosen[image, column], column < is_positive.shape[1])


def _draw(draws: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns of the `count` highest draws that are allowed, and which of them exist. Both (B, <= count)."""
    # topk of random numbers is a uniform sample without replacement, for all images at once
    highest, columns = torch.where(allowed, draws, -1.0).topk(min(count, draws.shape[1]), dim=1)
    return columns, highest >= 0
