"""Non-maximum suppression class by class that stops once it has as many boxes as are wanted."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .loader import ready


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, *, most_iou: float, limit: int) -> Tensor:
    """Indices (K,) int64 of the boxes that are kept, best first, K <= limit; of equal scores the first.

    A box goes when its IoU with a better kept one of its class exceeds `most_iou`. boxes (N, 4) xyxy px, scores (N,),
    both float32, labels (N,) int64. On a GPU, and where it is not compiled, torchvision's `batched_nms` does the work and
    the result is cut after `limit`.

    Raises TypeError or ValueError for tensors that do not fit, RuntimeError for a NaN score (compiled).
    """
    if boxes.dtype != torch.float32 or scores.dtype != torch.float32 or labels.dtype != torch.int64:
        raise TypeError(
            f"boxes and scores must be float32, labels int64, got {boxes.dtype}, {scores.dtype} and {labels.dtype}"
        )
    count = len(scores)
    if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
        raise ValueError(
            f"boxes must be (N, 4), scores and labels (N,), got {tuple(boxes.shape)}, {tuple(scores.shape)} and "
            f"{tuple(labels.shape)}"
        )
    if not boxes.device == scores.device == labels.device:
        raise ValueError(
            f"boxes, scores and labels must lie on one device, got {boxes.device}, {scores.device} and "
            f"{labels.device}"
        )
    if limit < 0:
        raise ValueError(f"limit must be at least 0, got {limit}")
    if boxes.device.type != "cpu" or not ready(boxes.device):
        return batched_nms(boxes, scores, labels, most_iou)[:limit]
    kept: Tensor = torch.ops.detsearch.nms(
        boxes.contiguous(), scores.contiguous(), labels.contiguous(), most_iou, limit
    )
    return kept


def register() -> None:
    """Tell torch the shape of the result; called once the library is loaded."""

    @torch.library.register_fake("detsearch::nms")
    def _(boxes: Tensor, scores: Tensor, labels: Tensor, most_iou: float, limit: int) -> Tensor:
        # how many boxes are kept depends on their values, which tracing does not know
        return labels.new_empty(torch.library.get_ctx().new_dynamic_size())
