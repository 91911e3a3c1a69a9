"""AP Loss, aLRP and Rank & Sort against loops over positives written from the papers, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detsearch_cli.slots.losses._ranking import ramp_sums
from detsearch_cli.slots.losses.alrp import ALRP, START, localisation_recall_precision
from detsearch_cli.slots.losses.ap_loss import APLoss, average_precision_error
from detsearch_cli.slots.losses.rank_sort import RankSort, ranking_error, sorting_error
from detsearch_cli.structures import TrainingStep
from tests.slots.test_parameterized_ap import case


def relation(difference: Tensor, delta: float) -> Tensor:
    """1 for a difference above delta, 0 below -delta, a ramp between; a step for delta 0."""
    return (difference >= 0).double() if delta == 0 else (difference / (2 * delta) + 0.5).clamp(0, 1)


def without(chosen: Tensor, scores: Tensor) -> Tensor:
    """The indices of all other scores."""
    return torch.ones(len(scores), dtype=torch.bool).index_fill(0, chosen, False).nonzero()[:, 0]


def scores_of(seed: int, positives: int = 40, number: int = 900) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, some equal and some far away, and which are positives and negatives; some are neither."""
    generator = torch.Generator().manual_seed(seed)
    scores = 1.5 * torch.randn(number, generator=generator, dtype=torch.float64)
    scores[::9] = 0.25
    scores[5], scores[6] = 60.0, -60.0
    order = torch.randperm(number, generator=generator)
    return scores, order[:positives], order[positives + 20 :]


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ramps_are_summed_exactly(delta: float, weighted: bool) -> None:
    scores, positive, _ = scores_of(0)
    weights = torch.rand(len(scores), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = ramp_sums(scores[positive], scores, delta, weights if weighted else None)
    every = relation(scores[None] - scores[positive][:, None], delta)
    expected = (every * weights).sum(1) if weighted else every.sum(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("delta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_ap_loss_is_the_loop_over_positives_from_the_lowest_up(seed: int, delta: float) -> None:
    scores, positive, negative = scores_of(seed)
    own, others = scores[positive], scores[negative]
    gradient, highest, lacking = torch.zeros_like(scores), 0.0, []
    for i in own.argsort(stable=True).tolist():
        among = relation(own - own[i], delta)
        among[i] = 0
        above = relation(others - own[i], delta)
        rank = 1 + among.sum() + above.sum()
        precision = float((1 + among.sum()) / rank)
        part = 1.0 if precision >= highest else (1 - highest) / (1 - precision)
        highest = max(highest, precision)
        gradient[negative] += part * above / rank
        gradient[positive[i]] -= 1 - highest
        lacking.append(1 - highest)
    value, found = average_precision_error(scores, positive, without(negative, scores), delta)
    assert value.item() == pytest.approx(sum(lacking) / len(own), abs=1e-10)
    torch.testing.assert_close(found, gradient / len(own), rtol=0, atol=1e-10)
    assert found.sum().item() == pytest.approx(0, abs=1e-9)  # what goes up comes down


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_rank_and_sort_is_the_loop_over_positives(
    seed: int, delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detsearch_cli.slots.losses import rank_sort

    monkeypatch.setattr(rank_sort, "PAIRS_AT_ONCE", 7 * 40)  # several pieces
    scores, positive, negative = scores_of(seed)
    labels = torch.rand(len(positive), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels[::5] = 0.5
    own, others = scores[positive], scores[negative]
    by_rank, by_sort = torch.zeros_like(scores), torch.zeros_like(own)
    ranking, sorting = [], []
    for i in range(len(own)):
        among, above = relation(own - own[i], delta), relation(others - own[i], delta)
        error = above.sum() / (among.sum() + above.sum())
        ranking.append(float(error))
        if above.sum() > 0:
            by_rank[positive[i]] -= error
            by_rank[negative] += above * error / above.sum()
        right = among * (labels >= labels[i])
        error = (among * (1 - labels)).sum() / among.sum() - (right * (1 - labels)).sum() / right.sum()
        sorting.append(float(error))
        wrong = among * (labels < labels[i])
        if wrong.sum() > 0:
            by_sort[i] -= error
            by_sort += wrong * error / wrong.sum()
    value, found = ranking_error(scores, positive, without(negative, scores), delta)
    assert value.item() == pytest.approx(sum(ranking) / len(own), abs=1e-10)
    torch.testing.assert_close(found, by_rank / len(own), rtol=0, atol=1e-10)
    value, found = sorting_error(own, labels, delta)
    assert value.item() == pytest.approx(sum(sorting) / len(own), abs=1e-10)
    torch.testing.assert_close(found, by_sort / len(own), rtol=0, atol=1e-10)


@pytest.mark.parametrize("delta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_alrp_is_the_loop_over_positives(seed: int, delta: float) -> None:
    scores, positive, negative = scores_of(seed)
    errors = torch.rand(len(positive), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    errors.requires_grad_()
    own, others = scores[positive], scores[negative]
    gradient, lacking, misplaced = torch.zeros_like(scores), [], []
    for i in range(len(own)):
        among, above = relation(own - own[i], delta), relation(others - own[i], delta)
        among[i] = 0
        rank = 1 + among.sum() + above.sum()
        lacking.append(float(above.sum() / rank))
        misplaced.append(errors[own >= own[i]].sum() / rank)
        if above.sum() > 1e-5:
            lacks = ((among * errors).sum().item() + above.sum()) / rank
            gradient[positive[i]] -= lacks
            gradient[negative] += lacks * above / above.sum()
    value, found, shares = localisation_recall_precision(
        scores, errors.detach(), positive, without(negative, scores), delta
    )
    assert value.item() == pytest.approx(sum(lacking) / len(own), abs=1e-10)
    torch.testing.assert_close(found, gradient / len(own), rtol=0, atol=1e-10)
    torch.testing.assert_close((shares * errors).sum(), torch.stack(misplaced).mean())
    (by_error,) = torch.autograd.grad(torch.stack(misplaced).mean(), errors)
    torch.testing.assert_close(shares, by_error)


def test_the_boxes_term_of_alrp_weighs_what_both_were_in_the_epoch_before() -> None:
    loss, seen = ALRP(), []
    for index in range(4):
        loss.before_step(TrainingStep(index, 8, 0, epoch=index // 2))
        terms = loss(*case(index)[:3])
        weight = START if index < 2 else sum(map(sum, seen)) / sum(regression for _, regression in seen)
        if index < 2:
            seen.append((terms["classification"].item(), terms["regression"].item() / START))
        plain = ALRP()(*case(index)[:3])
        assert terms["regression"].item() == pytest.approx(weight / START * plain["regression"].item())
        assert terms["classification"].item() == pytest.approx(plain["classification"].item())


def test_alrp_goes_on_from_what_it_remembers() -> None:
    whole, first, second = ALRP(), ALRP(), ALRP()
    steps = [TrainingStep(index, 8, 0, epoch=index // 3) for index in range(8)]
    for index, step in enumerate(steps):
        if index == 4:
            second.restore(first.state(), torch.device("cpu"))
        resumed = first if index < 4 else second
        for loss in (whole, resumed):
            loss.before_step(step)
        expected, found = (loss(*case(index)[:3]) for loss in (whole, resumed))
        assert found == expected
    assert second.state() == whole.state()


LOSSES: list[Any] = [
    ALRP(),
    ALRP(delta=0),
    APLoss(),
    APLoss(delta=0, regression="giou"),
    RankSort(),
    RankSort(delta=0),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_positive_that_is_ranked_too_low_goes_up_and_ignored_ones_stay(loss: Any) -> None:
    dense, assignment, targets, leaves = case(0)
    terms = loss(dense, assignment, targets)
    gradient, boxes = torch.autograd.grad(torch.stack([*terms.values()]).sum(), leaves, allow_unused=True)
    assert all(term.isfinite() and term >= 0 for term in terms.values())
    ignored = (assignment.matched == -2)[..., None].expand_as(gradient)
    assert not gradient[ignored].any() and gradient.any()
    image, prior = assignment.positive.nonzero(as_tuple=True)
    own = gradient[image, prior, targets.labels[assignment.matched[image, prior]]]
    assert own.sum() < 0 and gradient.sum().item() == pytest.approx(0, abs=1e-6)
    if boxes is not None:
        assert boxes[image, prior].any()


def test_the_boxes_term_of_rank_and_sort_is_as_large_as_both_others() -> None:
    dense, assignment, targets, _ = case(1)
    terms = RankSort()(dense, assignment, targets)
    assert terms["regression"].item() == pytest.approx((terms["ranking"] + terms["sorting"]).item())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_score_that_is_no_number_ends_as_one(loss: Any) -> None:
    dense, assignment, targets, _ = case(0)
    dense.logits.data[0, 3, 1] = math.nan
    terms = loss(dense, assignment, targets)
    assert torch.stack([*terms.values()]).sum().isnan()
