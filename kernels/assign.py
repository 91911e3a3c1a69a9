"""HPS-Det's Algorithm 2 in one call for a whole batch: which priors are positive, by lowest loss.

Priors tile the image: each cell of a level holds the same boxes. So the candidates of a ground truth are found by
looking at the cells near it, and neither a ground truth x prior matrix nor a permuted copy of the logits is made.
Memory beside the result is some 16 bytes a candidate of one ground truth.

Priors that repeat in no pattern are searched in blocks of neighbours instead, on the CPU only.

The reference in PyTorch is detsearch_cli/slots/assigners/dynamic.py, which also says what the paper leaves open. Both
choose alike but for losses that differ by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .loader import ready


@dataclass(frozen=True)
class Tiling:
    """Where priors lie, level after level, row-major, the priors of a cell together; L levels, S priors a cell.

    sizes (L, 2) int64: cells down and across. strides (L,) float32 px: a cell's centre is (column + .5, row + .5)
    strides. cell (L, S, 4) float32 px: xyxy of a cell's priors relative to its centre. ranges (L, 2) float32 px:
    (low, high] of the largest distance to a side (points, S = 1), or (0, 2) for anchors. All on the CPU, except that
    `cell` may be on the device of the predictions: training changes it where anchors are learned.
    """

    sizes: Tensor
    strides: Tensor
    cell: Tensor
    ranges: Tensor

    @property
    def num_priors(self) -> int:
        """Priors of all levels."""
        return sum(height * width * priors_per_cell for height, width, priors_per_cell in self.cells())

    def cells(self) -> list[tuple[int, int, int]]:
        """Cells down and across, and priors of a cell, of every level."""
        return [(height, width, self.cell.shape[1]) for height, width in self.sizes.tolist()]


@dataclass(frozen=True)
class Scattered:
    """Priors that repeat in no pattern, such as anchors clipped to the image; L levels, one after the other.

    priors: boxes (A, 4) float32 xyxy px, or points (A, 2) where ranges has rows. sizes (L, 3) int64: cells down and
    across, and priors of a cell, as the head's class scores lie; (priors of the level, 1, 1) where they are (B, A, C).
    ranges: as of a Tiling. All on the CPU.
    """

    priors: Tensor
    sizes: Tensor
    ranges: Tensor

    @property
    def num_priors(self) -> int:
        """Priors of all levels."""
        return sum(height * width * priors_per_cell for height, width, priors_per_cell in self.cells())

    def cells(self) -> list[tuple[int, int, int]]:
        """Cells down and across, and priors of a cell, of every level."""
        return [(height, width, priors_per_cell) for height, width, priors_per_cell in self.sizes.tolist()]


def assign_topk(
    logits: Tensor | Sequence[Tensor],
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    splits: Tensor,
    tiling: Tiling | Scattered,
    counts: Tensor,
    edges: Tensor,
    *,
    alpha: float,
    min_iou: float,
) -> Tensor:
    """Every ground truth gets its candidates of lowest focal + alpha x IoU loss, `counts` of them.

    Returns matched (B, A) int64.

    logits: (B, A, C), or what the head wrote, (B, S x C, H, W) a level, with any strides. boxes (B, A, 4): predicted,
    xyxy px. truth (G, 4), labels (G,), splits (B + 1,): the ground truths, image after image. counts (R, K) int64 and
    edges (R, K - 1) float32, ascending, padded with infinity: positives by row (level, or one row for all) and bin
    of height / width. matched holds rows of `truth`, -1 for background. float32, on the CPU or, but for the tiling,
    counts and edges, on a GPU, which chooses the same priors.

    Ties go to the lower prior; a prior that several chose goes to the lowest loss, then the lower row; a ground truth
    with a candidate keeps a positive wherever that is possible. Logits that are not numbers give some assignment.
    On a GPU nothing waits for the device, so a label that is no class is not refused there: its row gets nothing.
    Raises ValueError for shapes that contradict each other, RuntimeError where it is not compiled.
    Source: Liu et al., HPS-Det, Algorithm 2.
    """
    if not ready(boxes.device):
        raise RuntimeError(
            f"assign_topk is not compiled for {boxes.device.type} here; use detsearch_cli's Dynamic assigner"
        )
    levels = [logits] if isinstance(logits, Tensor) else list(logits)
    classes = _num_classes(levels, boxes, tiling)
    _check(levels, boxes, truth, labels, splits, tiling, counts, edges)
    truths = (boxes.contiguous(), truth.contiguous(), labels.contiguous(), splits.contiguous())
    tables = (counts.contiguous(), edges.contiguous(), classes, alpha, min_iou)
    sizes, ranges = tiling.sizes.contiguous(), tiling.ranges.contiguous()
    matched: Tensor
    if isinstance(tiling, Scattered):
        priors = tiling.priors.contiguous()
        matched = torch.ops.detsearch.assign_topk_scattered(levels, *truths, sizes, priors, ranges, *tables)
        return matched
    cell, strides = tiling.cell.detach().contiguous(), tiling.strides.contiguous()
    if boxes.device.type == "cpu":
        cell = cell.cpu()  # learned anchors; a few numbers
    matched = torch.ops.detsearch.assign_topk(levels, *truths, sizes, cell, strides, ranges, *tables)
    return matched


def register() -> None:
    """Tell torch the shape of the result; called once the library is loaded."""

    def shape(logits: Sequence[Tensor], boxes: Tensor, truth: Tensor, labels: Tensor, *_: object) -> Tensor:
        return labels.new_empty(boxes.shape[:2])

    for name in ("assign_topk", "assign_topk_scattered"):
        torch.library.register_fake(f"detsearch::{name}", shape)


def _num_classes(levels: list[Tensor], boxes: Tensor, tiling: Tiling | Scattered) -> int:
    if levels[0].dim() == 3:
        if levels[0].shape[:2] != boxes.shape[:2]:
            raise ValueError(
                f"logits {tuple(levels[0].shape)} and boxes {tuple(boxes.shape)} differ in images or priors"
            )
        return levels[0].shape[2]
    cells = tiling.cells()
    if len(levels) != len(cells):
        raise ValueError(
            f"logits must be one (B, A, C) or one of each of {len(cells)} levels, got {len(levels)}"
        )
    # from the first level; the loop below refuses a level that contradicts it, and a channel too many
    classes = levels[0].shape[1] // cells[0][2] if levels[0].dim() == 4 else 0
    for number, (level, (height, width, priors_per_cell)) in enumerate(zip(levels, cells, strict=True)):
        if level.dim() != 4 or level.shape != (len(boxes), priors_per_cell * classes, height, width):
            raise ValueError(
                f"logits of level {number} must be ({len(boxes)}, {priors_per_cell} x C, {height}, {width}) with the "
                f"same C on all levels, got {tuple(level.shape)}"
            )
    return classes


def _check(
    levels: list[Tensor],
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    splits: Tensor,
    tiling: Tiling | Scattered,
    counts: Tensor,
    edges: Tensor,
) -> None:
    priors = tiling.num_priors
    if boxes.dim() != 3 or boxes.shape[2] != 4 or boxes.shape[1] != priors:
        raise ValueError(f"boxes must be (B, {priors}, 4), got {tuple(boxes.shape)}")
    if boxes.shape[0] != len(splits) - 1 or truth.shape != (len(labels), 4):
        raise ValueError(
            f"{boxes.shape[0]} images need {boxes.shape[0] + 1} splits and a label for every box of truth, got "
            f"{len(splits)} splits, truth {tuple(truth.shape)}, {len(labels)} labels"
        )
    rows, bins = counts.shape
    if rows not in (1, len(tiling.sizes)) or edges.shape != (rows, bins - 1):
        raise ValueError(
            f"counts must have one row or {len(tiling.sizes)}, and edges one column less; got "
            f"{tuple(counts.shape)} and {tuple(edges.shape)}"
        )
    # checked here: the operators read raw pointers, and a wrong dtype or device would be memory of somebody else
    here, cpu, number, whole = boxes.device, torch.device("cpu"), torch.float32, torch.int64
    for name, tensor, dtype, device in (
        ("boxes", boxes, number, here),
        ("truth", truth, number, here),
        ("labels", labels, whole, here),
        ("splits", splits, whole, here),
        ("counts", counts, whole, cpu),
        ("edges", edges, number, cpu),
        *(("logits", x, number, here) for x in levels),
        *_operands_of(tiling, here, cpu),
    ):
        if tensor.dtype != dtype or tensor.device != device:
            expected = "the CPU" if device.type == "cpu" else device
            raise ValueError(
                f"{name} must be {str(dtype).removeprefix('torch.')} on {expected}, got {tensor.dtype} on {tensor.device}"
            )


def _operands_of(
    tiling: Tiling | Scattered, here: torch.device, cpu: torch.device
) -> list[tuple[str, Tensor, torch.dtype, torch.device]]:
    """Name, tensor, and the dtype and device it must have. Raises ValueError where shapes do not fit."""
    number, whole, count = torch.float32, torch.int64, len(tiling.sizes)
    if tiling.ranges.shape not in ((0, 2), (count, 2)):
        raise ValueError(f"ranges must be (0, 2) or ({count}, 2), got {tuple(tiling.ranges.shape)}")
    shared = [("sizes", tiling.sizes, whole, cpu), ("ranges", tiling.ranges, number, cpu)]
    if isinstance(tiling, Tiling):
        if tiling.cell.shape != (count, tiling.cell.shape[1], 4) or tiling.strides.shape != (count,):
            raise ValueError(
                f"cell must be ({count}, S, 4) and strides ({count},), got {tuple(tiling.cell.shape)} and "
                f"{tuple(tiling.strides.shape)}"
            )
        device = tiling.cell.device  # any: learned anchors are copied where they are needed
        return [*shared, ("strides", tiling.strides, number, cpu), ("cell", tiling.cell, number, device)]
    columns = 2 if len(tiling.ranges) else 4
    if tiling.priors.shape != (tiling.num_priors, columns):
        raise ValueError(f"priors must be ({tiling.num_priors}, {columns}), got {tuple(tiling.priors.shape)}")
    if here != cpu:
        raise ValueError(f"priors that do not tile are assigned on the CPU only, predictions are on {here}")
    return [*shared, ("priors", tiling.priors, number, cpu)]
