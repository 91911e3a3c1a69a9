"""Box overlaps against torchvision.ops, in one run.

    python benchmarks/_kernels_boxes.py

All pairs: 50 ground truths (a batch's, ragged) with the 201,600 anchors of an 800 x 1333 RetinaNet, once into a new
matrix and once into a reused one. torchvision makes a dozen matrices of that size in turn; how long the system takes
to provide their memory depends on the allocator, so the ratio without that, with memory kept by the process
(glibc's mmap threshold raised), is printed, too. Given pairs: GIoU loss and its gradient in the predicted boxes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torchvision.ops as tv
from _kernels import Row, compare, show
from detsearch_kernels.boxes import Measure, aligned_iou, pairwise_iou
from torch import Tensor

PRIORS, GROUND_TRUTHS, PAIRS = 201_600, 50, 100_000
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}
DENSE: list[tuple[Measure, Callable[[Tensor, Tensor], Tensor], float]] = [
    ("iou", tv.box_iou, 12),
    ("giou", tv.generalized_box_iou, 30),
]


def boxes(count: int, seed: int) -> Tensor:
    """(count, 4) of 12 to 400 px."""
    random = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.rand(count, 2, generator=random) * 3.5 + 2.5)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([1333.0, 800.0])
    return torch.cat((corner, corner + sides), 1)


def dense(note: str = "") -> Iterator[Row]:
    """All pairs; `note` says how memory is had."""
    gt, priors = boxes(GROUND_TRUTHS, 0), boxes(PRIORS, 1)
    out = torch.empty(GROUND_TRUTHS, PRIORS)
    sizes = f"{GROUND_TRUTHS} x {PRIORS:,}{note}"
    for measure, theirs, gate in DENSE:
        torch.testing.assert_close(pairwise_iou(gt, priors, measure), theirs(gt, priors), rtol=0, atol=1e-6)
        name = f"torchvision.ops.{theirs.__name__}"
        for what, given in (("new matrix", None), ("reused matrix", out)):
            yield compare(
                f"pairwise {measure}, {what}",
                sizes,
                name,
                lambda theirs=theirs: theirs(gt, priors),  # type: ignore[misc]
                lambda measure=measure, given=given: pairwise_iou(gt, priors, measure, out=given),  # type: ignore[misc]
                gate=gate,
            )


def paired(count: int, gate: float | None) -> Row:
    """GIoU loss, forward and backward."""
    gt = boxes(count, 2)
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(3))
    predicted = (gt + noise * 5).requires_grad_()

    def theirs() -> None:
        predicted.grad = None
        tv.generalized_box_iou_loss(predicted, gt, reduction="sum").backward()

    def ours() -> None:
        predicted.grad = None
        (1 - aligned_iou(predicted, gt, eps=1e-7)).sum().backward()

    name = "torchvision.ops.generalized_box_iou_loss"
    return compare("aligned giou, forward + backward", f"{count:,}", name, theirs, ours, rounds=15, gate=gate)


def rows() -> Iterator[Row]:
    """This operator's part of the table."""
    yield from dense()
    kept = subprocess.run(
        [sys.executable, __file__, "--dense"],
        env=os.environ | KEPT,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in kept.stdout.splitlines():
        operator, sizes, against, *numbers = line.split("\t")
        yield Row(operator, sizes, against, *map(float, numbers))
    yield paired(PAIRS, gate=5)
    yield paired(500, gate=None)


def main() -> None:
    """Print the rows; with --dense those of all pairs alone, for a process that keeps its memory."""
    torch.set_num_threads(1)
    if "--dense" not in sys.argv:
        return show(list(rows()))
    for row in dense(", memory kept"):
        numbers = (row.theirs_ms, row.ours_ms, row.ratio, row.processor)
        print(row.operator, row.sizes, row.against, *numbers, sep="\t")


if __name__ == "__main__":
    main()
