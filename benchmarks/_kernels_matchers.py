"""The baselines' assignments against the shapes torchvision, mmdetection and YOLOX give them, in one run.

    python benchmarks/_kernels_matchers.py

The alternatives go image by image and make a ground truth x prior matrix: for max-IoU torchvision's box_iou and its
Matcher; for ATSS mmdetection's matrix of overlaps and of distances; for FCOS distances of every point to the sides of
every box; for SimOTA the overlaps and class costs of every candidate with every box, then YOLOX's loop over boxes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from _kernels import Row, compare, peak_bytes, peak_of, show
from _kernels_assign import scene
from detsearch_kernels import matchers
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import Dense, Priors, Targets

SIZES = [(-(-800 // 2**level), -(-1344 // 2**level)) for level in range(3, 8)]
SQUARES = Anchors(base=8.0, scales=1, ratios=(1.0,))(SIZES, (3, 7))
TOP_K, CANDIDATES, RADIUS = 9, 10, 2.5  # ATSS's, and YOLOX's two
COUNTS = {"max_iou": (7, 50, 200), "atss": (7, 50, 200), "fcos_targets": (7, 50, 200), "simota": (7, 50)}


def each_image(assign: Callable[[int, Tensor], Tensor], targets: Targets) -> Tensor:
    """matched (B, A) of `assign`, which has an image and its boxes and gives rows of them, or below 0."""
    rows = []
    for image, (begin, end) in enumerate(pairwise(targets.splits.tolist())):
        found = assign(image, targets.boxes[begin:end])
        rows.append(torch.where(found >= 0, found + begin, found))
    return torch.stack(rows)


def by_matcher(priors: Priors, boxes: Tensor) -> Tensor:
    """torchvision's RetinaNet."""
    return Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(boxes, priors.boxes))


def by_deviation(priors: Priors, boxes: Tensor) -> Tensor:
    """mmdetection's ATSS: both matrices whole, then the candidates of every level."""
    overlap = box_iou(priors.boxes, boxes)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (priors.points[:, None] - middle[None]).pow(2).sum(-1).sqrt()
    found, start = [], 0
    for count in priors.counts:
        nearest = distance[start : start + count].topk(min(TOP_K, count), dim=0, largest=False).indices
        found.append(nearest + start)
        start += count
    candidate, column = torch.cat(found), torch.arange(len(boxes))
    chosen = overlap[candidate, column]
    sides = torch.cat((priors.points[candidate] - boxes[:, :2], boxes[:, 2:] - priors.points[candidate]), -1)
    positive = (chosen >= chosen.mean(0) + chosen.std(0)) & (sides.amin(-1) > 0.01)
    pair = candidate[positive], column.expand_as(candidate)[positive]
    kept = torch.full_like(overlap, -torch.inf)
    kept[pair] = overlap[pair]
    best, index = kept.max(1)
    return torch.where(best > -torch.inf, index, -1)


def by_distances(priors: Priors, boxes: Tensor) -> Tensor:
    """mmdetection's FCOS: every point against every box."""
    assert priors.ranges is not None
    sides = torch.cat(
        (priors.points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - priors.points[:, None]), -1
    )
    low, high = priors.ranges[priors.level][:, None].unbind(-1)
    farthest = sides.amax(-1)
    span = boxes[:, 2:] - boxes[:, :2]
    size = (span[:, 0] * span[:, 1]).repeat(len(priors.points), 1)
    size[~((sides.amin(-1) > 0) & (farthest > low) & (farthest <= high))] = torch.inf
    smallest, index = size.min(1)
    return torch.where(smallest < torch.inf, index, -1)


