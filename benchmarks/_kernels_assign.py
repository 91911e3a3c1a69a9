"""assign_topk against torchvision's dense IoU and a top-k for each ground truth, in one run.

    python benchmarks/_kernels_assign.py

The alternative is the shape mmdetection and YOLOX use: a ground truth x prior matrix for the candidates, then, one
ground truth after the other, the loss of its candidates and the k lowest. Its candidates are looked for in dense
matrices, IoU for anchors, distances to the sides for points; its losses are torchvision's focal loss on the
candidates' logits and box_iou of their boxes. Both give every ground truth 20 positives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _kernels import Row, compare, peak_bytes, peak_of, show
from detsearch_kernels.assign import Scattered, assign_topk
from torch import Tensor
from torchvision.ops import box_iou, sigmoid_focal_loss

from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Targets

COUNT, ALPHA, MIN_IOU, CLASSES, BATCH = 20, 1.5, 0.1, 80, 2
GRIDS = {"retinanet": Anchors(), "fcos": Points()}
GATES = {("retinanet", 7): 60, ("retinanet", 50): 100, ("retinanet", 200): 200} | {
    ("fcos", 7): 150,
    ("fcos", 50): 250,
    ("fcos", 200): 300,
}
RESOLUTION = 2**16  # bytes; less is lost in pages that the process had already
MEMORY_GATES = {7: 20, 50: 100, 200: 400}


def scene(name: str, count: int, batch: int = BATCH) -> tuple[Dense, Targets]:
    """A batch of 800 x 1333 images with `count` ground truths each, of 12 to 400 px."""
    random = torch.Generator().manual_seed(0)
    sizes = [(-(-800 // 2**level), -(-1344 // 2**level)) for level in range(3, 8)]
    priors = GRIDS[name](sizes, (3, 7))
    boxes, labels = [], []
    for _ in range(batch):
        sides = torch.exp(torch.rand(count, 2, generator=random) * 3.5 + 2.5)
        corner = torch.rand(count, 2, generator=random) * (torch.tensor([1333.0, 800.0]) - sides)
        boxes.append(torch.cat((corner, corner + sides), 1))
        labels.append(torch.randint(CLASSES, (count,), generator=random))
    shape = (batch, len(priors.boxes))
    logits = torch.randn(*shape, CLASSES, generator=random) * 1.5 - 4.6
    span = (priors.boxes[:, 2:] - priors.boxes[:, :2]).repeat(1, 2)
    predicted = priors.boxes + torch.randn(*shape, 4, generator=random) * 0.15 * span
    return Dense((logits,), predicted, torch.zeros(1), priors), Targets.from_lists(boxes, labels)


def compiled(dense: Dense, targets: Targets) -> Callable[[], Tensor]:
    """The operator under test."""
    priors = dense.priors
    sizes = torch.tensor([(count, 1, 1) for count in priors.counts])
    where = priors.tiling or Scattered(priors.boxes, sizes, torch.empty(0, 2))
    others = (targets.boxes, targets.labels, targets.splits, where)
    tables = torch.tensor([[COUNT]]), torch.empty(1, 0)
    return lambda: assign_topk(dense.logits, dense.boxes, *others, *tables, alpha=ALPHA, min_iou=MIN_IOU)


def dense_then_each(dense: Dense, targets: Targets) -> Tensor:
    """The alternative; matched (B, A)."""
    matched = torch.full(dense.logits.shape[:2], -1)
    for image in range(BATCH):
        begin, end = targets.splits[image : image + 2].tolist()
        candidate = candidates(dense, targets.boxes[begin:end])
        lowest = torch.full((dense.logits.shape[1],), torch.inf)
        for g in range(begin, end):
            (prior,) = torch.nonzero(candidate[g - begin], as_tuple=True)
            logits = dense.logits[image, prior]
            target = torch.zeros_like(logits)
            target[:, targets.labels[g]] = 1
            loss = sigmoid_focal_loss(logits, target).sum(1)
            overlap = box_iou(dense.boxes[image, prior], targets.boxes[g : g + 1])[:, 0]
            loss = loss - ALPHA * overlap.clamp(min=1e-7).log()
            best, index = loss.topk(min(COUNT, len(prior)), largest=False)
            wins = best < lowest[prior[index]]
            lowest[prior[index[wins]]] = best[wins]
            matched[image, prior[index[wins]]] = g
    return matched


def candidates(dense: Dense, boxes: Tensor) -> Tensor:
    """(G, A) bool."""
    priors = dense.priors
    if priors.ranges is None:
        return box_iou(boxes, priors.boxes) > MIN_IOU
    sides = torch.cat(
        (priors.points[None] - boxes[:, None, :2], boxes[:, None, 2:] - priors.points[None]), -1
    )
    low, high = priors.ranges[priors.level].unbind(1)
    farthest = sides.amax(-1)
    return (sides.amin(-1) > 0) & (farthest > low) & (farthest <= high)


def clipped(dense: Dense) -> Dense:
    """The same with anchors clipped to the image, which then do not tile it."""
    limits = torch.tensor([1344.0, 800.0, 1344.0, 800.0])
    boxes = torch.minimum(dense.priors.boxes.clamp(min=0), limits)
    return replace(dense, priors=replace(dense.priors, boxes=boxes, tiling=None))


def two_threads(call: Callable[[], object]) -> Callable[[], object]:
    """The same on two threads."""

    def run() -> object:
        torch.set_num_threads(2)
        try:
            return call()
        finally:
            torch.set_num_threads(1)

    return run


def more_rows() -> Iterator[Row]:
    """Beside the rows with gates: both sides on two threads, and anchors clipped to the image."""
    for name, count in (("retinanet", 200), ("fcos", 200)):
        dense, targets = scene(name, count)
        sizes = f"{name} {dense.logits.shape[1]:,} x {BATCH}, {count} boxes, two threads"
        yield compare(
            "assign_topk", sizes, "dense IoU, top-k each", two_threads(lambda d=dense, t=targets: dense_then_each(d, t)),
            two_threads(compiled(dense, targets)), rounds=3,
        )  # fmt: skip
    for count in (7, 50, 200):
        dense, targets = scene("retinanet", count)
        dense = clipped(dense)
        ours = compiled(dense, targets)
        same = (ours() == dense_then_each(dense, targets)).float().mean().item()
        assert same > 0.999, f"the two sides assign differently: {same:.4f}"
        yield compare(
            "assign_topk", f"retinanet, clipped, {count} boxes", "dense IoU, top-k each",
            lambda d=dense, t=targets: dense_then_each(d, t), ours, rounds=3,
        )  # fmt: skip


def rows() -> Iterator[Row]:
    """One row a detector and number of ground truths."""
    for name in GRIDS:
        for count in (7, 50, 200):
            dense, targets = scene(name, count)
            ours = compiled(dense, targets)
            same = (ours() == dense_then_each(dense, targets)).float().mean().item()
            assert same > 0.999, f"the two sides assign differently: {same:.4f}"
            sizes = f"{name} {dense.logits.shape[1]:,} x {BATCH}, {count} boxes"
            yield compare(
                "assign_topk", sizes, "dense IoU, top-k each", lambda d=dense, t=targets: dense_then_each(d, t),
                ours, rounds=3, gate=GATES[name, count],
            )  # fmt: skip


def memory() -> None:
    """Peak memory beside the operands of both sides, each in a process of its own."""
    for name in GRIDS:
        for count in (7, 50, 200):
            theirs, ours = (peak_bytes(Path(__file__), name, str(count), side) for side in ("theirs", "ours"))
            result = 8 * BATCH * len(scene(name, 1)[0].priors.boxes)
            spare = theirs - result
            less = (
                f"{spare / max(ours - result, RESOLUTION):.0f}x less"
                if spare > RESOLUTION
                else "too little to measure"
            )
            print(
                f"peak memory, {name}, {count} boxes: theirs {theirs / 2**20:.1f} MiB, ours {ours / 2**20:.1f} MiB, of "
                f"which the result {result / 2**20:.1f}; beside the result {less} (gate {MEMORY_GATES[count]}x)"
            )


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        dense, targets = scene(sys.argv[1], int(sys.argv[2]))
        ours = compiled(dense, targets)
        print(peak_of(ours if sys.argv[3] == "ours" else lambda: dense_then_each(dense, targets)))
        return
    show([*rows(), *more_rows()])
    memory()


if __name__ == "__main__":
    main()
