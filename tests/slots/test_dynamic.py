"""The dynamic assigner against Algorithm 2 in plain Python, and what it promises besides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import detsearch_kernels as kernels
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.assigners import _candidates, _keep
from detsearch_cli.slots.assigners.dynamic import Dynamic
from detsearch_cli.structures import Dense, Priors, Targets
from tests.slots import dynamic_reference as reference

RANGES = [(-1.0, 32.0), (32.0, 64.0), (64.0, float("inf"))]
SIZE = 96
COUNTS = ((2, 5, 3), (4, 7, 1), (6, 3, 9))


@pytest.fixture(autouse=True, scope="module")
def without_kernels() -> Iterator[None]:
    """What is compiled is compared with this in tests/kernels."""
    kernels.use("off")
    yield
    kernels.use("auto")


def grid(points: bool, shapes: int = 3) -> Priors:
    """Strides 8, 16, 32 over SIZE x SIZE: one point a cell, or `shapes` anchors a cell."""
    centres, boxes, level, counts = [], [], [], []
    for i, stride in enumerate((8, 16, 32)):
        cells = torch.arange(SIZE // stride) * stride + stride / 2
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        at = torch.stack([x, y], -1).reshape(-1, 1, 2)
        ratios = torch.tensor([1.0]) if points else torch.tensor([1.0, 0.5, 2.0])[:shapes]
        half = torch.stack([ratios**-0.5, ratios**0.5], -1) * stride * (0.5 if points else 2)
        boxes.append(torch.cat([at - half, at + half], -1).reshape(-1, 4))
        centres.append(at.expand(-1, len(ratios), -1).reshape(-1, 2))
        counts.append(len(boxes[-1]))
        level.append(torch.full((counts[-1],), i))
    ranges = torch.tensor(RANGES) if points else None
    return Priors(
        torch.cat(boxes),
        torch.cat(centres),
        torch.cat(level),
        torch.tensor([8, 16, 32]),
        tuple(counts),
        ranges,
    )


def predict(priors: Priors, images: int, classes: int, seed: int) -> Dense:
    g = torch.Generator().manual_seed(seed)
    shape = (images, len(priors.boxes))
    boxes = priors.boxes + torch.randn(*shape, 4, generator=g) * 6
    boxes = torch.cat(
        [torch.minimum(boxes[..., :2], boxes[..., 2:]), boxes[..., :2].maximum(boxes[..., 2:])], -1
    )
    return Dense((torch.randn(*shape, classes, generator=g) * 2 - 2,), boxes, torch.zeros(*shape, 4), priors)


def random_targets(
    per_image: list[int], classes: int, seed: int, side: tuple[float, float] = (6, 90)
) -> Targets:
    rng = np.random.default_rng(seed)
    boxes, labels = [], []
    for n in per_image:
        wh = np.exp(rng.uniform(np.log(side[0]), np.log(side[1]), (n, 2)))
        at = rng.uniform(0, SIZE, (n, 2))
        boxes.append(
            torch.tensor(np.concatenate([at - wh / 2, at + wh / 2], 1), dtype=torch.float32).reshape(-1, 4)
        )
        labels.append(torch.tensor(rng.integers(0, classes, n)))
    return Targets.from_lists(boxes, labels)


def by_image(dense: Dense, targets: Targets, assigner: Dynamic):
    """What the reference says of every image: (first row, owners before serving, losses)."""
    p = dense.priors
    for i, (start, end) in enumerate(
        zip(targets.splits[:-1].tolist(), targets.splits[1:].tolist(), strict=True)
    ):
        scene = reference.Scene(
            p.boxes.double().numpy(),
            p.points.double().numpy(),
            p.level.numpy(),
            None if p.ranges is None else RANGES,
            dense.logits[i].double().numpy(),
            dense.boxes[i].double().numpy(),
        )
        owner, loss = reference.assign(
            scene,
            targets.boxes[start:end].double().tolist(),
            targets.labels[start:end].tolist(),
            assigner.counts,
            assigner.edge_rows(),
            assigner.alpha,
            assigner.min_iou,
        )
        yield start, owner, loss


def as_matched(owners: list[tuple[int, dict[int, int]]], num_priors: int) -> torch.Tensor:
    matched = torch.full((len(owners), num_priors), -1)
    for i, (start, owner) in enumerate(owners):
        for prior, g in owner.items():
            matched[i, prior] = start + g
    return matched


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("per_image", [[0, 0], [1], [3, 0, 12, 1], [40, 0, 25], [0, 7]])
@pytest.mark.parametrize("counts", [COUNTS, ((4,),), ((3, 9, 2, 5, 1),)])
def test_the_batch_equals_algorithm_2_image_by_image(points, per_image, counts):
    dense = predict(grid(points), len(per_image), 4, seed=sum(per_image))
    targets = random_targets(per_image, 4, seed=7 + len(per_image))
    assigner = Dynamic(counts=counts)
    owners = [(s, reference.serve(o, loss)) for s, o, loss in by_image(dense, targets, assigner)]
    assert torch.equal(assigner(dense, targets).matched, as_matched(owners, len(dense.priors.boxes)))


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("count", [1, 6])
def test_three_hundred_ground_truths_in_one_image_equal_algorithm_2_but_for_who_was_orphaned(points, count):
    dense = predict(grid(points), 1, 2, seed=3)
    targets = random_targets([300], 2, seed=3)
    assigner = Dynamic(counts=((count,),))
    ((_, owner, loss),) = by_image(dense, targets, assigner)
    matched = assigner(dense, targets).matched[0]
    found = {a: int(matched[a]) for a in torch.nonzero(matched >= 0).flatten().tolist()}
    assert all(a in loss[g] for a, g in found.items())
    assert len(set(found.values())) == reference.most_with_a_prior(loss)
    moved = {g for a, g in found.items() if owner.get(a) != g}  # those who were served, or moved to serve
    lost = {a for a, g in owner.items() if found.get(a) != g}
    assert all(sum(g == h for h in found.values()) == 1 for g in moved)
    assert all(a in found for a in lost)  # a positive prior never falls back to background


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30), count=st.integers(1, 12), points=st.booleans())
def test_every_ground_truth_with_a_candidate_keeps_a_positive_wherever_an_assignment_allows_it(
    seed, n, count, points
):
    dense = predict(grid(points, shapes=1), 1, 2, seed)
    targets = random_targets([n], 2, seed, side=(4, 24))  # crowded: few candidates, many conflicts
    assigner = Dynamic(counts=((count,),))
    ((_, _, loss),) = by_image(dense, targets, assigner)
    matched = assigner(dense, targets).matched
    owners = set(matched[matched >= 0].tolist())
    assert len(owners) == reference.most_with_a_prior(loss)
    for prior in torch.nonzero(matched[0] >= 0).flatten().tolist():
        assert prior in loss[int(matched[0, prior])]


def test_identical_boxes_share_their_candidates_until_none_is_left():
    priors = grid(points=True)
    dense = predict(priors, 1, 2, seed=0)
    box = torch.tensor([[20.0, 20, 50, 50]])
    available = int(Dynamic().explain(priors, box).candidates)
    for n in (available - 1, available, available + 5):
        targets = Targets.from_lists([box.expand(n, 4)], [torch.zeros(n, dtype=torch.int64)])
        matched = Dynamic(counts=((4,),))(dense, targets).matched
        assert len(set(matched[matched >= 0].tolist())) == min(n, available)


def test_three_hundred_identical_anchors_boxes_keep_one_each_while_candidates_last():
    priors = grid(points=False)
    box = torch.tensor([[10.0, 10, 90, 90]])
    available = int(Dynamic().explain(priors, box).candidates)
    targets = Targets.from_lists([box.expand(300, 4)], [torch.zeros(300, dtype=torch.int64)])
    matched = Dynamic()(predict(priors, 1, 1, 0), targets).matched
    assert len(set(matched[matched >= 0].tolist())) == min(300, available)


def chain(owner: list[int], wanted: dict[int, list[int]]) -> list[int]:
    """serve_orphans on candidates {gt: priors, lowest loss first}; -> owner of every prior."""
    gt = torch.tensor([g for g in sorted(wanted) for _ in wanted[g]])
    prior = torch.tensor([p for g in sorted(wanted) for p in wanted[g]])
    loss = torch.tensor([float(i) for g in sorted(wanted) for i in range(len(wanted[g]))])
    result = torch.tensor(owner)
    _keep.serve_orphans(result, max(wanted) + 1, gt, prior, loss)
    return result.tolist()


def test_an_orphan_moves_sole_owners_along_a_chain_to_a_free_prior():
    # 2 wants only prior 0; its owner 0 can move to prior 1, whose owner 1 can move to prior 2.
    assert chain([0, 1, -1], {0: [0, 1], 1: [1, 2], 2: [0]}) == [2, 0, 1]


def test_a_chain_may_end_at_an_owner_with_two_positives():
    assert chain([0, 1, 1], {0: [0, 1], 1: [1, 2], 2: [0]}) == [2, 0, 1]


def test_an_orphan_takes_background_before_it_moves_anybody():
    assert chain([0, -1], {0: [0, 1], 1: [0, 1]}) == [0, 1]


def test_an_owner_gives_up_at_most_one_positive_a_round_and_never_its_last():
    assert sorted(chain([0, 0, 0], {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2], 3: [0, 1, 2]})) == [0, 1, 2]


def test_what_is_impossible_leaves_the_others_as_they_were():
    assert chain([0, -1], {0: [0], 1: [0], 2: [0]}) == [0, -1]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=9),
    st.lists(st.integers(-1, 8), min_size=7, max_size=7),
)
def test_serving_reaches_the_maximum_matching_from_any_start(wanted, start):
    owner = [g if 0 <= g < len(wanted) and p in wanted[g] else -1 for p, g in enumerate(start)]
    candidates = {g: sorted(w) for g, w in enumerate(wanted)}
    before = {g for g in owner if g >= 0}
    if not any(candidates.values()):
        return
    after = chain(owner, candidates)
    assert len({g for g in after if g >= 0}) == reference.most_with_a_prior(
        {g: dict.fromkeys(w, 0.0) for g, w in candidates.items()}
    )
    assert before <= {g for g in after if g >= 0}
    assert all(g < 0 or p in wanted[g] for p, g in enumerate(after))


@pytest.mark.parametrize("points", [True, False])
def test_counts_are_respected_by_level_and_bin_where_nothing_conflicts(points):
    boxes = torch.tensor([[8.0, 8, 38, 38], [8, 8, 14, 38], [8, 8, 38, 14], [4, 4, 92, 92], [4, 4, 90, 30]])
    assigner = Dynamic(counts=COUNTS)
    dense = predict(grid(points), 1, 1, seed=1)
    for box in boxes.split(1):
        groups = assigner.explain(dense.priors, box)
        matched = assigner(dense, Targets.from_lists([box], [torch.zeros(1, dtype=torch.int64)])).matched
        assert int(groups.count) == COUNTS[int(groups.level)][int(groups.bin)]
        assert int((matched == 0).sum()) == min(int(groups.count), int(groups.candidates))


def test_fewer_candidates_than_the_count_are_all_positive_and_nothing_else_is():
    dense = predict(grid(points=True), 1, 1, seed=1)
    box = torch.tensor([[10.0, 10, 30, 30]])
    matched = Dynamic(counts=((80,),))(dense, Targets.from_lists([box], [torch.tensor([0])])).matched[0]
    inside = (dense.priors.points > 10).all(1) & (dense.priors.points < 30).all(1) & (dense.priors.level == 0)
    assert torch.equal(matched == 0, inside)


def test_a_ground_truth_without_candidates_gets_nothing_and_takes_nothing():
    dense = predict(grid(points=False), 1, 1, seed=1)
    tiny, normal = torch.tensor([[40.0, 40, 41, 41]]), torch.tensor([[20.0, 20, 60, 60]])
    zero = torch.zeros(1, dtype=torch.int64)
    alone = Dynamic()(dense, Targets.from_lists([normal], [zero])).matched
    both = Dynamic()(dense, Targets.from_lists([torch.cat([normal, tiny])], [zero.repeat(2)])).matched
    assert torch.equal(alone, both)
    assert Dynamic().explain(dense.priors, tiny).level.item() == -1


@pytest.mark.parametrize(
    ("height", "bin_of_three", "bin_of_five"),
    [(4, 0, 0), (5, 0, 1), (8, 0, 1), (9, 1, 2), (32, 1, 2), (33, 2, 3), (64, 2, 3), (65, 2, 4)],
)
def test_aspect_is_height_over_width_and_bins_hold_their_upper_edge(height, bin_of_three, bin_of_five):
    box = torch.tensor([[16.0, 16, 32, 16 + height]])
    assert Dynamic(counts=((1, 1, 1),)).explain(grid(True), box).bin.item() == bin_of_three
    assert Dynamic(counts=((1, 1, 1, 1, 1),)).explain(grid(True), box).bin.item() == bin_of_five


@pytest.mark.parametrize(("side", "level"), [(64.0, 0), (65.0, 1), (128.0, 1), (129.0, 2), (4000.0, 2)])
def test_the_level_of_points_holds_half_the_long_side(side, level):
    assert Dynamic().explain(grid(True), torch.tensor([[0.0, 0, side, 9]])).level.item() == level


def test_ties_go_to_the_lower_prior_and_a_contested_prior_to_the_lower_ground_truth():
    dense = predict(grid(points=True), 1, 1, seed=0)
    box = torch.tensor([[0.0, 0, 60, 60]])
    flat = dataclasses.replace(
        dense, maps=(torch.zeros_like(dense.logits),), boxes=box.expand(1, len(dense.priors.boxes), 4)
    )
    one = Dynamic(counts=((5,),))(flat, Targets.from_lists([box], [torch.tensor([0])])).matched[0]
    allowed = torch.nonzero(
        Dynamic(counts=((99,),))(flat, Targets.from_lists([box], [torch.tensor([0])])).matched[0] == 0
    )
    assert torch.equal(torch.nonzero(one == 0), allowed[:5])
    two = Dynamic(counts=((5,),))(
        flat, Targets.from_lists([box.expand(2, 4)], [torch.tensor([0, 0])])
    ).matched[0]
    # Row 0 wins all five; row 1 then takes the lowest prior row 0 can spare.
    assert two[allowed[:5, 0]].tolist() == [1, 0, 0, 0, 0]


def test_the_level_of_anchors_is_that_of_the_first_of_equal_overlaps():
    base = grid(points=False, shapes=1)
    twice = Priors(
        base.boxes[:1].expand(70, 4),
        base.points[:1].expand(70, 2),
        torch.arange(70).flip(0) // 35,
        torch.tensor([8, 16]),
        (35, 35),
    )
    assert Dynamic().explain(twice, base.boxes[:1]).level.item() == 1


def test_alpha_weighs_localisation_against_classification():
    dense = predict(grid(points=True), 1, 1, seed=0)
    box = torch.tensor([[10.0, 10, 50, 50]])
    target = Targets.from_lists([box], [torch.tensor([0])])
    a, b = torch.nonzero(Dynamic(counts=((99,),))(dense, target).matched[0] == 0)[:2, 0].tolist()
    logits, boxes = (
        torch.full_like(dense.logits, -9),
        (box + 30).expand(1, len(dense.priors.boxes), 4).clone(),
    )
    logits[0, a], boxes[0, b] = 3.0, box[0]  # a is sure of the class, b has the box
    dense = dataclasses.replace(dense, maps=(logits,), boxes=boxes)
    assert torch.nonzero(Dynamic(counts=((1,),), alpha=0.0)(dense, target).matched[0] == 0).item() == a
    assert torch.nonzero(Dynamic(counts=((1,),), alpha=9.0)(dense, target).matched[0] == 0).item() == b


def test_small_pieces_of_work_change_nothing(monkeypatch):
    dense, targets = predict(grid(False), 3, 4, seed=5), random_targets([20, 0, 30], 4, seed=5)
    whole = Dynamic(counts=COUNTS)(dense, targets).matched
    monkeypatch.setattr(_candidates, "BUDGET", 64)
    monkeypatch.setattr("detsearch_cli.slots.assigners.dynamic.CPU_PIECE", 8)
    assert torch.equal(whole, Dynamic(counts=COUNTS)(dense, targets).matched)


def test_no_gradient_flows_and_predictions_stay_as_they_were():
    dense, targets = predict(grid(True), 1, 2, seed=5), random_targets([6], 2, seed=5)
    logits, boxes = dense.logits.clone().requires_grad_(), dense.boxes.clone().requires_grad_()
    matched = Dynamic()(dataclasses.replace(dense, maps=(logits,), boxes=boxes), targets).matched
    assert not matched.requires_grad
    assert torch.equal(logits.detach(), dense.logits) and torch.equal(boxes.detach(), dense.boxes)


@pytest.mark.parametrize("points", [True, False])
def test_bfloat16_predictions_are_judged_in_float32(points):
    dense, targets = predict(grid(points), 2, 3, seed=8), random_targets([5, 9], 3, seed=8)
    half = dataclasses.replace(dense, maps=(dense.logits.bfloat16(),), boxes=dense.boxes.bfloat16())
    full = dataclasses.replace(half, maps=(half.logits.float(),), boxes=half.boxes.float())
    assert torch.equal(Dynamic()(half, targets).matched, Dynamic()(full, targets).matched)


def test_extreme_logits_still_order_and_never_break():
    dense, targets = predict(grid(True), 1, 2, seed=8), random_targets([5], 2, seed=8, side=(20, 60))
    wild = dataclasses.replace(dense, maps=(dense.logits * 1e4,))
    assert int(Dynamic()(wild, targets).positive.sum()) == int(Dynamic()(dense, targets).positive.sum())


def test_the_same_input_gives_the_same_assignment():
    dense, targets = predict(grid(False), 2, 3, seed=1), random_targets([60, 60], 3, seed=1)
    first = Dynamic(counts=COUNTS)(dense, targets).matched
    assert all(torch.equal(first, Dynamic(counts=COUNTS)(dense, targets).matched) for _ in range(3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"counts": [[3, 0, 3]]}, "greater than or equal to 1"),
        ({"counts": []}, "at least 1"),
        ({"counts": [[1, 2]]}, "a row of 2 bins needs edges"),
        ({"counts": [[1, 2]], "edges": [0.5, 2.0]}, "2 bins need 1 edges"),
        ({"counts": [[1, 2, 3]], "edges": [2.0, 0.5]}, "ascending"),
        ({"counts": [[1, 2, 3]], "edges": [-1.0, 0.5]}, "positive"),
        ({"counts": [[1], [1], [1]], "edges": [[], []]}, "must be one list or have the 3 rows"),
        ({"alpha": -1}, "greater than or equal to 0"),
        ({"counts": [[1]], "topk": 3}, "extra"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_rule(options, says):
    with pytest.raises(ValidationError, match=says):
        Dynamic.model_validate(options)


def test_rows_may_differ_in_bins_and_have_their_own_edges():
    assigner = Dynamic(counts=[[1], [2, 3], [4, 5, 6]], edges=[[], [1.0], [0.5, 2.0]])
    groups = assigner.explain(grid(True), torch.tensor([[0.0, 0, 20, 20], [0, 0, 50, 80], [0, 0, 400, 10]]))
    assert groups.count.tolist() == [1, 3, 4]
    assert Dynamic(counts=[[1], [2, 3]], edges=[1.0]).edge_rows() == ((), (1.0,))


def test_rows_that_do_not_fit_the_pyramid_name_the_key():
    with pytest.raises(
        RecipeError, match=r"assign\.counts must have one row for each of the detector's 3 levels"
    ):
        Dynamic(counts=COUNTS[:2])(predict(grid(True), 1, 2, 0), random_targets([1], 2, 0))
    Dynamic(counts=COUNTS).check(3)
    Dynamic(counts=COUNTS[:1]).check(3)
