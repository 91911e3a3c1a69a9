"""Candidate pairs (ground truth, prior) found without ever building the G x A matrix.

Priors are cut into blocks of consecutive rows, which lie next to each other in the image. A block is
summarised by its hull, and a bound on the hull discards it for most ground truths; only what survives is
looked at exactly. The bound only ever keeps too much, so the outcome is that of the full comparison, for
any priors: on RetinaNet's 201,600 anchors about one pair in 30 is looked at. Work is done in pieces of at
most `BUDGET` elements, so memory stays bounded however many ground truths there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detsearch_cli.boxes import area, iou
from detsearch_cli.structures import Priors

BLOCK = 32
"""Priors of a block. Smaller ones cost more bounds, larger ones have hulls that discard less."""
BUDGET = 2**18
"""Elements of a temporary: a megabyte, which stays in a CPU's cache."""
SLACK = 1 - 1e-4
"""Rounding must not make a bound discard what the exact comparison accepts."""


@dataclass(frozen=True)
class Pairs:
    """Candidates, sorted by ground truth, then prior. gt (P,), prior (P,) int64.

    level (G,) int64: best pyramid level of a ground truth, -1 where it has anchors but no candidate.
    """

    gt: Tensor
    prior: Tensor
    level: Tensor


def find_candidates(priors: Priors, boxes: Tensor, min_iou: float) -> Pairs:
    """Candidates and best levels of boxes (G, 4) xyxy px; by points where `priors.ranges` is given."""
    if priors.ranges is None:
        return _by_anchors(priors, boxes, min_iou)
    return _by_points(priors, priors.ranges, boxes)


def _by_anchors(priors: Priors, boxes: Tensor, min_iou: float) -> Pairs:
    """IoU above `min_iou`, on all levels; the best level is that of the anchor with the highest IoU."""
    blocks = _blocks(priors.boxes)
    size = blocks[..., 2:] - blocks[..., :2]
    low, high = blocks[..., :2].amin(1), blocks[..., 2:].amax(1)
    widest, smallest = size.amax(1), area(blocks).amin(1)

    def may_match(gt: Tensor) -> Tensor:
        """Most the two can intersect, against the least that IoU > min_iou needs. (g, N) bool."""
        cut_x = torch.minimum(high[:, 0], gt[:, 2:3]) - torch.maximum(low[:, 0], gt[:, 0:1])
        cut_y = torch.minimum(high[:, 1], gt[:, 3:4]) - torch.maximum(low[:, 1], gt[:, 1:2])
        most = torch.minimum(cut_x, widest[:, 0]).clamp_(min=0) * torch.minimum(cut_y, widest[:, 1]).clamp_(
            min=0
        )
        return most > torch.maximum(area(gt).unsqueeze(1), smallest) * (min_iou * SLACK)

    def measure(gt: Tensor, prior: Tensor) -> Tensor:
        return iou(blocks[prior], gt.unsqueeze(1))

    gt, prior, overlap = _search(boxes, len(blocks), len(priors.boxes), may_match, measure, min_iou)
    best = overlap.new_full((len(boxes),), -1.0).scatter_reduce_(0, gt, overlap, "amax")
    (top,) = torch.nonzero(overlap == best[gt], as_tuple=True)
    top = top[_starts(gt[top])]  # the first of equals is the lowest prior
    level = torch.full((len(boxes),), -1, dtype=torch.int64, device=boxes.device)
    level[gt[top]] = priors.level[prior[top]]
    return Pairs(gt, prior, level)


