"""From dense predictions to detections: threshold, best per level, non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detsearch_kernels.nms import nms
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.slots.losses.base import DetectionLoss
from detsearch_cli.structures import Dense, Detections

Ranked = tuple[Tensor, Tensor, Tensor]
"""Score (below 0 for none), prior and class of the best pairs, each (B, K)."""


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
    probabilities: Callable[[Tensor], Tensor] = DetectionLoss.probabilities,
) -> list[Detections]:
    """The detections of every image, best first. sizes (B, 2) height, width px: boxes are clipped to it.

    The class score alone must exceed the threshold. With a centerness branch, ranking and the final score use
    sqrt(class * centerness), as in FCOS's and ATSS's code.
    """
    # a sigmoid is monotonous in each logit alone, which lets `_best_of_level` skip most classes; a softmax is not
    if probabilities is not DetectionLoss.probabilities:
        scores = _ranked(probabilities(dense.logits.float()), _centrality(dense), how.score_threshold)
        return select_scored(scores, dense.boxes, dense.priors.counts, sizes, how)
    levels, first = [], 0
    central = _centrality(dense)
    for rows in dense.rows():
        rows = rows.flatten(1, -2)
        own = None if central is None else central[:, first : first + rows.shape[1]]
        best, prior, label = _best_of_level(rows, own, how)
        levels.append((best, prior + first, label))
        first += rows.shape[1]
    best, prior, label = (torch.cat(part, 1) for part in zip(*levels, strict=True))
    chosen = dense.boxes.gather(1, prior[..., None].expand(-1, -1, 4))
    return _suppressed(chosen, best, label, sizes, how)


def select_scored(
    scores: Tensor, predicted: Tensor, counts: tuple[int, ...], sizes: Tensor, how: Selection
) -> list[Detections]:
    """The best of each level, then non-maximum suppression of each class; boxes that clipping empties are dropped.

    scores (B, A, C), below 0 where none is wanted; predicted (B, A, 4) xyxy px, or (B, A, C, 4) where every
    class has a box of its own; counts: priors a level.
    """
    best, prior, label = best_per_level(scores, counts, how.pre_nms_top_k)
    own_box = predicted.ndim == 4
    # with a box for each class, boxes are flattened as (prior, class)
    row = prior * scores.shape[2] + label if own_box else prior
    chosen = (predicted.flatten(1, 2) if own_box else predicted).gather(1, row[..., None].expand(-1, -1, 4))
    return _suppressed(chosen, best, label, sizes, how)


def best_per_level(scores: Tensor, counts: tuple[int, ...], top_k: int) -> Ranked:
    """The top_k (prior, class) pairs of every level. scores (B, A, C) -> score, prior, class, each (B, K)."""
    num_images, _, num_classes = scores.shape
    best, where, start = [], [], 0
    for count in counts:
        flat = scores[:, start : start + count].reshape(num_images, -1)
        top, index = flat.topk(min(top_k, flat.shape[1]), dim=1)
        best.append(top)
        # indices into all (prior, class) pairs, so that one division below tells them apart
        where.append(index + start * num_classes)
        start += count
    index = torch.cat(where, 1)
    return torch.cat(best, 1), index // num_classes, index % num_classes


def _suppressed(
    chosen: Tensor, best: Tensor, label: Tensor, sizes: Tensor, how: Selection
) -> list[Detections]:
    """chosen (B, K, 4) xyxy px, best (B, K) scores, label (B, K) -> what is left of every image, best first."""
    chosen = boxes.clip(chosen.float(), sizes.to(chosen.device))
    # after clipping: a box that lies outside its image is empty only now
    keep = (best >= 0) & (chosen[..., 2:] > chosen[..., :2]).all(-1)
    results = []
    for image in range(best.shape[0]):
        kept = keep[image]
        own, score, kind = chosen[image, kept], best[image, kept].float(), label[image, kept]
        order = nms(own, score, kind, most_iou=how.nms_iou, limit=how.max_detections)
        results.append(Detections(own[order], score[order], kind[order]))
    return results


def _best_of_level(rows: Tensor, central: Tensor | None, how: Selection) -> Ranked:
    """The top pairs of one level. rows (B, A, C) logits of sigmoids, central (B, A, 1) in [0, 1].

    The best pairs are those of the priors whose best class scores highest, so only these need a look at every class.
    """
    highest = _ranked(rows.amax(-1, keepdim=True).float().sigmoid(), central, how.score_threshold)[..., 0]
    prior = highest.topk(min(how.pre_nms_top_k, rows.shape[1]), dim=1).indices
    own = prior[..., None]
    scores = _ranked(
        rows.gather(1, own.expand(-1, -1, rows.shape[2])).float().sigmoid(),
        None if central is None else central.gather(1, own),
        how.score_threshold,
    ).flatten(1)
    best, pair = scores.topk(min(how.pre_nms_top_k, scores.shape[1]), dim=1)
    return best, prior.gather(1, pair // rows.shape[2]), pair % rows.shape[2]


def _centrality(dense: Dense) -> Tensor | None:
    """(B, A, 1) in [0, 1]."""
    return None if dense.centerness is None else dense.centerness.float().sigmoid()[..., None]


def _ranked(scores: Tensor, central: Tensor | None, threshold: float) -> Tensor:
    """What is ranked, -1 where the class score is not above the threshold. Same shape as scores."""
    # the threshold comes before the product, so that low centerness ranks a box low but cannot remove it
    passes = scores > threshold
    if central is not None:
        scores = (scores * central).sqrt()
    return torch.where(passes, scores, -1.0)
