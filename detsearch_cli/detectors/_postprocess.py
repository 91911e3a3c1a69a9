"""From dense predictions to detections: threshold, best per level, non-maximum suppression."""

from __future__ import annotations

import torch
from detsearch_kernels.nms import nms
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.recipe import Test
from detsearch_cli.structures import Dense, Detections


def select(dense: Dense, sizes: Tensor, test: Test, nms_iou: float) -> list[Detections]:
    """The detections of every image, best first. sizes (B, 2) height, width px: boxes are clipped to it.

    The class score alone must exceed the threshold; where there is a centerness, ranking and the final score
    use sqrt(class * centerness), as in FCOS's and ATSS's code. Boxes that clipping empties are dropped.
    """
    best, prior, label = _best_per_level(dense, test)
    chosen = dense.boxes.gather(1, prior[..., None].expand(-1, -1, 4)).float()
    chosen = boxes.clip(chosen, sizes.to(chosen.device))
    keep = (best >= 0) & (chosen[..., 2:] > chosen[..., :2]).all(-1)
    results = []
    for image in range(best.shape[0]):
        kept = keep[image]
        found, score, kind = chosen[image, kept], best[image, kept], label[image, kept]
        order = nms(found, score, kind, most_iou=nms_iou, limit=test.max_detections)
        results.append(Detections(found[order], score[order], kind[order]))
    return results


def _best_per_level(dense: Dense, test: Test) -> tuple[Tensor, Tensor, Tensor]:
    """Score, prior and class of the top_k (prior, class) pairs of every level, each (B, K); score -1 for none."""
    levels, first = [], 0
    for rows in dense.rows():
        rows = rows.flatten(1, -2)
        centerness = None
        if dense.centerness is not None:
            centerness = dense.centerness[:, first : first + rows.shape[1]].float().sigmoid()[..., None]
        best, prior, label = _best_of_level(rows, centerness, test)
        levels.append((best, prior + first, label))
        first += rows.shape[1]
    best, prior, label = (torch.cat(part, 1) for part in zip(*levels, strict=True))
    return best, prior, label


def _best_of_level(rows: Tensor, centerness: Tensor | None, test: Test) -> tuple[Tensor, Tensor, Tensor]:
    """The same of one level. rows (B, A, C) logits, centerness (B, A, 1) in [0, 1].

    The best pairs are those of the priors whose best class scores highest, so only these need a look at every class.
    """
    highest = _scores(rows.amax(-1, keepdim=True), centerness, test.score_threshold)[..., 0]
    prior = highest.topk(min(test.pre_nms_top_k, rows.shape[1]), dim=1).indices
    own = prior[..., None]
    scores = _scores(
        rows.gather(1, own.expand(-1, -1, rows.shape[2])),
        None if centerness is None else centerness.gather(1, own),
        test.score_threshold,
    ).flatten(1)
    best, pair = scores.topk(min(test.pre_nms_top_k, scores.shape[1]), dim=1)
    return best, prior.gather(1, pair // rows.shape[2]), pair % rows.shape[2]


def _scores(logits: Tensor, centerness: Tensor | None, threshold: float) -> Tensor:
    """What is ranked, -1 where the class score is not above the threshold. Same shape as logits."""
    scores = logits.float().sigmoid()
    # the threshold comes before the product, so that low centerness ranks a box low but cannot remove it
    passes = scores > threshold
    if centerness is not None:
        scores = (scores * centerness).sqrt()
    return torch.where(passes, scores, -1.0)