def _by_points(priors: Priors, ranges: Tensor, boxes: Tensor) -> Pairs:
    """Points strictly inside whose largest distance to a side is in their level's range (low, high].

    The best level is the one whose range holds half the long side, the largest distance from the centre.
    """
    points, limits = _blocks(priors.points), _blocks(ranges[priors.level])
    low, high = points.amin(1), points.amax(1)
    range_low, range_high = limits[..., 0].amin(1), limits[..., 1].amax(1)

    def may_match(gt: Tensor) -> Tensor:
        """The hull touches the box, and a distance from half the long side to all of it fits. (g, N) bool."""
        long_side = (gt[:, 2:] - gt[:, :2]).amax(1, keepdim=True)
        # a point inside is at least half the long side, and less than all of it, from the farthest side
        fits = (range_low < long_side) & (range_high >= long_side * (0.5 * SLACK))
        across = (low[:, 0] < gt[:, 2:3]) & (high[:, 0] > gt[:, 0:1])
        return fits & across & (low[:, 1] < gt[:, 3:4]) & (high[:, 1] > gt[:, 1:2])

    def measure(gt: Tensor, block: Tensor) -> Tensor:
        point, limit = points[block], limits[block]
        distances = torch.cat([point - gt[:, None, :2], gt[:, None, 2:] - point], dim=-1)
        largest = distances.amax(-1)
        fits = (distances.amin(-1) > 0) & (largest > limit[..., 0]) & (largest <= limit[..., 1])
        return fits.to(point.dtype)

    gt, prior, _ = _search(boxes, len(points), len(priors.points), may_match, measure, 0.0)
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1) / 2
    level = torch.bucketize(half, ranges[:, 1].contiguous()).clamp_(max=priors.num_levels - 1)
    return Pairs(gt, prior, level)


def _search(
    boxes: Tensor,
    num_blocks: int,
    num_priors: int,
    may_match: Callable[[Tensor], Tensor],
    measure: Callable[[Tensor, Tensor], Tensor],
    above: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth, prior and measure (P,) of all pairs whose measure exceeds `above`, in order."""
    rows = max(1, BUDGET // max(1, num_blocks))
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, max(1, len(boxes)), rows):  # pieces bound the memory; a usual batch is one piece
        gts, blocks = torch.nonzero(may_match(boxes[start : start + rows]), as_tuple=True)
        for gt, block in zip(gts.split(BUDGET // BLOCK), blocks.split(BUDGET // BLOCK), strict=True):
            gt = gt + start
            measured = measure(boxes[gt], block)
            row, column = torch.nonzero(measured > above, as_tuple=True)
            pieces.append((gt[row], block[row] * BLOCK + column, measured[row, column]))
    gt, prior, measured = (
        pieces[0] if len(pieces) == 1 else (torch.cat(part) for part in zip(*pieces, strict=True))
    )
    if num_priors % BLOCK:  # the last block is filled up with copies of the last prior
        real = prior < num_priors
        gt, prior, measured = gt[real], prior[real], measured[real]
    return gt, prior, measured


def _blocks(rows: Tensor) -> Tensor:
    """(A, k) -> (ceil(A / BLOCK), BLOCK, k) float32; the last row is repeated to fill the last block."""
    missing = -len(rows) % BLOCK
    rows = torch.cat([rows, rows[-1:].expand(missing, -1)]) if missing else rows
    return rows.float().reshape(-1, BLOCK, rows.shape[1])


def _starts(keys: Tensor) -> Tensor:
    """(P,) sorted -> (P,) bool: the first of every run of equal keys."""
    return torch.cat([keys.new_ones(min(1, len(keys)), dtype=torch.bool), keys[1:] != keys[:-1]])


def lowest_by(keys: Tensor, loss: Tensor) -> Tensor:
    """Index of the item of lowest loss for every distinct key; of equals the first. (P,), (P,) -> (U,)."""
    order = order_by(keys, loss)
    return order[_starts(keys[order])]


def order_by(keys: Tensor, loss: Tensor) -> Tensor:
    """Indices that sort by key (< 2^31), then by loss (float32, >= 0), then by position. (P,), (P,) -> (P,).

    The bits of floats >= 0 order as the floats do, so that one sort of integers is enough.
    """
    return torch.sort((keys << 32) | loss.abs().view(torch.int32), stable=True).indices
