"""YOLOv2's assignment and loss against the region layer of darknet, written out box by box, and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from detsearch_cli.detectors.yolov2 import decode
from detsearch_cli.errors import RecipeError
from detsearch_cli.slots.assigners.yolo import Yolo as Assign
from detsearch_cli.slots.losses.yolo import Yolo as Loss
from detsearch_cli.slots.losses.yolo import coordinate_warmup
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Priors, Targets
from tests.slots import _reference as slow

ROWS, COLUMNS, CLASSES = 4, 5, 3
SHAPES = [(12.0, 14.0), (30.0, 60.0), (70.0, 30.0), (60.0, 90.0), (120.0, 100.0)]
WIDTH, HEIGHT = COLUMNS * 32, ROWS * 32


def priors() -> Priors:
    return Shapes(shapes=SHAPES)([(ROWS, COLUMNS)], (5, 5))


def raw_outputs(num_images: int, seed: int = 0) -> Tensor:
    """(B, A, 4 + 1 + C) of the last convolution; sizes near the shapes, so that some predictions are good."""
    raw = torch.randn(
        num_images, ROWS * COLUMNS * 5, 5 + CLASSES, generator=torch.Generator().manual_seed(seed)
    )
    raw[..., 2:4] *= 0.2
    return raw


def dense_of(raw: Tensor) -> Dense:
    grid = priors()
    return Dense(
        maps=(raw[..., 5:],),
        boxes=decode(grid, raw[..., :4]),
        deltas=raw[..., :4],
        priors=grid,
        objectness=raw[..., 4],
    )


def objects_of(targets: Targets) -> Iterator[list[tuple[list[float], int]]]:
    """Box and class of every object, image by image."""
    for start, found in slow.per_image(targets):
        labels = targets.labels[start : start + len(found)].tolist()
        yield list(zip(found.tolist(), labels, strict=True))


def iou(a: list[float], b: list[float]) -> float:
    return float(tv.box_iou(torch.tensor([a]), torch.tensor([b])))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def predicted(raw: list[float], column: int, row: int, shape: tuple[float, float]) -> list[float]:
    x, y = (column + sigmoid(raw[0])) * 32, (row + sigmoid(raw[1])) * 32
    w, h = shape[0] * math.exp(raw[2]) / 2, shape[1] * math.exp(raw[3]) / 2
    return [x - w, y - h, x + w, y + h]


def box_delta(
    raw: list[float], truth: list[float], cell: tuple[int, int], n: int, scale: float
) -> list[float]:
    """What the layer writes for a box: wanted minus found, times the scale, through the sigmoid for x and y."""
    x, y = (truth[0] + truth[2]) / 64 - cell[0], (truth[1] + truth[3]) / 64 - cell[1]
    w, h = truth[2] - truth[0], truth[3] - truth[1]
    sx, sy = sigmoid(raw[0]), sigmoid(raw[1])
    return [
        scale * (x - sx) * sx * (1 - sx),
        scale * (y - sy) * sy * (1 - sy),
        scale * (math.log(w / SHAPES[n][0]) - raw[2]),
        scale * (math.log(h / SHAPES[n][1]) - raw[3]),
    ]


def region_layer(raw: Tensor, targets: Targets, *, early: bool) -> Tensor:
    """darknet's deltas (minus the gradients of its loss) for outputs (B, A, 4 + 1 + C), before its division by
    images; `early` while it has seen fewer than 12,800 images."""
    delta = torch.zeros_like(raw, dtype=torch.float64)
    for b, objects in enumerate(objects_of(targets)):
        for place in range(raw.shape[1]):
            cell, n = place // 5, place % 5
            column, row = cell % COLUMNS, cell // COLUMNS
            own = raw[b, place].double().tolist()
            box = predicted(own, column, row, SHAPES[n])
            score = sigmoid(own[4])
            delta[b, place, 4] = (0 - score) * score * (1 - score)
            if max((iou(box, truth) for truth, _ in objects), default=0.0) > 0.6:
                delta[b, place, 4] = 0
            if early:
                middle = [(column + 0.5) * 32, (row + 0.5) * 32]
                half = [side / 2 for side in SHAPES[n]]
                anchor = [middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]]
                delta[b, place, :4] = torch.tensor(box_delta(own, anchor, (column, row), n, 0.01))
        for truth, label in objects:
            column, row = int((truth[0] + truth[2]) / 64), int((truth[1] + truth[3]) / 64)
            w, h = truth[2] - truth[0], truth[3] - truth[1]
            likeness = [iou([0, 0, w, h], [0, 0, *shape]) for shape in SHAPES]
            n = likeness.index(max(likeness))
            place = (row * COLUMNS + column) * 5 + n
            own = raw[b, place].double().tolist()
            factor = 2 - w * h / (WIDTH * HEIGHT)
            delta[b, place, :4] = torch.tensor(box_delta(own, truth, (column, row), n, factor))
            score, overlap = sigmoid(own[4]), iou(predicted(own, column, row, SHAPES[n]), truth)
            delta[b, place, 4] = 5 * (overlap - score) * score * (1 - score)
            wanted = torch.eye(CLASSES)[label].double()
            delta[b, place, 5:] = wanted - raw[b, place, 5:].double().softmax(0)
    return delta


def gradient(raw: Tensor, targets: Targets, *, early: bool) -> Tensor:
    leaf = raw.clone().requires_grad_()
    dense = dense_of(leaf)
    assignment = Assign()(dense.detached(), targets)
    terms = Loss()(dense, assignment, targets)
    if early:
        terms["warmup"] = coordinate_warmup(dense, assignment, 0.01)
    torch.stack(list(terms.values())).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def near_predictions(raw: Tensor, every: int) -> Targets:
    """Objects close to every so manieth predicted box, clipped: many are found well by priors not their own."""
    limit = torch.tensor([WIDTH - 1.0, HEIGHT - 1, WIDTH, HEIGHT])
    found = [(own[::every] + 2).clamp(min=0).minimum(limit) for own in dense_of(raw).boxes]
    whole = [own[(own[:, 2:] - own[:, :2]).amin(1) > 2] for own in found]
    return Targets.from_lists(whole, [torch.arange(len(own)) % CLASSES for own in whole])


CASES = {
    "usual": lambda raw: slow.random_targets([4, 7], 5, WIDTH, HEIGHT),
    "an image without any": lambda raw: slow.random_targets([0, 7], 5, WIDTH, HEIGHT),
    "none": lambda raw: slow.random_targets([0, 0], 5, WIDTH, HEIGHT),
    "crowd": lambda raw: slow.random_targets([60, 1], 5, WIDTH, HEIGHT),
    "near predictions": lambda raw: near_predictions(raw, 7),
}


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_darknets(case: str, early: bool) -> None:
    raw = raw_outputs(2)
    targets = CASES[case](raw)
    expected = -region_layer(raw, targets, early=early) / 2
    torch.testing.assert_close(gradient(raw, targets, early=early).double(), expected, rtol=1e-4, atol=1e-6)


def test_the_cases_above_hold_ignored_priors_and_rivals_for_one() -> None:
    raw = raw_outputs(2)
    matched = Assign()(dense_of(raw), CASES["near predictions"](raw)).matched
    assert (matched == IGNORE).sum() >= 5 and (matched == BACKGROUND).any()
    assert 0 < (Assign()(dense_of(raw), CASES["crowd"](raw)).matched >= 0).sum() < 61


def one_object(box: list[float], **options: object) -> int:
    """The prior that serves the only object of an image."""
    targets = Targets.from_lists([torch.tensor([box])], [torch.tensor([0])])
    found = Assign.model_validate(options)(dense_of(raw_outputs(1)), targets).positive.nonzero()
    assert len(found) == 1
    return int(found[0, 1])


def test_an_object_goes_to_the_cell_of_its_centre_and_the_shape_most_like_it() -> None:
    assert one_object([10, 70, 40, 130]) == (3 * COLUMNS + 0) * 5 + 1  # 30 x 60 at (25, 100)
    assert one_object([96, 0, 108, 14]) == (0 * COLUMNS + 3) * 5 + 0


def test_centres_outside_the_image_keep_to_the_last_cell() -> None:
    assert one_object([WIDTH - 6, HEIGHT - 7, WIDTH + 6, HEIGHT + 7]) == (3 * COLUMNS + 4) * 5
    assert one_object([-900, -900, 300, 300]) == 4


def test_either_distance_chooses_as_written_out_and_they_do_not_always_agree() -> None:
    shapes, differ = torch.tensor(SHAPES), 0
    for width, height in ((20.0, 20.0), (30.0, 20.0), (60.0, 50.0), (80.0, 110.0), (110.0, 50.0)):
        size = torch.tensor([width, height])
        by_log = int((shapes.log() - size.log()).norm(dim=1).argmin())
        by_iou = int(
            tv.box_iou(torch.cat((0 * size, size))[None], torch.cat((0 * shapes, shapes), 1)).argmax()
        )
        box = [80 - width / 2, 80 - height / 2, 80 + width / 2, 80 + height / 2]
        assert one_object(box, distance="log_l2") % 5 == by_log
        assert one_object(box) % 5 == by_iou
        differ += by_log != by_iou
    assert differ


def test_of_two_objects_of_one_prior_the_last_is_served_wherever_it_stands() -> None:
    box = torch.tensor([[10.0, 70, 40, 130], [11, 72, 41, 132]])
    for order in ([0, 1], [1, 0]):
        targets = Targets.from_lists([box[order]], [torch.tensor([0, 1])])
        matched = Assign()(dense_of(raw_outputs(1)), targets).matched
        assert matched.max() == 1 and (matched >= 0).sum() == 1


def test_an_empty_box_gets_no_prior_and_changes_nothing() -> None:
    whole = torch.tensor([[10.0, 70, 40, 130]])
    empty = torch.tensor([[20.0, 100, 20, 100], [5, 9, 5, 40]])
    dense = dense_of(raw_outputs(1))
    alone = Assign()(dense, Targets.from_lists([whole], [torch.tensor([0])])).matched
    both = Assign()(dense, Targets.from_lists([torch.cat((whole, empty))], [torch.zeros(3).long()])).matched
    assert torch.equal(alone, both)


def test_a_prediction_that_overlaps_an_object_of_another_image_only_is_background() -> None:
    raw = torch.zeros(2, ROWS * COLUMNS * 5, 5 + CLASSES)
    place = (2 * COLUMNS + 2) * 5 + 1
    box = dense_of(raw).boxes[0, place : place + 1].detach()
    targets = Targets.from_lists([box, box[:0]], [torch.tensor([0]), torch.tensor([]).long()])
    matched = Assign()(dense_of(raw), targets).matched
    assert matched[0, place] == 0 and (matched[1] == BACKGROUND).all()


def test_several_levels_are_searched_for_the_best_shape() -> None:
    grid = Shapes(shapes=[[(10.0, 10.0)], [(100.0, 100.0)]])([(16, 20), (8, 10)], (3, 4))
    dense = slow.dense_of(grid, 1)
    box = torch.tensor([[100.0, 50, 112, 60], [10, 10, 110, 100]])
    found = Assign()(dense, Targets.from_lists([box], [torch.tensor([0, 1])])).matched[0]
    assert found[6 * 20 + 13] == 0 and found[16 * 20 + 3 * 10 + 3] == 1


def test_points_are_refused_with_the_remedy() -> None:
    dense = slow.dense_of(Points()(slow.SIZES, slow.LEVELS), 1)
    with pytest.raises(RecipeError, match="compares shapes of anchors, got points"):
        Assign()(dense, slow.random_targets([1], 0))
    without = Dense(dense.maps, dense.boxes, dense.deltas, dense.priors)
    with pytest.raises(RecipeError, match="needs a detector with objectness"):
        Loss()(
            without,
            Assignment.background(1, dense.boxes.shape[1], dense.boxes.device),
            slow.random_targets([0], 0),
        )


def test_each_weight_scales_its_own_term_and_switches_do_what_they_say() -> None:
    targets, raw = slow.random_targets([5], 1, WIDTH, HEIGHT), raw_outputs(1)
    dense = dense_of(raw)
    assignment = Assign()(dense, targets)
    base = Loss()(dense, assignment, targets)
    for option, term in (("coordinate_weight", "regression"), ("class_weight", "classification")):
        found = Loss.model_validate({option: 3})(dense, assignment, targets)
        torch.testing.assert_close(found, base | {term: 3 * base[term]})
    objects = Loss(background_weight=0)(dense, assignment, targets)["objectness"]
    background = Loss(object_weight=0)(dense, assignment, targets)["objectness"]
    torch.testing.assert_close(objects + background, base["objectness"])
    certain = Loss(background_weight=0, rescore=False)(dense, assignment, targets)["objectness"]
    torch.testing.assert_close(
        certain, 2.5 * (1 - dense.objectness.sigmoid()[assignment.positive]).square().sum()
    )  # type: ignore[union-attr]
    assert Loss(small_boxes=False)(dense, assignment, targets)["regression"] < base["regression"]


def test_only_sizes_send_a_gradient_to_the_shapes_and_it_is_equation_9() -> None:
    targets, raw = slow.random_targets([6, 3], 2, WIDTH, HEIGHT), raw_outputs(2)
    log_shapes = torch.tensor(SHAPES).log().requires_grad_()
    dense = dense_of(raw)
    half = (log_shapes.exp() / 2).repeat(ROWS * COLUMNS, 1)
    boxes = torch.cat((dense.priors.points - half, dense.priors.points + half), 1)
    assignment = Assign()(dense, targets)
    learning = replace(dense, priors=replace(dense.priors, boxes=boxes))
    torch.stack(list(Loss(small_boxes=False)(learning, assignment, targets).values())).sum().backward()
    expected = torch.zeros(5, 2)
    for image, place in assignment.positive.nonzero().tolist():
        truth = targets.boxes[assignment.matched[image, place]]
        error = raw[image, place, 2:4] + log_shapes[place % 5] - (truth[2:] - truth[:2]).log()
        expected[place % 5] += error.detach() / 2  # two images
    assert log_shapes.grad is not None
    torch.testing.assert_close(log_shapes.grad, expected)
