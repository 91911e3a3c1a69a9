"""The loss in a detector's terms against Eq. 6 written as a matrix under autograd, and against average precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Slot, build_part
from detsearch_cli.slots.losses import parameterized_ap
from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP, localisation_score, named_curve
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Targets
from tests.slots import _reference as slow

RELEASED = (
    ((0, 0), (0.3, 0.1), (0.6, 0.5), (1, 1)),
    ((0, 0), (0.2, 0.02), (0.5, 0.3), (0.9, 0.6), (1, 1)),
    ((0, 0), (0.4, 0.7), (1, 1)),
    ((0, 0), (0.1, 0.3), (0.7, 0.5), (1, 1)),
    ((0, 0), (0.5, 0.2), (1, 1)),
)


def case(seed: int, classes: int = 3) -> tuple[Dense, Assignment, Targets, list[Tensor]]:
    """Float64 predictions at some points, near their ground truths where they are positives; some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    truths = slow.random_targets([3, 0, 4], seed)
    truths = Targets(truths.boxes.double(), truths.labels % classes, truths.splits)
    priors = Points()(slow.SIZES, slow.LEVELS)
    number = len(priors.points)
    matched = torch.full((3, number), BACKGROUND)
    matched[:, torch.randperm(number, generator=generator)[:40]] = IGNORE
    for image, (start, found) in enumerate(slow.per_image(truths)):
        if len(found):
            chosen = torch.randperm(number, generator=generator)[:25]
            matched[image, chosen] = start + torch.randint(0, len(found), (25,), generator=generator)
    own = truths.boxes[matched.clamp(min=0)]
    boxes = own + 12 * torch.randn(own.shape, generator=generator, dtype=torch.float64)
    logits = 0.6 * torch.randn((3, number, classes), generator=generator, dtype=torch.float64)
    logits[:, ::7] = 0.25  # equal scores
    leaves = [logits.requires_grad_(), boxes.requires_grad_()]
    return Dense((logits,), boxes, torch.zeros_like(boxes), priors), Assignment(matched), truths, leaves


def curve(points: Any, x: Tensor) -> Tensor:
    """Eq. 7: on a knot the segment right of it; its gradient there, too."""
    xs, ys = torch.tensor(points, dtype=torch.float64).T.contiguous()
    k = (torch.searchsorted(xs, x.detach().clamp(0, 1).contiguous(), right=True) - 1).clamp(max=len(xs) - 2)
    inside = (x >= 0) & (x < 1)
    held = torch.where(inside, x, x.detach().clamp(0, 1))
    return ys[k] + (ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k]) * (held - xs[k])


def equation_6(
    dense: Dense,
    assignment: Assignment,
    targets: Targets,
    curves: Any,
    kind: str = "giou",
    through: bool = False,
) -> Tensor:
    """1 + Eq. 6 with every pair of a positive and a prediction in one matrix."""
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = assignment.matched[image, prior]
    kept = (assignment.matched != IGNORE)[..., None].expand_as(dense.logits)
    number = torch.cumsum(kept.flatten(), 0) - 1
    scores = dense.logits[kept]
    at = number.reshape(dense.logits.shape)[image, prior, targets.labels[gt]]
    quality = torch.zeros_like(scores).index_put(
        (at,),
        localisation_score(dense.boxes[image, prior], targets.boxes[gt], kind),  # type: ignore[arg-type]
    )
    f1, f2, f3, f4, f5 = curves
    difference = ((scores[None] - scores[at][:, None]).clamp(-1, 1) + 1) / 2
    other = torch.ones_like(difference).scatter(1, at[:, None], 0.0)
    above = curve(f2, difference) * (1 - curve(f3, quality))[None] * other
    rank = 1 + (curve(f4, difference if through else difference.detach()) * other).sum(1)
    own = quality[at]
    return 1 - (curve(f1, own) - above.sum(1) / rank * curve(f5, own)).sum() / len(at)


