"""AP Loss, aLRP and Rank & Sort from sorted scores against loops over the positives, as their papers publish them.

    OMP_NUM_THREADS=1 python benchmarks/ranking_losses.py

Processor time of the value and the update of every score, the median over repetitions of both sides in turn, in one process.
The loops hold one row of all scores for a positive, in float32, and leave out the negatives that lie below every positive,
as the published ones do. `largest gap` is between the updates, in parts of the largest one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detsearch_cli.slots.losses.alrp import localisation_recall_precision
from detsearch_cli.slots.losses.ap_loss import average_precision_error
from detsearch_cli.slots.losses.rank_sort import ranking_error, sorting_error

REPETITIONS = 5


def relation(difference: Tensor, delta: float) -> Tensor:
    return (difference / (2 * delta) + 0.5).clamp(0, 1)


def reachable(scores: Tensor, positive: Tensor, negative: Tensor, delta: float) -> Tensor:
    return negative[scores[negative] >= scores[positive].min() - delta]


def ap_loop(scores: Tensor, positive: Tensor, negative: Tensor, delta: float) -> Tensor:
    kept = reachable(scores, positive, negative, delta)
    own, others = scores[positive], scores[kept]
    gradient, highest = torch.zeros_like(scores), torch.zeros(())
    moved, up = torch.zeros_like(others), torch.zeros_like(own)
    for i in own.argsort():
        among, above = relation(own - own[i], delta), relation(others - own[i], delta)
        among[i] = 0
        rank = 1 + among.sum() + above.sum()
        precision = (1 + among.sum()) / rank
        part = above / rank
        if precision >= highest:
            highest = precision
        else:
            part = part * ((1 - highest) / (1 - precision))
        moved += part
        up[i] = -(1 - highest)
    gradient[kept], gradient[positive] = moved, up
    return gradient / len(own)


def alrp_loop(scores: Tensor, errors: Tensor, positive: Tensor, negative: Tensor, delta: float) -> Tensor:
    kept = reachable(scores, positive, negative, delta)
    own, others = scores[positive], scores[kept]
    gradient = torch.zeros_like(scores)
    moved, up = torch.zeros_like(others), torch.zeros_like(own)
    for i in range(len(own)):
        among, above = relation(own - own[i], delta), relation(others - own[i], delta)
        among[i] = 0
        wrong = above.sum()
        if wrong > 1e-5:
            lacks = ((among * errors).sum() + wrong) / (1 + among.sum() + wrong)
            up[i] = -lacks
            moved += above * (lacks / wrong)
    gradient[kept], gradient[positive] = moved, up
    return gradient / len(own)


def rank_sort_loop(
    scores: Tensor, labels: Tensor, positive: Tensor, negative: Tensor, delta: float
) -> Tensor:
    kept = reachable(scores, positive, negative, delta)
    own, others = scores[positive], scores[kept]
    gradient = torch.zeros_like(scores)
    moved, up = torch.zeros_like(others), torch.zeros_like(own)
    for i in range(len(own)):
        among, above = relation(own - own[i], delta), relation(others - own[i], delta)
        wrong = above.sum()
        error = wrong / (among.sum() + wrong)
        if wrong > 1e-5:
            up[i] -= error
            moved += above * (error / wrong)
        right = among * (labels >= labels[i])
        lack = 1 - labels
        error = (among * lack).sum() / among.sum() - (right * lack).sum() / right.sum()
        missorted = among * (labels < labels[i])
        if missorted.sum() > 1e-5:
            up[i] -= error
            up += missorted * (error / missorted.sum())
    gradient[kept], gradient[positive] = moved, up
    return gradient / len(own)


def rank_sort(scores: Tensor, labels: Tensor, positive: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    value, gradient = ranking_error(scores, positive, positive, delta)
    _, among = sorting_error(scores[positive], labels, delta)
    return value, gradient.index_add(0, positive, among)


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


def main() -> None:
    print(
        f"{'loss':<12}{'scores':>9}{'positives':>11}{'loop ms':>10}{'ours ms':>10}{'ratio':>8}{'largest gap':>13}"
    )
    for number, count in ((100_000, 100), (100_000, 500), (1_000_000, 500)):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(number, generator=generator) - 4
        p = torch.randperm(number, generator=generator)[:count].sort().values
        scores[p] += 3  # a detector that has begun to learn
        n = torch.ones(number, dtype=torch.bool).index_fill(0, p, False).nonzero()[:, 0]
        u = torch.rand(count, generator=generator)
        pairs = {
            "AP Loss": (
                partial(ap_loop, scores, p, n, 1.0),
                partial(average_precision_error, scores, p, p, 1.0),
            ),
            "aLRP": (
                partial(alrp_loop, scores, u, p, n, 1.0),
                partial(localisation_recall_precision, scores, u, p, p, 1.0),
            ),
            "Rank & Sort": (
                partial(rank_sort_loop, scores, u, p, n, 0.5),
                partial(rank_sort, scores, u, p, 0.5),
            ),
        }
        for name, (loop, ours) in pairs.items():
            slow, quick = [], []
            for _ in range(REPETITIONS):
                expected, taken = seconds(loop)
                slow.append(taken)
                found, taken = seconds(ours)
                quick.append(taken)
            gap = float((found[1] - expected).abs().max() / expected.abs().max())
            one, other = statistics.median(slow), statistics.median(quick)
            print(
                f"{name:<12}{number:>9}{count:>11}{one * 1e3:>10.1f}{other * 1e3:>10.1f}{one / other:>7.1f}x{gap:>13.0e}"
            )


if __name__ == "__main__":
    main()
