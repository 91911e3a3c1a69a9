"""From dense predictions to detections: threshold, best per level, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detsearch_cli import boxes
from detsearch_cli.structures import Dense, Detections


@dataclass(frozen=True)
class Selection:
    """How detections are selected: what `recipe.Test` and the detector's own values say together."""

    score_threshold: float
    pre_nms_top_k: int
    nms_iou: float
    max_detections: int


def select(
    dense: Dense,
    sizes: Tensor,
    how: Selection,
    probabilities: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> list[Detections]:
    """The detections of every image, best first. sizes (B, 2) height, width px: boxes are clipped to it.

    The class score alone must exceed the threshold; where there is a centerness, ranking and the final score
    use sqrt(class * centerness), as in FCOS's and ATSS's code.
    """
    scores = probabilities(dense.logits.float())
    # the threshold comes before the product, so that low centerness ranks a box low but cannot remove it
    passes = scores > how.score_threshold
    if dense.centerness is not None:
        scores = (scores * dense.centerness.float().sigmoid()[..., None]).sqrt()
    return select_scored(torch.where(passes, scores, -1.0), dense.boxes, dense.priors.counts, sizes, how)


def select_scored(
    scores: Tensor, predicted: Tensor, counts: tuple[int, ...], sizes: Tensor, how: Selection
) -> list[Detections]:
    """The best of each level, then non-maximum suppression of each class; boxes that clipping empties are dropped.

    scores (B, A, C), below 0 where none is wanted; predicted (B, A, 4) xyxy px, or (B, A, C, 4) where every
    class has a box of its own; counts: priors a level.
    """
    best, prior, label = best_per_level(scores, counts, how.pre_nms_top_k)
    own_box = predicted.ndim == 4
    row = prior * scores.shape[2] + label if own_box else prior
    chosen = (predicted.flatten(1, 2) if own_box else predicted).gather(1, row[..., None].expand(-1, -1, 4))
    chosen = boxes.clip(chosen, sizes.to(chosen.device))
    keep = (best >= 0) & (chosen[..., 2:] > chosen[..., :2]).all(-1)
    results = []
    for image in range(best.shape[0]):
        kept = keep[image]
        found, score, kind = chosen[image, kept], best[image, kept], label[image, kept]
        order = batched_nms(found, score, kind, how.nms_iou)[: how.max_detections]
        results.append(Detections(found[order], score[order], kind[order]))
    return results


def best_per_level(scores: Tensor, counts: tuple[int, ...], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The top_k (prior, class) pairs of every level. scores (B, A, C) -> score, prior, class, each (B, K)."""
    num_images, _, num_classes = scores.shape
    best, where, start = [], [], 0
    for count in counts:
        flat = scores[:, start : start + count].reshape(num_images, -1)
        top, index = flat.topk(min(top_k, flat.shape[1]), dim=1)
        best.append(top)
        where.append(index + start * num_classes)
        start += count
    index = torch.cat(where, 1)
    return torch.cat(best, 1), index // num_classes, index % num_classes
