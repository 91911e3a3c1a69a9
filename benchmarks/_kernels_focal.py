"""The focal loss and non-maximum suppression against what torchvision's RetinaNet does, in one run.

    python benchmarks/_kernels_focal.py

Focal loss: forward and backward, to a gradient of what the head wrote. The alternative permutes and joins the levels,
makes one-hot targets and calls sigmoid_focal_loss. Suppression: `batched_nms`, cut after the 100 that are wanted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _kernels import Row, compare, show
from detsearch_kernels.focal import focal_sum
from detsearch_kernels.nms import nms
from torch import Tensor
from torchvision.ops import batched_nms, sigmoid_focal_loss

CLASSES, BATCH, TRUTHS = 80, 2, 50
PRIORS_A_CELL = {"retinanet": 9, "fcos": 1}


def heads(shapes: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """What a head writes for 800 x 1333 px, matched with 1 in 1,000 positive and 1 in 50 ignored, labels."""
    random = torch.Generator().manual_seed(0)
    sizes = [(-(-800 // 2**level), -(-1344 // 2**level)) for level in range(3, 8)]
    maps = [
        (torch.randn(BATCH, shapes * CLASSES, *size, generator=random) * 1.5 - 4.6)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for size in sizes
    ]
    chance = torch.rand(BATCH, shapes * sum(h * w for h, w in sizes), generator=random)
    rows = torch.randint(TRUTHS, chance.shape, generator=random)
    matched = torch.where(chance < 0.001, rows, torch.where(chance > 0.98, -2, -1))
    return maps, matched, torch.randint(CLASSES, (TRUTHS,), generator=random)


def ours(maps: list[Tensor], matched: Tensor, labels: Tensor, shapes: int) -> tuple[Tensor, ...]:
    """The operator under test; gradients of the maps."""
    rows = [level.permute(0, 2, 3, 1).unflatten(-1, (shapes, CLASSES)) for level in maps]
    return torch.autograd.grad(focal_sum(rows, matched, labels, alpha=0.25, gamma=2), maps)


def one_hot(maps: list[Tensor], matched: Tensor, labels: Tensor, shapes: int) -> tuple[Tensor, ...]:
    """The alternative."""
    logits = torch.cat([level.permute(0, 2, 3, 1).reshape(BATCH, -1, CLASSES) for level in maps], 1)
    total = logits.new_zeros(())
    for image in range(BATCH):
        target = torch.zeros_like(logits[image])
        positive = matched[image] >= 0
        target[positive, labels[matched[image, positive]]] = 1
        valid = matched[image] != -2
        total = total + sigmoid_focal_loss(logits[image, valid], target[valid], reduction="sum")
    return torch.autograd.grad(total, maps)


def detections(count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of one image."""
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([1200.0, 700.0])
    boxes = torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=random) * 200), 1)
    return boxes, torch.rand(count, generator=random), torch.randint(classes, (count,), generator=random)


def rows() -> Iterator[Row]:
    """One row a detector, then one a number of classes."""
    for name, shapes in PRIORS_A_CELL.items():
        given = heads(shapes)
        for a, b in zip(ours(*given, shapes), one_hot(*given, shapes), strict=True):
            torch.testing.assert_close(a, b)
        sizes = f"{name} {given[1].shape[1]:,} x {BATCH} x {CLASSES}"
        yield compare(
            "focal_sum", sizes, "sigmoid_focal_loss", lambda g=given, s=shapes: one_hot(*g, s),
            lambda g=given, s=shapes: ours(*g, s), rounds=3,
        )  # fmt: skip
    for classes in (1, 20, 80):
        found = detections(3400, classes)
        theirs = batched_nms(*found, 0.5)[:100]
        assert torch.equal(nms(*found, most_iou=0.5, limit=100), theirs)
        yield compare(
            "nms", f"3,400 boxes, {classes} classes, best 100", "batched_nms",
            lambda f=found: batched_nms(*f, 0.5)[:100], lambda f=found: nms(*f, most_iou=0.5, limit=100),
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    show(list(rows()))
