"""Losses that are written down, against the whole matrix under autograd, torchvision and hand-made losses."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.detectors import build
from detsearch_cli.errors import RecipeError
from detsearch_cli.formulas import library
from detsearch_cli.formulas.drawing import random_formula
from detsearch_cli.formulas.language import ONE_STAGE, REGRESSION, TWO_STAGE
from detsearch_cli.formulas.reading import parse
from detsearch_cli.recipe import Slot, build_part
from detsearch_cli.slots.losses.cross_entropy import CrossEntropy
from detsearch_cli.slots.losses.focal_iou import FocalIoU
from detsearch_cli.slots.losses.formula import Formula
from detsearch_cli.structures import IGNORE, Assignment, Dense, Targets
from tests.formulas.strategies import in_torch
from tests.recipes import small
from tests.slots.test_parameterized_ap import case


def iou_of(dense: Dense, assignment: Assignment, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Image and prior of the positives, and the IoU of their boxes."""
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = targets.boxes[assignment.matched[image, prior]]
    return image, prior, boxes.iou(dense.boxes[image, prior], gt).detach().clamp(1e-7, 1)


def matrix(text: str, alpha: float, dense: Dense, assignment: Assignment, targets: Targets) -> Tensor:
    """The formula of every logit, weighted, over the number of positives."""
    image, prior, overlap = iou_of(dense, assignment, targets)
    label = targets.labels[assignment.matched[image, prior]]
    y, w = torch.zeros_like(dense.logits), torch.ones_like(dense.logits)
    y = y.index_put((image, prior, label), torch.ones_like(overlap))
    w = w.index_put((image, prior, label), overlap)
    each = in_torch(parse(text, ONE_STAGE), {"x": dense.logits, "y": y, "w": w})
    each = each * torch.where(y > 0, alpha, 1 - alpha)
    return each[assignment.matched != IGNORE].sum() / max(1, len(image))


def drawn(seed: int) -> list[str]:
    """Random formulas that are finite, with a slope, on the values of `case`."""
    rng, found = random.Random(seed), []
    while len(found) < 25:
        text = random_formula(rng, ONE_STAGE, 4).text
        dense, assignment, targets, (logits, _) = case(0)
        expected = matrix(text, 0.25, dense, assignment, targets)
        if "x" in text and expected.isfinite() and expected.requires_grad:
            (slope,) = torch.autograd.grad(expected, logits, allow_unused=True)
            if slope is not None and slope.isfinite().all() and slope.abs().max() < 1e6:
                found.append(text)
    return found


