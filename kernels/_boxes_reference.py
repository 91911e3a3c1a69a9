"""The box operators in plain PyTorch: what runs without a compiler, and what the kernels are tested against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEASURES = ("iou", "giou", "diou", "ciou")
"""In the order of csrc/boxes/boxes.h."""


def pairwise(
    gt: Tensor, priors: Tensor, splits: Tensor | None, measure: int, eps: float
) -> tuple[Tensor, ...]:
    """Value, intersection, union and hull of every pair. gt (G, 4), priors (A, 4) or (B, A, 4) -> 4 x (G, A)."""
    if splits is not None:
        rows = torch.arange(gt.shape[0], device=gt.device)
        # right=True: images without ground truths have equal splits, and the last of them owns the row
        priors = priors[torch.searchsorted(splits, rows, right=True) - 1]
    return compare(gt[:, None], priors, measure, eps)


def compare(a: Tensor, b: Tensor, measure: int, eps: float) -> tuple[Tensor, ...]:
    """Value, intersection, union and hull of boxes that broadcast. a, b (..., 4) -> 4 x (...)."""
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()  # an area overflows float16 from 256 px on
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    # relu: unlike that of clamp, its gradient at 0 is 0 in every version of torch
    wa, ha, wb, hb = (side.relu() for side in (ax2 - ax1, ay2 - ay1, bx2 - bx1, by2 - by1))
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).relu()
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).relu()
    hull_width = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)).relu()
    hull_height = (torch.maximum(ay2, by2) - torch.minimum(ay1, by1)).relu()
    shared, hull = width * height, hull_width * hull_height
    covered = wa * ha + wb * hb - shared
    iou = ratio(shared, covered + eps)
    if MEASURES[measure] == "iou":
        return iou, shared, covered, hull
    if MEASURES[measure] == "giou":
        return iou - ratio(hull - covered, hull + eps), shared, covered, hull
    dx, dy = (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2
    value = iou - ratio(dx * dx + dy * dy, hull_width * hull_width + hull_height * hull_height + eps)
    if MEASURES[measure] == "ciou":
        v = (4 / math.pi**2) * (angle(wa, ha) - angle(wb, hb)) ** 2
        with torch.no_grad():  # Zheng et al. 2020: the trade-off factor counts as a constant
            alpha = ratio(v, 1 - iou + v + eps)
        value = value - alpha * v
    return value, shared, covered, hull


def ratio(n: Tensor, d: Tensor) -> Tensor:
    """n / d, and 0 where there is nothing to divide by; there, no gradient flows."""
    # the inner `where` too: 0 / 0 in the branch that is not taken would still make the gradient NaN
    nothing = d <= torch.finfo(d.dtype).tiny
    return torch.where(nothing, 0.0, n / torch.where(nothing, 1.0, d))


def angle(w: Tensor, h: Tensor) -> Tensor:
    """atan(w / h) of sides >= 0 px; 0, without gradient, where both are 0."""
    return torch.atan2(w, torch.where((w == 0) & (h == 0), 1.0, h))
