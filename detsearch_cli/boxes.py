"""Box arithmetic on xyxy absolute pixels: overlap, encoding, decoding, clipping.

Every function is safe on degenerate boxes (zero or negative width): they have area 0 and overlap nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Scale of encoded (dx, dy, dw, dh). Source: maskrcnn-benchmark, RetinaNet's and ATSS's BoxCoder."""
MAX_LOG_SIZE = math.log(1000 / 16)
"""exp of more than this would overflow half precision. Source: maskrcnn-benchmark, BBOX_XFORM_CLIP."""
MAX_LOG_DISTANCE = 10.0
"""Distances beyond e^10 = 22,026 px are none a detector needs; keeps exp and its gradient finite."""


def area(boxes: Tensor) -> Tensor:
    """Area in px^2. boxes (..., 4) -> (...)."""
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height  # prod(-1) would be a reduction, which is slower on so short an axis


def centers(boxes: Tensor) -> Tensor:
    """Centre points xy. boxes (..., 4) -> (..., 2)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def center_size(boxes: Tensor) -> Tensor:
    """Centre xy, width and height. boxes (..., 4) -> (..., 4)."""
    return torch.cat((centers(boxes), boxes[..., 2:] - boxes[..., :2]), -1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes that broadcast. a, b (..., 4) -> (...) in [0, 1]; 0 where both are empty.

    Works on single coordinates, not corner pairs: half the memory traffic on a (G, 1) x (1, A) broadcast.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    shared = width * height
    union = area(a) + area(b) - shared
    # the least positive float, not an epsilon: no real union is changed by it, and two empty boxes give 0
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Offsets that move anchors onto boxes, times DELTA_WEIGHTS. anchors, boxes (N, 4) -> (N, 4) dx dy dw dh.

    Sizes count as at least 1 px, so that a degenerate box cannot give -inf. Anchors that learn get their
    gradient through dw and dh alone: centres are fixed, and so is the size that scales a shift.
    Source: Zhong et al. 2020 (anchor box optimization), Eq. 8 and 9.
    """
    anchor_size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1)
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)
    shift = (centers(boxes) - centers(anchors).detach()) / anchor_size.detach()
    return torch.cat((shift, (size / anchor_size).log()), -1) * boxes.new_tensor(DELTA_WEIGHTS)


def decode_deltas(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Inverse of `encode_deltas`, in the gradient too. anchors (A, 4), deltas (..., A, 4) -> (..., A, 4) xyxy px."""
    deltas = deltas / deltas.new_tensor(DELTA_WEIGHTS)
    anchor_size = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1)
    # detached as in encode_deltas: anchors learn their size from dw and dh alone
    center = centers(anchors).detach() + deltas[..., :2] * anchor_size.detach()
    half = deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * anchor_size / 2
    return torch.cat((center - half, center + half), -1)


def encode_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances to the sides, negative outside. points (..., 2), boxes (..., 4) -> (..., 4) l t r b px."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Inverse of `encode_distances`. points (A, 2), distances (..., A, 4) -> (..., A, 4) xyxy px."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """How central points lie: 1 in the middle, 0 on the border and outside. (N, 2), (N, 4) -> (N,).

    Source: Tian et al. 2019 (FCOS), Eq. 3.
    """
    left, top, right, bottom = encode_distances(points, boxes).clamp(min=0).unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=1e-6)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=1e-6)
    return (across * down).sqrt()


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes at the image border. boxes (..., N, 4), sizes (..., 2) height, width -> as boxes."""
    limit = sizes.flip(-1).repeat_interleave(2, -1)[..., [0, 2, 1, 3]].unsqueeze(-2).to(boxes)
    return torch.minimum(boxes.clamp(min=0), limit)
