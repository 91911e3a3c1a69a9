"""Rank & Sort Loss: positives above negatives, and among each other by their IoU, with boxes that balance themselves."""

from __future__ import annotations

from typing import ClassVar

import torch
from detsearch_kernels.boxes import aligned_iou
from pydantic import Field
from torch import Tensor

from detsearch_cli.slots.losses._ranking import GivenGradient, Negatives, ramp_sums, split_scores
from detsearch_cli.slots.losses.base import DetectionLoss, box_loss, mean_over_ranks
from detsearch_cli.structures import Assignment, Dense, Targets

PAIRS_AT_ONCE = 4_000_000


class RankSort(DetectionLoss):
    """Source: Oksuz et al. 2021 (Rank & Sort Loss for Object Detection and Instance Segmentation), Eq. 7 to 13 and its code.

    The label of a positive is the IoU of its predicted box. The ranking term is exact in O((N + P) log N); the sorting term
    compares all pairs of positives, in pieces. The regression term, 1 - GIoU, is brought to the size of both others at
    every step, so that there is nothing to tune. Micro-batches and the processes of a distributed training rank their own
    images.
    """

    ranks: ClassVar[bool] = True

    delta: float = Field(default=0.5, ge=0, le=1000, description="half the width of the ramp; 0: a step")

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        scores, positive, left_out, pairs = split_scores(dense, assignment, targets)
        image, prior, gt = pairs
        regression = box_loss(dense, pairs, targets, "giou").sum()
        total = mean_over_ranks(torch.tensor(len(positive), device=scores.device))
        if len(positive) == 0:
            nothing = scores[:0].sum()
            return {"ranking": nothing, "sorting": nothing, "regression": regression / total}
        with torch.no_grad():
            labels = aligned_iou(dense.boxes[image, prior], targets.boxes[gt], "iou")
        ranking, by_ranking = ranking_error(scores.detach(), positive, left_out, self.delta)
        sorting, by_sorting = sorting_error(scores.detach()[positive], labels, self.delta)
        placed = torch.zeros_like(by_ranking).index_put((positive,), by_sorting)
        regression = regression / total
        # as large as the errors of the order, whatever it is: their ratio carries no gradient
        balance = (ranking + sorting).to(regression.dtype) / regression.detach().clamp(min=1e-10)
        return {
            "ranking": GivenGradient.apply(scores, ranking, by_ranking),
            "sorting": GivenGradient.apply(scores, sorting, placed),
            "regression": balance * regression,
        }


@torch.no_grad()
def ranking_error(scores: Tensor, positive: Tensor, left_out: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """Mean part of negatives among all that are ranked above a positive, and its update of every score. (N,) -> (), (N,)."""
    if not bool(scores.isfinite().all()):
        return scores.new_full((), torch.nan), torch.full_like(scores, torch.nan, dtype=torch.float64)
    negatives = Negatives(scores, positive, left_out, delta)
    wrong = negatives.sums()
    rank = ramp_sums(negatives.own, negatives.own, delta) + wrong
    gradient = negatives.spread(1 / rank)
    gradient[positive] = -wrong / rank
    return (wrong / rank).mean(), gradient / len(positive)


@torch.no_grad()
def sorting_error(own: Tensor, labels: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """How much worse than in the order of their labels (P,) the positives (P,) above each are, and its update: (), (P,)."""
    own, labels = own.double(), labels.double()
    errors, gradient = torch.zeros_like(own), torch.zeros_like(own)
    step = max(1, PAIRS_AT_ONCE // len(own))
    for start in range(0, len(own), step):
        rows = slice(start, start + step)
        difference = own[None] - own[rows, None]
        above = (difference / (2 * delta) + 0.5).clamp(0, 1) if delta > 0 else (difference >= 0).double()
        right = above * (labels[None] >= labels[rows, None])
        lack = (1 - labels)[None]
        errors[rows] = (above * lack).sum(1) / above.sum(1) - (right * lack).sum(1) / right.sum(1)
        missorted = above - right
        number = missorted.sum(1)
        sorted_wrongly = number > 1e-10
        moved = torch.where(sorted_wrongly, errors[rows], 0.0)
        gradient[rows] -= moved
        gradient += (missorted * (moved / number.clamp(min=1e-10))[:, None]).sum(0)
    return errors.mean(), gradient / len(own)