@pytest.mark.parametrize("text", [*library.names(ONE_STAGE), *drawn(0)])
def test_classes_equal_the_matrix_under_autograd(text: str) -> None:
    said = library.CLASSIFICATION[text][1] if text in library.CLASSIFICATION else text
    dense, assignment, targets, (logits, _) = case(1)
    expected = matrix(said, 0.25, dense, assignment, targets)
    wanted = torch.autograd.grad(expected, logits)[0]
    found = Formula(cls=text)(dense, assignment, targets)["classification"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("priors", [1, 2])
def test_levels_are_read_where_a_head_wrote_them(memory: torch.memory_format, priors: int) -> None:
    from detsearch_cli.slots.priors.anchors import Anchors
    from tests.slots import _reference as slow

    grid = Anchors(scales=1, ratios=(1.0, 2.0)[:priors])(slow.SIZES, slow.LEVELS)
    generator = torch.Generator().manual_seed(3)
    maps = [
        torch.randn((2, priors * 3, *size), generator=generator)
        .contiguous(memory_format=memory)
        .requires_grad_()
        for size in slow.SIZES
    ]
    targets = slow.random_targets([4, 3], 0)
    targets = Targets(targets.boxes, targets.labels % 3, targets.splits)
    number = len(grid.boxes)
    matched = torch.randint(-2, 1, (2, number), generator=generator)
    matched[1] += (matched[1] >= 0) * 4
    spread = torch.rand((2, number, 4), generator=generator).sort(-1).values[..., [0, 1, 2, 3]] * 60
    joined = Dense(tuple(maps), spread, spread, grid)
    found = Formula(cls="cse_b")(joined, Assignment(matched), targets)["classification"]
    text = library.CLASSIFICATION["cse_b"][1]
    expected = matrix(text, 0.25, joined, Assignment(matched), targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(found, maps), torch.autograd.grad(expected, maps), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


def test_the_focal_loss_as_a_formula_is_torchvisions_and_ours() -> None:
    dense, assignment, targets, (logits, predicted) = case(2)
    terms = Formula(cls="focal", reg="giou")(dense, assignment, targets)
    own = FocalIoU(iou="giou")(dense, assignment, targets)
    assert set(terms) == set(own) == {"classification", "regression"}
    for name, term in terms.items():
        torch.testing.assert_close(term, own[name], rtol=1e-6, atol=1e-9)
    every = torch.autograd.grad(sum(terms.values()), (logits, predicted))  # type: ignore[arg-type]
    theirs = torch.autograd.grad(sum(own.values()), (logits, predicted))  # type: ignore[arg-type]
    for mine, other in zip(every, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-9)


BOXES = {
    "iou": lambda i, u, e: 1 - i / u,
    "ln_iou": lambda i, u, e: -(i / u).log(),
    "giou": lambda i, u, e: 1 - i / u + (e - u) / e,
    "cse_a": lambda i, u, e: 2 - i / u - (i + 2) / e,
    "cse_b": lambda i, u, e: (
        (3 * e * u + 12 * e + 3 * i + 3 * u + 18) / (-3 * e * u + i * u + u**2 - 15 * e + 5 * i + 5 * u)
    ),
}


@pytest.mark.parametrize("area", ["px", "stride"])
@pytest.mark.parametrize("name", BOXES)
def test_box_formulas_are_of_areas_in_the_unit_asked_for(name: str, area: Any) -> None:
    dense, assignment, targets, (_, predicted) = case(3)
    image, prior = assignment.positive.nonzero(as_tuple=True)
    a, b = dense.boxes[image, prior], targets.boxes[assignment.matched[image, prior]]
    side = (
        dense.priors.strides[dense.priors.level[prior]].double() if area == "stride" else torch.ones(len(a))
    )
    sizes = ((torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)).prod(1)
    union = (a[:, 2:] - a[:, :2]).clamp(min=0).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - sizes
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    i, u, e = (x / side**2 for x in (sizes, union, around))
    each = BOXES[name](i, u + 1e-7, e + 1e-7)
    if name == "ln_iou":  # the formula's logarithm adds 1e-20
        each = torch.where(i > 0, each, 20 * math.log(10))
    found = Formula(reg=name, area=area)(dense, assignment, targets)["regression"]
    torch.testing.assert_close(found, each.mean(), rtol=1e-9, atol=1e-9)
    assert torch.autograd.grad(found, predicted)[0][image, prior].isfinite().all()


def regions(seed: int) -> tuple[Dense, Assignment, Targets, list[Tensor]]:
    """The predictions of `case` with a logit for background, as a second stage hands them over."""
    dense, assignment, targets, (_, predicted) = case(seed)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(
        (*dense.logits.shape[:2], 4), generator=generator, dtype=torch.float64
    ).requires_grad_()
    return replace(dense, maps=(logits,)), assignment, targets, [logits, predicted]


def test_cross_entropy_as_a_formula_is_cross_entropy() -> None:
    dense, assignment, targets, (logits, _) = regions(0)
    found = Formula(cls="ce", reg="giou")(dense, assignment, targets)
    expected = CrossEntropy(regression="giou")(dense, assignment, targets)
    for name in ("classification", "regression"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)
    mine, theirs = (torch.autograd.grad(terms["classification"], logits)[0] for terms in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_the_iou_of_a_region_weighs_its_own_column_alone() -> None:
    dense, assignment, targets, _ = regions(1)
    counted = (assignment.matched != IGNORE).nonzero().tolist()
    image, prior, overlap = iou_of(dense, assignment, targets)
    of = {(i, p): float(x) for i, p, x in zip(image.tolist(), prior.tolist(), overlap, strict=True)}
    total = 0.0
    for i, p in counted:
        matched = int(assignment.matched[i, p])
        own = int(targets.labels[matched]) if matched >= 0 else 3
        total -= of.get((i, p), 1.0) * float(dense.logits[i, p].log_softmax(-1)[own])
    found = Formula(cls="cei")(dense, assignment, targets)["classification"]
    assert found.item() == pytest.approx(total / len(counted), rel=1e-9)


def test_the_branch_of_centerness_learns_the_quality_asked_for_and_boxes_weigh_it() -> None:
    dense, assignment, targets, _ = case(4)
    branch = torch.zeros(dense.boxes.shape[:2], dtype=torch.float64, requires_grad=True)
    dense = replace(dense, centerness=branch)
    image, prior, overlap = iou_of(dense, assignment, targets)
    gt = targets.boxes[assignment.matched[image, prior]]
    losses = tv.generalized_box_iou_loss(dense.boxes[image, prior], gt)
    terms = Formula(cls="focal")(dense, assignment, targets)
    torch.testing.assert_close(
        terms["regression"], (losses * overlap).sum() / overlap.sum(), rtol=1e-5, atol=1e-7
    )
    (slope,) = torch.autograd.grad(terms["quality"], branch)
    torch.testing.assert_close(slope[image, prior], (0.5 - overlap) / len(image), rtol=1e-6, atol=1e-9)
    terms = Formula(cls="focal", quality="centerness")(dense, assignment, targets)
    (slope,) = torch.autograd.grad(terms["quality"], branch)
    central = boxes.centerness(dense.priors.points[prior], gt)
    torch.testing.assert_close(slope[image, prior], (0.5 - central) / len(image), rtol=1e-6, atol=1e-9)


def test_a_name_is_the_function_it_stands_for() -> None:
    named = small(loss={"name": "formula", "cls": "cse_b", "reg": "giou"})
    written = small(
        loss={
            "name": "formula",
            "cls": library.resolve("cse_b", ONE_STAGE).text,
            "reg": "1 - i/u + (e - u)/e",
        }
    )
    assert named.hash() == written.hash()
    assert named.hash() != small(loss={"name": "formula", "cls": "fli", "reg": "giou"}).hash()


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        ("().__class__", "attribute|character"),
        ("exec('1')", "character|exec"),
        ("lambda x: x", "lambda|character"),
        ("x" * 5000, "4000 characters|characters"),
        ("(" * 100_000 + "x", "characters"),
        ("1e400*x", "number|finite"),
        ("х", "CYRILLIC|Cyrillic"),
        ("i/u", "i"),
        ("cse_c", "cse_b"),
    ],
)
def test_a_hostile_formula_is_refused_in_one_sentence(cls: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        small(loss={"name": "formula", "cls": cls})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_formula_of_two_stages_is_refused_where_there_is_one() -> None:
    with pytest.raises(RecipeError, match="wants a logit for background"):
        build(small(loss={"name": "formula", "cls": "cei"}), 3)


@pytest.mark.parametrize("detector", ["fcos", "atss", "retinanet", "faster_rcnn"])
def test_formulas_train_every_detector_with_a_place_for_them(detector: str) -> None:
    key = "region_loss" if detector == "faster_rcnn" else "loss"
    cls = "cse_a" if detector == "faster_rcnn" else "cse_b"
    model = build(small(detector=detector, **{key: {"name": "formula", "cls": cls, "reg": cls}}), 3)
    found = torch.tensor([[8.0, 8, 40, 50], [20, 20, 60, 60]])
    targets = Targets.from_lists([found], [torch.tensor([0, 2])])
    terms = model.training_loss(torch.rand(1, 3, 64, 64), targets)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(term.isfinite() for term in terms.values())
    assert ("quality" in terms) == (detector in ("fcos", "atss"))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_no_object_at_all_trains_on() -> None:
    dense, assignment, targets, _ = case(5)
    nothing = Targets(targets.boxes[:0], targets.labels[:0], torch.zeros_like(targets.splits))
    empty = Assignment(assignment.matched.clamp(max=-1))
    for loss in (Formula(cls="cse_b", reg="cse_b"), Formula(reg="iou")):
        terms = loss(dense, empty, nothing)
        assert all(term.isfinite() and term.requires_grad for term in terms.values())


def test_every_part_of_a_recipe_that_names_a_formula_is_written_out() -> None:
    part = build_part("slots.losses", Slot(name="formula", cls="focal"), "loss")
    assert isinstance(part, Formula) and part.cls == library.resolve("focal", ONE_STAGE).text
    assert library.names(TWO_STAGE) == ("ce", "cei", "cse_a") and "cse_b" in library.names(REGRESSION)
