"""The baselines' assignments in one call for a whole batch: max-IoU, ATSS, FCOS and SimOTA.

Like `assign_topk` they look at the cells near each ground truth and make no ground truth x prior matrix. The same in
PyTorch is in detsearch_cli/slots/assigners (max_iou.py, atss.py, fcos.py, simota.py), which says what each does and how
ties are broken. The first three choose exactly what the PyTorch assigner chooses; SimOTA may differ where two costs
differ by rounding.

All take truth (G, 4) xyxy px float32, splits (B + 1,) int64 (the ground truths lie image after image) and a Tiling. All
give matched (B, A) int64: rows of `truth`, -1 for background, -2 for priors to ignore. Operands are on the CPU or on a
GPU, which chooses the same priors; a tiling is on the CPU in both cases. A ground truth that is not finite gets nothing.
Each raises TypeError or ValueError for operands that do not fit, and RuntimeError where it is not compiled. On a GPU
nothing waits for the device, so splits and labels are not checked: a ground truth whose label is no class gets nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .assign import Tiling
from .loader import ready


def max_iou(
    truth: Tensor,
    splits: Tensor,
    tiling: Tiling,
    *,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    low_quality: bool = True,
) -> Tensor:
    """Priors of IoU from positive_iou on are positive, below negative_iou background, between ignored (RetinaNet, RPN).

    low_quality: the priors of a ground truth's highest IoU are positive too. Each goes to the ground truth that it
    overlaps most.
    Source: Lin et al. 2017 (focal loss), section 4; maskrcnn-benchmark's Matcher.
    """
    if not 0 <= negative_iou <= positive_iou <= 1:
        raise ValueError(
            f"IoUs must be 0 <= negative <= positive <= 1, got negative {negative_iou}, positive {positive_iou}"
        )
    operands = _operands("max_iou", truth, splits, tiling)
    matched: Tensor = torch.ops.detsearch.max_iou(*operands, positive_iou, negative_iou, low_quality)
    return matched


def atss(truth: Tensor, splits: Tensor, tiling: Tiling, *, top_k: int = 9) -> Tensor:
    """Positives are chosen among the priors of the top_k nearest cells of every level: those whose IoU reaches the mean
    plus the standard deviation of all these priors' IoUs.

    Source: Zhang et al. 2020 (ATSS), Algorithm 1.
    """
    _positive("top_k", top_k)
    operands = _operands("atss", truth, splits, tiling)
    matched: Tensor = torch.ops.detsearch.atss(*operands, top_k)
    return matched


def fcos_targets(truth: Tensor, splits: Tensor, tiling: Tiling, *, radius: float | None = None) -> Tensor:
    """Points inside a box on the level whose range fits, within `radius` strides of its middle; the smallest box wins.

    radius None: the whole box. The tiling must have ranges. Source: Tian et al. 2019 (FCOS), section 3.
    """
    if len(tiling.ranges) == 0:
        raise ValueError("FCOS needs points with ranges of distances, the tiling has none")
    _positive("radius", math.inf if radius is None else radius)
    operands = _operands("fcos_targets", truth, splits, tiling)
    matched: Tensor = torch.ops.detsearch.fcos_targets(*operands, math.inf if radius is None else radius)
    return matched


def simota(
    logits: Tensor | Sequence[Tensor],
    boxes: Tensor,
    truth: Tensor,
    labels: Tensor,
    splits: Tensor,
    tiling: Tiling,
    *,
    top_k: int = 10,
    radius: float = 2.5,
) -> Tensor:
    """Every ground truth gets the priors of lowest cost; the sum of its top_k highest IoUs says how many.

    Priors inside the box and near its middle come first.

    logits: (B, A, C), or what the head wrote, (B, S x C, H, W) a level, with any strides. boxes (B, A, 4): predicted,
    xyxy px. labels (G,) int64. All float32 but labels. radius: how near the middle is, in strides.
    Source: Ge et al. 2021 (YOLOX), section 2.3.
    """
    _positive("top_k", top_k)
    _positive("radius", radius)
    *shared, priors = _operands("simota", truth, splits, tiling)
    levels = [logits] if isinstance(logits, Tensor) else list(logits)
    shape = (len(splits) - 1, priors, 4)
    if boxes.shape != shape:
        raise ValueError(f"boxes must be {shape}, got {tuple(boxes.shape)}")
    for name, tensor in (("boxes", boxes), *(("logits", x) for x in levels)):
        _expect(name, tensor, torch.float32, truth.device)
    classes = _num_classes(levels, tiling, shape[0])
    _expect("labels", labels, torch.int64, truth.device)
    if labels.shape != truth.shape[:1]:
        raise ValueError(f"{len(truth)} ground truths need as many labels, got {tuple(labels.shape)}")
    on_cpu = truth.device.type == "cpu"  # a look at a GPU's labels would wait for it
    if on_cpu and len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        wrong = [x for x in labels.tolist() if not 0 <= x < classes]
        raise ValueError(f"labels must be below the {classes} classes, got {wrong[0]}")
    matched: Tensor = torch.ops.detsearch.simota(
        levels, boxes.contiguous(), shared[0], labels.contiguous(), *shared[1:], classes, top_k, radius
    )
    return matched


def register() -> None:
    """Tell torch the shapes of results; called once the library is loaded."""

    def without_predictions(truth: Tensor, splits: Tensor, *rest: object) -> Tensor:
        priors = rest[4]  # after the tiling's sizes, cell, strides and ranges
        assert isinstance(priors, int | torch.SymInt)
        return splits.new_empty((splits.shape[0] - 1, priors))

    for name in ("max_iou", "atss", "fcos_targets"):
        torch.library.register_fake(f"detsearch::{name}", without_predictions)

    @torch.library.register_fake("detsearch::simota")
    def _(logits: Sequence[Tensor], boxes: Tensor, truth: Tensor, labels: Tensor, *_: object) -> Tensor:
        return labels.new_empty(boxes.shape[:2])


def _operands(name: str, truth: Tensor, splits: Tensor, tiling: Tiling) -> tuple[object, ...]:
    """What every operator begins with, checked: truth, splits, the tiling's tensors, its number of priors.

    Call it before torch.ops.detsearch names the operator: it loads the library that declares it.
    """
    if not ready(truth.device):
        raise RuntimeError(
            f"{name} is not compiled for {truth.device.type} here; use detsearch_cli's assigner"
        )
    _expect("truth", truth, torch.float32, truth.device)
    _expect("splits", splits, torch.int64, truth.device)
    if truth.dim() != 2 or truth.shape[1] != 4:
        raise ValueError(f"truth must be (G, 4), got {tuple(truth.shape)}")
    if splits.dim() != 1 or len(splits) == 0:
        raise ValueError(f"splits must be (B + 1,), got {tuple(splits.shape)}")
    on_cpu = truth.device.type == "cpu"
    starts = splits.tolist() if on_cpu else []
    if on_cpu and (starts[0] != 0 or starts[-1] != len(truth) or starts != sorted(starts)):
        raise ValueError(f"splits must ascend from 0 to the {len(truth)} ground truths, got {starts}")
    # learned anchors are already on the GPU, and copying them back would wait for it; all else of a tiling the CPU reads
    cell = tiling.cell.detach().cpu() if on_cpu else tiling.cell.detach()
    tensors = (tiling.sizes, cell.contiguous(), tiling.strides, tiling.ranges)
    return truth.contiguous(), splits.contiguous(), *tensors, tiling.num_priors


def _expect(name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} as truth is, got {tensor.device}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def _num_classes(levels: list[Tensor], tiling: Tiling, images: int) -> int:
    priors_per_cell, sizes = tiling.cell.shape[1], tiling.sizes.tolist()
    if levels and levels[0].dim() == 3:
        if len(levels) > 1 or levels[0].shape[:2] != (images, tiling.num_priors):
            raise ValueError(
                f"logits must be ({images}, {tiling.num_priors}, C), got {tuple(levels[0].shape)}"
            )
        return levels[0].shape[2]
    channels = levels[0].shape[1] if levels and levels[0].dim() == 4 else 0
    wanted = [(images, channels, height, width) for height, width in sizes]
    given = [tuple(level.shape) for level in levels]
    # every cell has the scores of its priors one after the other, so channels must divide
    if channels % priors_per_cell or channels == 0 or given != wanted:
        raise ValueError(
            f"logits must be (B, {priors_per_cell} x C, H, W) for {images} images and cells {sizes}, got {given}"
        )
    return channels // priors_per_cell