def loss_of(**options: Any) -> ParameterizedAP:
    made = build_part("slots.losses", Slot(name="parameterized_ap", **options), "loss")
    assert isinstance(made, ParameterizedAP)
    return made


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("kind", ["giou", "iou", "l1"])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients_are_equation_6_s(seed: int, kind: str, through: bool) -> None:
    dense, assignment, targets, leaves = case(seed)
    loss = loss_of(curves=RELEASED, localisation=kind, through_denominator=through)
    found = loss(dense, assignment, targets)["ap"]
    expected = equation_6(dense, assignment, targets, RELEASED, kind, through)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    ours = torch.autograd.grad(found, leaves)
    theirs = torch.autograd.grad(expected, leaves)
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-9)
    ignored = assignment.matched == IGNORE
    assert not ours[0][ignored].any() and not ours[1][~assignment.positive].any()


def test_the_scale_multiplies_the_gradient_into_the_boxes_and_nothing_else() -> None:
    dense, assignment, targets, leaves = case(0)
    plain, scaled = (
        loss_of(curves=RELEASED, scale=scale)(dense, assignment, targets)["ap"] for scale in (1, 4)
    )
    assert plain.item() == scaled.item()
    (scores, boxes), (scores_4, boxes_4) = (torch.autograd.grad(x, leaves) for x in (plain, scaled))
    torch.testing.assert_close(scores_4, scores, rtol=0, atol=0)
    torch.testing.assert_close(boxes_4, 4 * boxes)
    assert boxes.any()


@pytest.mark.parametrize("name", ["linear", "square", "sqrt"])
def test_one_list_and_a_name_stand_for_all_five(name: Any) -> None:
    dense, assignment, targets, _ = case(1)
    points = named_curve(name)
    found = [loss_of(curves=c)(dense, assignment, targets)["ap"].item() for c in (name, points, [points] * 5)]
    assert found[0] == found[1] == found[2]


def test_a_hand_made_curve_is_off_by_no_more_than_it_says() -> None:
    x = np.linspace(0, 1, 200_001)
    for name, exact, most in (("square", x**2, 2.5e-4), ("sqrt", np.sqrt(x), 4.9e-4), ("linear", x, 1e-12)):
        xs, ys = np.array(named_curve(name)).T  # type: ignore[arg-type]
        assert np.abs(np.interp(x, xs, ys) - exact).max() <= most
        assert len(xs) <= 33


@pytest.mark.parametrize("through", [False, True])
def test_the_sigmoid_of_score_differences_is_taken_as_it_is(
    through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, assignment, targets, leaves = case(2)
    monkeypatch.setattr(parameterized_ap, "PAIRS_AT_ONCE", 5 * dense.logits.numel())  # several pieces
    found = loss_of(curves="sigmoid", through_denominator=through)(dense, assignment, targets)["ap"]
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = assignment.matched[image, prior]
    logits = dense.logits.masked_fill((assignment.matched == IGNORE)[..., None], -math.inf)
    flat = logits.flatten()
    at = (image * logits.shape[1] + prior) * logits.shape[2] + targets.labels[gt]
    own = localisation_score(dense.boxes[image, prior], targets.boxes[gt], "giou")
    quality = torch.zeros_like(flat).index_put((at,), own)
    expected = flat.new_zeros(())
    for i, u in zip(at.tolist(), own, strict=True):
        above = torch.cat([flat[:i], flat[i + 1 :]]).sub(flat[i]).sigmoid()
        counted = 1 - torch.cat([quality[:i], quality[i + 1 :]])
        rank = 1 + (above if through else above.detach()).sum()
        expected = expected - (u - u * (above * counted).sum() / rank) / len(at)
    assert found.item() == pytest.approx(1 + expected.item(), abs=1e-9)
    for mine, wanted in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-9)
    monkeypatch.setattr(parameterized_ap, "MOST_PAIRS", 1000)
    with pytest.raises(RecipeError, match="compares at most 1000 pairs"):
        loss_of(curves="sigmoid")(dense, assignment, targets)