def by_cost(dense: Dense, logits: Tensor, predicted: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """YOLOX's get_assignments and dynamic_k_matching of one image, without objectness."""
    points, stride = dense.priors.points, dense.priors.strides[dense.priors.level]
    middle = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    sides = torch.cat((points - boxes[:, None, :2], boxes[:, None, 2:] - points), -1)
    inside = sides.amin(-1) > 0
    near = (points - middle).abs().amax(-1) < RADIUS * stride
    known = (inside | near).any(0)
    overlap = box_iou(boxes, predicted[known])
    target = F.one_hot(labels, logits.shape[1]).float()[:, None].expand(-1, int(known.sum()), -1)
    scores = logits[known].sigmoid()[None].expand(len(boxes), -1, -1)
    cost = F.binary_cross_entropy(scores, target, reduction="none").sum(-1) - 3 * (overlap + 1e-8).log()
    cost = cost + 1e5 * ~(inside & near)[:, known]
    counts = overlap.topk(min(CANDIDATES, overlap.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
    matching = torch.zeros_like(cost, dtype=torch.bool)
    for g, count in enumerate(counts.tolist()):
        matching[g, cost[g].topk(count, largest=False).indices] = 1
    contested = matching.sum(0) > 1
    if contested.any():
        lowest = cost[:, contested].argmin(0)
        matching[:, contested] = 0
        matching[lowest, contested] = 1
    matched = torch.full((len(points),), -1)
    matched[known] = torch.where(matching.any(0), matching.long().argmax(0), -1)
    return matched


def sides_of(name: str, count: int) -> tuple[str, Callable[[], Tensor], Callable[[], Tensor]]:
    """What ours is compared with, theirs and ours, for an 800 x 1333 batch of two."""
    dense, targets = scene("retinanet" if name == "max_iou" else "fcos", count)
    priors = SQUARES if name == "atss" else dense.priors
    boxes, splits, tiling = targets.boxes, targets.splits, priors.tiling
    assert tiling is not None
    if name == "max_iou":
        # the Matcher has -1 for background and -2 between, as we do
        return (
            "dense IoU, Matcher",
            lambda: each_image(lambda _, own: by_matcher(priors, own), targets),
            lambda: matchers.max_iou(boxes, splits, tiling),
        )
    if name == "atss":
        return (
            "dense IoU and distances",
            lambda: each_image(lambda _, own: by_deviation(priors, own), targets),
            lambda: matchers.atss(boxes, splits, tiling, top_k=TOP_K),
        )
    if name == "fcos_targets":
        return (
            "dense distances",
            lambda: each_image(lambda _, own: by_distances(priors, own), targets),
            lambda: matchers.fcos_targets(boxes, splits, tiling),
        )

    def by_yolox() -> Tensor:
        return each_image(
            lambda i, own: by_cost(dense, dense.logits[i], dense.boxes[i], own, labels[i]), targets
        )

    labels = targets.labels.split(splits.diff().tolist())
    return (
        "dense costs, top-k each",
        by_yolox,
        lambda: matchers.simota(dense.logits, dense.boxes, boxes, targets.labels, splits, tiling),
    )


def rows() -> Iterator[Row]:
    """One row an assignment and number of ground truths."""
    for name, counts in COUNTS.items():  # 200 boxes would cost YOLOX's SimOTA several GiB
        for count in counts:
            against, theirs, ours = sides_of(name, count)
            same = (ours() == theirs()).float().mean().item()
            assert same > 0.999, f"the two sides assign differently: {same:.4f}"
            yield compare(name, f"2 x {ours().shape[1]:,}, {count} boxes", against, theirs, ours, rounds=3)


def memory() -> None:
    """Peak memory beside the operands of both sides for 50 boxes an image, each in a process of its own."""
    for name in COUNTS:
        theirs, ours = (peak_bytes(Path(__file__), name, side) / 2**20 for side in ("theirs", "ours"))
        result = 8 * 2 * (201_600 if name == "max_iou" else 22_400) / 2**20
        print(
            f"peak memory, {name}, 50 boxes: theirs {theirs:.1f} MiB, ours {ours:.1f}, the result {result:.1f}"
        )


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        _, theirs, ours = sides_of(sys.argv[1], 50)
        print(peak_of(ours if sys.argv[2] == "ours" else theirs))
        return
    show(list(rows()))
    memory()


if __name__ == "__main__":
    main()
