"""Losses against torchvision and hand-written sums; what every file in slots/losses must do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as tv
from torch import Tensor

from detsearch_cli import boxes, parts
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Slot, build_part
from detsearch_cli.slots.losses.base import focal_sum, mean_over_ranks
from detsearch_cli.slots.losses.focal_iou import OUTSIDE_WEIGHT, FocalIoU, iou_loss
from detsearch_cli.slots.losses.focal_smooth_l1 import FocalSmoothL1
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Priors, Targets
from tests.slots import _reference as slow

GRIDS = {"anchors": Anchors(scales=1), "points": Points()}
EVERY = [(name, grid) for name in parts.names("slots.losses") for grid in GRIDS]


def random_assignment(targets: Targets, num_priors: int) -> Assignment:
    """Any prior may belong to any ground truth of its image, whether near or not."""
    generator = torch.Generator().manual_seed(3)
    matched = torch.full((targets.num_images, num_priors), BACKGROUND)
    for image, (start, found) in enumerate(slow.per_image(targets)):
        chosen = torch.randperm(num_priors, generator=generator)
        matched[image, chosen[:30]] = IGNORE
        if len(found):
            matched[image, chosen[30:90]] = start + torch.randint(0, len(found), (60,), generator=generator)
    return Assignment(matched)


def with_gradient(dense: Dense) -> tuple[Dense, list[Tensor]]:
    assert dense.centerness is not None and dense.objectness is not None
    parts = (dense.logits, dense.boxes, dense.deltas, dense.centerness, dense.objectness)
    leaves = [t.clone().requires_grad_() for t in parts]
    return Dense(
        (leaves[0],), *leaves[1:3], priors=dense.priors, centerness=leaves[3], objectness=leaves[4]
    ), leaves


def priors_of(grid: str) -> Priors:
    return GRIDS[grid](slow.SIZES, slow.LEVELS)


def one_hot(dense: Dense, assignment: Assignment, targets: Targets) -> Tensor:
    wanted = torch.zeros_like(dense.logits)
    image, prior = assignment.positive.nonzero(as_tuple=True)
    wanted[image, prior, targets.labels[assignment.matched[image, prior]]] = 1
    return wanted


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5)])
def test_focal_sum_and_its_gradient_equal_torchvision(alpha: float, gamma: float) -> None:
    targets = slow.random_targets([4, 0, 6], 0)
    dense, leaves = with_gradient(slow.dense_of(priors_of("points"), 3))
    assignment = random_assignment(targets, len(dense.priors.boxes))
    found = focal_sum(dense, assignment, targets, alpha, gamma)
    wanted = one_hot(dense, assignment, targets)
    each = tv.sigmoid_focal_loss(dense.logits, wanted, alpha=alpha, gamma=gamma)
    expected = each[assignment.matched != IGNORE].sum()
    torch.testing.assert_close(found, expected)
    gradient = torch.autograd.grad(found, leaves[0], retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, leaves[0])[0])


def test_focal_sum_is_finite_at_extreme_logits() -> None:
    targets = slow.random_targets([4], 0)
    dense, leaves = with_gradient(slow.dense_of(priors_of("points"), 1))
    dense.logits.data.mul_(1e4)
    total = focal_sum(dense, random_assignment(targets, len(dense.priors.boxes)), targets, 0.25, 2.0)
    total.backward()
    assert total.isfinite() and leaves[0].grad is not None and leaves[0].grad.isfinite().all()


def test_iou_losses_are_zero_at_the_ground_truth_and_equal_torchvision() -> None:
    gt = slow.random_targets([20], 0).boxes
    moved = gt + torch.tensor([3.0, -2, 4, 1])
    for kind in ("iou", "linear_iou", "giou"):
        assert iou_loss(gt, gt, kind).abs().max() < 1e-4  # type: ignore[arg-type]
    torch.testing.assert_close(iou_loss(moved, gt, "giou"), tv.generalized_box_iou_loss(moved, gt))
    torch.testing.assert_close(iou_loss(moved, gt, "linear_iou"), 1 - tv.box_iou(moved, gt).diag())


def test_fcos_loss_equals_the_released_formula() -> None:
    targets = slow.random_targets([4, 0, 6], 0)
    dense = slow.dense_of(priors_of("points"), 3)
    assignment = random_assignment(targets, len(dense.priors.boxes))
    found = FocalIoU(iou="giou", regression_weight=2.0)(dense, assignment, targets)
    weights, losses, entropy = [], [], []
    assert dense.centerness is not None
    for image, prior in assignment.positive.nonzero().tolist():
        gt = targets.boxes[assignment.matched[image, prior]]
        x, y = dense.priors.points[prior].tolist()
        left, top, right, bottom = x - gt[0], y - gt[1], gt[2] - x, gt[3] - y
        inside = min(left, top, right, bottom) > 0
        central = torch.zeros(())
        if inside:
            central = (min(left, right) / max(left, right) * (min(top, bottom) / max(top, bottom))).sqrt()
        weights.append(central if inside else torch.tensor(OUTSIDE_WEIGHT))
        losses.append(tv.generalized_box_iou_loss(dense.boxes[image, prior], gt))
        entropy.append(F.binary_cross_entropy_with_logits(dense.centerness[image, prior], central))
    weight, loss = torch.stack(weights), torch.stack(losses)
    torch.testing.assert_close(found["regression"], 2 * (weight * loss).sum() / weight.sum())
    torch.testing.assert_close(found["centerness"], torch.stack(entropy).mean())


def test_retinanet_loss_equals_the_code_base() -> None:
    targets = slow.random_targets([4, 0, 6], 0)
    dense = slow.dense_of(priors_of("anchors"), 3)
    assignment = random_assignment(targets, len(dense.priors.boxes))
    found = FocalSmoothL1()(dense, assignment, targets)
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = targets.boxes[assignment.matched[image, prior]]
    error = (dense.deltas[image, prior] - boxes.encode_deltas(dense.priors.boxes[prior], gt)).abs()
    smooth = torch.where(error < 0.11, 0.5 * error**2 / 0.11, error - 0.055).sum()
    torch.testing.assert_close(found["regression"], smooth / (len(gt) * 4))
    each = tv.sigmoid_focal_loss(dense.logits, one_hot(dense, assignment, targets))
    expected = each[assignment.matched != IGNORE].sum() / (len(gt) + 3)
    torch.testing.assert_close(found["classification"], expected)


def test_with_points_smooth_l1_compares_corners_in_strides() -> None:
    targets = slow.random_targets([4, 6], 0)
    dense = slow.dense_of(priors_of("points"), 2)
    assignment = random_assignment(targets, len(dense.priors.boxes))
    found = FocalSmoothL1(beta=0.5)(dense, assignment, targets)["regression"]
    total, number = 0.0, 0
    for image, prior in assignment.positive.nonzero().tolist():
        stride = 2.0 ** (slow.LEVELS[0] + int(dense.priors.level[prior]))
        error = (dense.boxes[image, prior] - targets.boxes[assignment.matched[image, prior]]).abs() / stride
        total += float(torch.where(error < 0.5, error**2, error - 0.25).sum())
        number += 1
    assert found.item() == pytest.approx(0.25 * total / number, rel=1e-5)


def test_a_positive_outside_its_box_still_trains_its_regression() -> None:
    targets = Targets.from_lists([torch.tensor([[0.0, 0, 10, 10]])], [torch.tensor([0])])
    dense, leaves = with_gradient(slow.dense_of(priors_of("points"), 1))
    matched = torch.full((1, len(dense.priors.boxes)), BACKGROUND)
    matched[0, 100] = 0
    FocalIoU(iou="giou")(dense, Assignment(matched), targets)["regression"].backward()
    assert leaves[1].grad is not None and leaves[1].grad[0, 100].abs().sum() > 0


def test_the_normaliser_is_at_least_one() -> None:
    assert mean_over_ranks(torch.tensor(0)) == 1
    assert mean_over_ranks(torch.tensor(7)) == 7


def test_the_normaliser_is_the_mean_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without positives beside one with nine."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(9))
    own = torch.tensor(0.0)
    assert mean_over_ranks(own) == 4.5
    assert own == 0


CASES = {"usual": [4, 0, 6], "no ground truth": [0, 0], "crowd": [300]}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "grid"), EVERY)
def test_every_loss_is_finite_with_a_gradient_for_every_prediction(name: str, grid: str, case: str) -> None:
    targets = slow.random_targets(CASES[case], 0)
    dense, leaves = with_gradient(slow.dense_of(priors_of(grid), targets.num_images))
    assignment = random_assignment(targets, len(dense.priors.boxes))
    loss = build_part("slots.losses", Slot(name=name), "loss")
    try:
        terms = loss(dense, assignment, targets)
    except RecipeError:
        pytest.skip(f"{name} refuses {grid}")
    total = torch.stack(list(terms.values())).sum()
    assert total.isfinite()
    total.backward()
    logits, *regression, objectness = leaves
    assert logits.grad is not None
    # with objectness, it is that which background trains
    scores = [leaf.grad for leaf in (logits, objectness) if leaf.grad is not None]
    # a ranking without anything to rank first has no slope
    nothing = loss.ranks and case == "no ground truth"
    assert (sum(float(gradient.abs().sum()) for gradient in scores) > 0) != nothing
    # boxes or deltas, whichever the loss compares
    assert any(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in regression)


@pytest.mark.parametrize("name", parts.names("slots.losses"))
def test_degenerate_ground_truths_never_give_nan(name: str) -> None:
    empty = torch.tensor([[9.0, 9, 9, 9], [5, 9, 40, 9]])
    targets = Targets.from_lists([empty], [torch.tensor([0, 1])])
    dense, leaves = with_gradient(slow.dense_of(priors_of("anchors"), 1))
    dense.boxes.data[:, ::2] = torch.tensor([9.0, 9, 9, 9])
    assignment = random_assignment(targets, len(dense.priors.boxes))
    terms = build_part("slots.losses", Slot(name=name), "loss")(dense, assignment, targets)
    torch.stack(list(terms.values())).sum().backward()
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)
