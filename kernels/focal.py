"""Focal loss of every logit of a batch in one pass over them, and one more for the gradient.

Source: Lin et al. 2017 (focal loss), Eq. 5, summed over classes as in section 4. The logits stay where the head wrote
them, and neither one-hot targets nor any other tensor of their size is made but the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._levels import check_levels, packed, working
from .loader import ready

BACKGROUND, IGNORED = -1, -2


def focal_sum(
    logits: Sequence[Tensor], matched: Tensor, labels: Tensor, *, alpha: float, gamma: float
) -> Tensor:
    """Focal loss summed over all priors that are not ignored and all classes; scalar, differentiable by logits.

    logits: views of what the head wrote, (B, H, W, S, C) a level with S priors a cell, or one (B, A, C). matched
    (B, A) int64: row of `labels` for a positive, -1 for background, -2 for ignored, priors in the order of logits.
    labels (G,) int64: classes in [0, C). alpha in [0, 1] weighs positives, 1 - alpha negatives; gamma >= 0.
    Half precision is computed in float32, and the result is float32; else it has the logits' dtype.

    Raises TypeError or ValueError for tensors that do not fit, RuntimeError for rows and labels out of range; on a
    GPU, where looking would stall it, these make the loss NaN (compiled) or stop the device (PyTorch).
    """
    _check(logits, matched, labels, alpha, gamma)
    # float32 for half precision: p^gamma underflows float16
    wide = [working(level) for level in logits]
    if not ready(matched.device):
        return reference(wide, matched, labels, alpha, gamma)
    total: Tensor = torch.ops.detsearch.focal_sum(
        [packed(level) for level in wide], matched.contiguous(), labels.contiguous(), alpha, gamma
    )
    return total


def reference(
    logits: Sequence[Tensor], matched: Tensor, labels: Tensor, alpha: float, gamma: float
) -> Tensor:
    """The same in PyTorch: every logit counts as a negative first, then the classes of positives are corrected."""
    total, start = logits[0].new_zeros(()), 0
    for level in logits:
        rows = level.flatten(1, -2)
        mine = matched[:, start : start + rows.shape[1]]
        start += rows.shape[1]
        image, prior = (mine >= 0).nonzero(as_tuple=True)
        own = rows[image, prior, labels[mine[image, prior]]]
        correction = elementwise(own, True, alpha, gamma) - elementwise(own, False, alpha, gamma)
        # summed over classes before priors are selected: a mask of all logits would be as large as they are
        negative = elementwise(rows, False, alpha, gamma).sum(-1)
        total = total + negative[mine != IGNORED].sum() + correction.sum()
    return total


def elementwise(logits: Tensor, positive: bool, alpha: float, gamma: float) -> Tensor:
    """Focal loss of every logit as if its target were 1 (positive) or 0. Same shape as logits.

    softplus keeps log(sigmoid) finite at any logit.
    """
    if positive:
        return alpha * torch.sigmoid(-logits) ** gamma * F.softplus(-logits)
    return (1 - alpha) * torch.sigmoid(logits) ** gamma * F.softplus(logits)


def register() -> None:
    """Tell torch shapes and gradient of the compiled operators; called once their library is loaded."""
    torch.library.register_fake("detsearch::focal_sum", lambda logits, *_: logits[0].new_empty(()))
    torch.library.register_fake(
        "detsearch::focal_gradient", lambda _, logits, *others: [torch.empty_like(level) for level in logits]
    )
    torch.library.register_autograd("detsearch::focal_sum", _backward, setup_context=_keep)
    torch.library.register_autograd("detsearch::focal_gradient", _no_second_gradient)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, matched, labels, ctx.alpha, ctx.gamma = inputs
    ctx.save_for_backward(*logits, matched, labels)


def _backward(ctx: Any, factor: Tensor) -> tuple[Any, ...]:
    *logits, matched, labels = ctx.saved_tensors
    gradients = torch.ops.detsearch.focal_gradient(factor, logits, matched, labels, ctx.alpha, ctx.gamma)
    return gradients, None, None, None, None


def _no_second_gradient(ctx: Any, *gradients: Tensor) -> None:
    raise NotImplementedError("focal_sum has a first gradient only")


def _check(logits: Sequence[Tensor], matched: Tensor, labels: Tensor, alpha: float, gamma: float) -> None:
    priors = check_levels("logits", logits)
    images = logits[0].shape[0]
    if matched.shape != (images, priors):
        raise ValueError(f"matched must be {(images, priors)}, got {tuple(matched.shape)}")
    if labels.dim() != 1:
        raise ValueError(f"labels must be (G,), got {tuple(labels.shape)}")
    for name, tensor in (("matched", matched), ("labels", labels)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
    devices = {tensor.device for tensor in (*logits, matched, labels)}
    if len(devices) > 1:
        raise ValueError(
            f"logits, matched and labels must lie on one device, got {', '.join(map(str, devices))}"
        )
    if not (0 <= alpha <= 1 and gamma >= 0):
        raise ValueError(f"alpha must lie in [0, 1] and gamma be at least 0, got {alpha} and {gamma}")