def test_with_steps_for_curves_it_is_one_minus_average_precision() -> None:
    step = ((0, 0), (0.5, 0), (0.5 + 1e-9, 1), (1, 1))
    dense, assignment, targets, _ = case(3)
    matched = assignment.matched.masked_fill(assignment.matched == IGNORE, BACKGROUND)
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(dense.logits.shape, generator=generator, dtype=torch.float64)
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    gt = matched[image, prior]
    boxes = dense.boxes.detach().clone()
    boxes[image, prior] = targets.boxes[gt]  # perfect, so that every positive counts as found
    found = loss_of(curves=step)(Dense((logits,), boxes, boxes, dense.priors), Assignment(matched), targets)[
        "ap"
    ]
    truth = torch.zeros(logits.shape)
    truth[image, prior, targets.labels[gt]] = 1
    expected = average_precision_score(truth.flatten().numpy(), logits.flatten().numpy())
    assert 1 - found.item() == pytest.approx(expected, abs=1e-6)


def test_over_images_it_is_the_mean_of_the_images_with_objects() -> None:
    dense, assignment, targets, _ = case(0)
    found = loss_of(curves=RELEASED, over="image")(dense, assignment, targets)["ap"]
    alone = []
    for i in (0, 2):  # the image between them has no object
        one = Dense((dense.logits[i : i + 1],), dense.boxes[i : i + 1], dense.deltas[i : i + 1], dense.priors)
        alone.append(equation_6(one, Assignment(assignment.matched[i : i + 1]), targets, RELEASED))
    assert found.item() == pytest.approx(torch.stack(alone).mean().item(), abs=1e-9)


@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("curves", ["linear", "sigmoid"])
def test_a_batch_without_objects_trains_on_and_reaches_every_prediction(curves: str, over: str) -> None:
    dense, assignment, _, leaves = case(0)
    none = torch.zeros(0, 4, dtype=torch.float64)
    nothing = Targets(none, torch.zeros(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    empty = Assignment(torch.full_like(assignment.matched, BACKGROUND))
    term = loss_of(curves=curves, over=over)(dense, empty, nothing)["ap"]
    assert term.item() == 0
    gradients = torch.autograd.grad(term, leaves)
    assert all(g is not None and not g.any() for g in gradients)


def test_equal_scores_giant_and_empty_boxes_stay_finite() -> None:
    dense, assignment, targets, _ = case(0)
    boxes = dense.boxes.detach().clone()
    boxes[0] = torch.tensor([-1e6, -1e6, 1e6, 1e6])
    boxes[2] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    for kind in ("giou", "iou", "l1"):
        logits, moved = torch.zeros_like(dense.logits).requires_grad_(), boxes.clone().requires_grad_()
        made = Dense((logits,), moved, moved, dense.priors)
        term = loss_of(curves=RELEASED, localisation=kind)(made, assignment, targets)["ap"]
        term.backward()
        assert term.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
        assert moved.grad is not None and moved.grad.isfinite().all()


def test_a_score_that_is_no_number_makes_the_loss_none_either() -> None:
    dense, assignment, targets, _ = case(0)
    logits = dense.logits.detach().clone()
    logits[0, 5, 1] = math.nan
    made = Dense((logits.requires_grad_(),), dense.boxes, dense.deltas, dense.priors)
    assert loss_of(curves=RELEASED)(made, assignment, targets)["ap"].isnan()


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        *[
            (odd, r"curves are five lists of points \(x, y\)")
            for odd in (
                [[0, 0], ["a", 0.5], [1, 1]],
                [[0, 0], [0.5, 0.5, 0.5], [1, 1]],
                3,
                None,
                {"a": 1},
                [],
                ["square"],
            )
        ],
        (
            [[(0, 0), (0.5, 0.7), (0.8, 0.2), (1, 1)]] * 5,
            r"no decreasing y, got \(0.5, 0.7\) before \(0.8, 0.2\)",
        ),
        ([(0, 0), (1, 0.9)], r"must lead from \(0, 0\) to \(1, 1\)"),
        ([[(0, 0), (1, 1)]] * 4, "5 functions, got 4"),
        ([[(k / 40, k / 40) for k in range(41)]] * 5, "needs 2 to 33 points"),
        ("cubic", "or one of linear, square, sqrt, sigmoid"),
    ],
)
def test_curves_that_are_none_are_refused(curves: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        loss_of(curves=curves)


def test_a_scale_is_above_0() -> None:
    with pytest.raises(RecipeError, match="scale"):
        loss_of(scale=0)
