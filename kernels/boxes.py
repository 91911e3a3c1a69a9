"""IoU, GIoU, DIoU and CIoU of all pairs of boxes, or of given pairs with gradient, each in one pass.

Boxes are xyxy. A negative side counts as 0: such a box has area 0 and overlaps nothing. A box with NaN has NaN
as its value and union. Results and arithmetic are float32, float64 for float64 boxes; float16 and bfloat16 boxes
are converted as they are read.

`eps` is added to every denominator. 0 leaves the measures free of scale (as torchvision.ops.box_iou does),
torchvision's box losses add 1e-7; a denominator of 0 gives 0, never NaN.

A batch is ragged: the ground truths of all images one below the other, (G, 4), and splits (B + 1,) int64, where
image b's are rows splits[b] to splits[b + 1]. Against shared priors splits are not needed, since every row has the
same columns: `per_image` cuts the result into an (G_b, A) view an image. Against priors that differ between images,
such as predicted boxes (B, A, 4), pass them to the call.

Sources: Rezatofighi et al. 2019, Algorithm 1 (GIoU); Zheng et al. 2020, Eq. 6 to 11 (DIoU, CIoU).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import _boxes_reference as reference
from .loader import ready

Measure = Literal["iou", "giou", "diou", "ciou"]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Overlap(NamedTuple):
    """A measure and the areas it was made of, in px^2, all of one shape. enclosing: smallest box around both."""

    value: Tensor
    intersection: Tensor
    union: Tensor
    enclosing: Tensor


def pairwise_iou(
    gt: Tensor,
    priors: Tensor,
    measure: Measure = "iou",
    *,
    splits: Tensor | None = None,
    eps: float = 0.0,
    out: Tensor | None = None,
) -> Tensor:
    """The measure of every pair. gt (G, 4), priors (A, 4) -> (G, A). No gradient: boxes must not require it.

    With splits (B + 1,) int64 the priors are (B, A, 4), and a ground truth meets those of its image. `out`
    (G, A) is written instead of a new tensor: twice as fast where the result is large and soon used up.
    Raises TypeError or ValueError for boxes, splits or `out` that do not fit; splits on a GPU are not read for that.
    """
    index = _index(measure)
    _check_pairwise(gt, priors, splits)
    if out is not None:
        _check_out(out, gt, priors)
    if not ready(gt.device):
        value = reference.pairwise(gt, priors, splits, index, eps)[0]
        return value if out is None else out.copy_(value)
    if out is None:
        return torch.ops.detsearch.box_pairwise(gt, priors, splits, index, eps)
    torch.ops.detsearch.box_pairwise_out(gt, priors, splits, index, eps, out)
    return out


def pairwise_overlap(
    gt: Tensor, priors: Tensor, measure: Measure = "iou", *, splits: Tensor | None = None, eps: float = 0.0
) -> Overlap:
    """`pairwise_iou` together with intersection, union and enclosing area: four (G, A)."""
    index = _index(measure)
    _check_pairwise(gt, priors, splits)
    if ready(gt.device):
        return Overlap(*torch.ops.detsearch.box_pairwise_areas(gt, priors, splits, index, eps))
    return Overlap(*reference.pairwise(gt, priors, splits, index, eps))


def per_image(pairs: Tensor, splits: Tensor) -> tuple[Tensor, ...]:
    """The rows of every image as a view. pairs (G, A), splits (B + 1,) -> B tensors (G_b, A).

    On a GPU the host waits for `splits`.
    """
    return pairs.split(splits.diff().tolist())


def aligned_iou(a: Tensor, b: Tensor, measure: Measure = "giou", *, eps: float = 0.0) -> Tensor:
    """The measure of paired boxes, differentiable once in both. a, b (..., 4) of one shape -> (...).

    Where two coordinates are equal each takes half of the gradient, as PyTorch's maximum does. CIoU's trade-off
    factor counts as a constant, as in the paper. Raises TypeError or ValueError for boxes that do not fit.
    """
    index = _index(measure)
    _check_aligned(a, b)
    if ready(a.device):
        return torch.ops.detsearch.box_aligned(a, b, index, eps)
    return reference.compare(a, b, index, eps)[0]


def aligned_overlap(a: Tensor, b: Tensor, measure: Measure = "iou", *, eps: float = 0.0) -> Overlap:
    """`aligned_iou` together with intersection, union and enclosing area, all differentiable: four (...)."""
    index = _index(measure)
    _check_aligned(a, b)
    if ready(a.device):
        return Overlap(*torch.ops.detsearch.box_aligned_areas(a, b, index, eps))
    return Overlap(*reference.compare(a, b, index, eps))


def register() -> None:
    """Tell torch shapes and gradients of the compiled operators; called once their library is loaded."""
    fake, autograd = torch.library.register_fake, torch.library.register_autograd
    fake("detsearch::box_pairwise", lambda gt, priors, *_: _pairwise_empty(gt, priors))
    fake("detsearch::box_pairwise_out", lambda *_: None)
    fake("detsearch::box_pairwise_areas", lambda gt, priors, *_: _four(_pairwise_empty(gt, priors)))
    fake("detsearch::box_aligned", lambda a, *_: _aligned_empty(a))
    fake("detsearch::box_aligned_areas", lambda a, *_: _four(_aligned_empty(a)))
    fake("detsearch::box_aligned_backward", _backward_empty)
    autograd("detsearch::box_aligned", _backward_of_value, setup_context=_keep)
    autograd("detsearch::box_aligned_areas", _backward, setup_context=_keep)
    for name in ("pairwise", "pairwise_areas", "aligned_backward"):
        autograd(f"detsearch::box_{name}", _no_backward)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b, ctx.measure, ctx.eps = inputs
    ctx.save_for_backward(a, b)
    ctx.set_materialize_grads(
        False
    )  # a result that is not used then arrives as None, and costs no tensor of zeros


def _backward_of_value(ctx: Any, value: Tensor | None) -> tuple[Tensor | None, ...]:
    return _backward(ctx, value, None, None, None)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    need_a, need_b = ctx.needs_input_grad[:2]
    if all(gradient is None for gradient in gradients):
        return None, None, None, None
    grad_a, grad_b = torch.ops.detsearch.box_aligned_backward(
        a, b, *gradients, ctx.measure, ctx.eps, need_a, need_b
    )
    return grad_a if need_a else None, grad_b if need_b else None, None, None


def _no_backward(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("this box operator has no gradient; the aligned measures have a first one")


def _computed(boxes: Tensor) -> torch.dtype:
    return torch.float64 if boxes.dtype == torch.float64 else torch.float32


def _pairwise_empty(gt: Tensor, priors: Tensor) -> Tensor:
    return gt.new_empty((gt.shape[0], priors.shape[-2]), dtype=_computed(gt))


def _aligned_empty(boxes: Tensor) -> Tensor:
    return boxes.new_empty(boxes.shape[:-1], dtype=_computed(boxes))


def _backward_empty(a: Tensor, b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_a, need_b = rest[-2:]
    return a.new_empty(a.shape if need_a else (0,)), b.new_empty(b.shape if need_b else (0,))


def _four(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return like, torch.empty_like(like), torch.empty_like(like), torch.empty_like(like)


def _index(measure: str) -> int:
    if measure not in reference.MEASURES:
        raise ValueError(f"a measure is one of {', '.join(reference.MEASURES)}, got {measure!r}")
    return reference.MEASURES.index(measure)


def _check_boxes(a: Tensor, b: Tensor) -> None:
    if a.dtype not in DTYPES or a.dtype != b.dtype:
        raise TypeError(
            f"boxes must share one of float32, float64, float16, bfloat16, got {a.dtype} and {b.dtype}"
        )
    if a.device != b.device:
        raise ValueError(f"boxes must lie on one device, got {a.device} and {b.device}")


def _check_aligned(a: Tensor, b: Tensor) -> None:
    _check_boxes(a, b)
    if a.shape != b.shape or a.dim() == 0 or a.shape[-1] != 4:
        raise ValueError(
            f"paired boxes must have one shape (..., 4), got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def _check_pairwise(gt: Tensor, priors: Tensor, splits: Tensor | None) -> None:
    _check_boxes(gt, priors)
    if torch.is_grad_enabled() and (gt.requires_grad or priors.requires_grad):
        raise ValueError(
            "a pairwise measure has no gradient; detach the boxes, or pair them and use aligned_iou"
        )
    if gt.dim() != 2 or gt.shape[1] != 4:
        raise ValueError(f"ground truths must be (G, 4), got {tuple(gt.shape)}")
    if splits is None:
        if priors.dim() != 2 or priors.shape[1] != 4:
            raise ValueError(f"priors without splits must be (A, 4), got {tuple(priors.shape)}")
        return
    if priors.dim() != 3 or priors.shape[2] != 4:
        raise ValueError(f"priors with splits must be (B, A, 4), got {tuple(priors.shape)}")
    if splits.dtype != torch.int64 or splits.device != gt.device:
        raise TypeError(f"splits must be int64 on {gt.device}, got {splits.dtype} on {splits.device}")
    if splits.shape != (priors.shape[0] + 1,):
        raise ValueError(
            f"{priors.shape[0]} images need {priors.shape[0] + 1} splits, got {tuple(splits.shape)}"
        )
    if splits.device.type == "cpu":  # a look at a GPU's splits would wait for it
        ends = splits.tolist()
        if ends[0] != 0 or ends[-1] != gt.shape[0] or ends != sorted(ends):
            raise ValueError(f"splits must rise from 0 to the {gt.shape[0]} ground truths, got {ends}")


def _check_out(out: Tensor, gt: Tensor, priors: Tensor) -> None:
    wanted, dtype = (gt.shape[0], priors.shape[-2]), _computed(gt)
    if out.shape != wanted or out.dtype != dtype or out.device != gt.device or not out.is_contiguous():
        raise ValueError(
            f"out must be a contiguous {wanted} {dtype} on {gt.device}, got {tuple(out.shape)} {out.dtype} on "
            f"{out.device}{'' if out.is_contiguous() else ', not contiguous'}"
        )
