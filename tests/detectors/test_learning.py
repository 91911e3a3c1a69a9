"""Learned anchor shapes on every detector of anchors: Eq. 8 to 12, the norm without shift, what is kept."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops as tv
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from detsearch_cli import boxes
from detsearch_cli.detectors import build
from detsearch_cli.detectors._learning import SizeNorm, log_sizes, softened
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import with_fragment
from detsearch_cli.slots.losses.focal_smooth_l1 import FocalSmoothL1
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.structures import Assignment, Dense, Targets, TrainingStep
from tests.detectors.test_detectors_contract import (
    BOXES,
    NAMES,
    images,
    recipe_of,
    targets,
    total,
    without_gradient,
)

ANCHORED = [name for name in NAMES if name not in ("fcos", "deformable_detr")]
AFTER = TrainingStep(index=50, total=100, images=400)
GIANT = torch.tensor([[-3000.0, -3000, 9000, 9000]])
FLAT = torch.tensor([[9.0, 9, 9, 9], [5, 9, 40, 9]])


def learning(detector: dict[str, Any] | str, **options: Any) -> Detector:
    torch.manual_seed(0)
    size = {"image_size": 128}
    priors = {"name": "learned", "warmup_fraction": 0.2, "clustering_weight": 1, **options}
    return build(recipe_of(detector, priors=priors, augment=size), 3)


def log_shapes(detector: Detector) -> nn.Parameter:
    assert detector.shapes is not None
    return detector.shapes.log_shapes


# ---------------------------------------------------------------------- the gradient, Eq. 8 and 9


def regression(detector: Detector, dense: Dense, assignment: Assignment, batch: Targets) -> Tensor:
    return detector.loss(dense, assignment, batch)["regression"]


@pytest.mark.parametrize("step", [TrainingStep(3, 100, 0), AFTER], ids=["soft", "hard"])
@pytest.mark.parametrize("beta", [1e6, 0.11], ids=["L2", "smooth L1"])
def test_the_gradient_is_equation_9_in_closed_form(beta: float, step: TrainingStep) -> None:
    detector = learning("retinanet", bn=False)
    detector.before_step(step)
    detector.loss = FocalSmoothL1(beta=beta)
    batch = targets(BOXES, BOXES[:2] + 7)
    dense = detector(images(2))
    assignment = detector.assign(dense, batch)
    found = torch.autograd.grad(regression(detector, dense, assignment, batch), log_shapes(detector))[0]
    expected = torch.zeros_like(found)
    pairs = assignment.matches()
    assert (pairs.weight < 1).any() == (step is not AFTER)
    shapes = found.shape[1]
    for image, prior, gt, delta in zip(*(t.tolist() for t in vars(pairs).values()), strict=True):
        level, k = int(dense.priors.level[prior]), prior % shapes
        wanted = log_sizes(batch.boxes[gt]) - log_shapes(detector)[level, k].detach()
        error = (
            dense.deltas[image, prior, 2:].detach() - 5 * wanted
        )  # offsets count five times (DELTA_WEIGHTS)
        expected[level, k] += delta * 5 * (error / beta).clamp(-1, 1)
    expected *= 0.25 / pairs.weight.sum()
    assert found.abs().sum() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("step", [TrainingStep(3, 100, 0), AFTER], ids=["soft", "hard"])
def test_yolov2s_gradient_is_equation_9_times_its_small_box_factor(step: TrainingStep) -> None:
    detector = learning("yolov2", init="uniform", bn=False)
    detector.before_step(step)
    batch = targets(BOXES, BOXES[:2] + 7)
    dense = detector(images(2))
    assignment = detector.assign(dense, batch)
    found = torch.autograd.grad(regression(detector, dense, assignment, batch), log_shapes(detector))[0]
    pairs = assignment.matches()
    own = log_shapes(detector).detach()[0, pairs.prior % 5]
    gt = batch.boxes[pairs.gt]
    error = dense.deltas[pairs.image, pairs.prior, 2:].detach() + own - log_sizes(gt)
    factor = pairs.weight * (2 - (gt[:, 2:] - gt[:, :2]).prod(1) / 128**2)
    expected = torch.zeros(5, 2).index_add(0, pairs.prior % 5, factor[:, None] * error) / 2
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


def size_loss(name: str, dense: Dense, assignment: Assignment, batch: Targets, shapes: Tensor) -> Tensor:
    """The regression term as a function of log shapes (L, S, 2) alone: predictions and centres as they are."""
    pairs = assignment.matches()
    gt = batch.boxes[pairs.gt].to(shapes)
    own = shapes[dense.priors.level[pairs.prior], pairs.prior % shapes.shape[1]]
    deltas = dense.deltas.detach().to(shapes)[pairs.image, pairs.prior, 2:]
    if name == "retinanet":
        wanted = 5 * ((gt[:, 2:] - gt[:, :2]).log() - own)
        return F.smooth_l1_loss(deltas, wanted, beta=0.11, reduction="sum") / (4 * len(gt))
    middle = boxes.centers(dense.boxes.detach().to(shapes)[pairs.image, pairs.prior])
    half = (deltas / 5 + own).exp() / 2
    each = tv.generalized_box_iou_loss(torch.cat((middle - half, middle + half), 1), gt)
    central = boxes.centerness(dense.priors.points[pairs.prior].to(shapes), gt).clamp(min=0)
    weight = torch.where(central > 0, central, 0.1)
    return 2 * (each * weight).sum() / weight.sum()


@pytest.mark.parametrize("name", ["retinanet", "atss"])
def test_the_gradient_equals_finite_differences_of_the_size_terms(name: str) -> None:
    detector = learning(name, bn=False)
    detector.before_step(AFTER)
    batch = targets(BOXES, BOXES[:2] + 7)
    dense = detector(images(2))
    assignment = detector.assign(dense, batch)
    found = torch.autograd.grad(regression(detector, dense, assignment, batch), log_shapes(detector))[0]
    start, step, expected = log_shapes(detector).detach().double(), 1e-5, torch.zeros_like(found)
    for at in map(tuple, (found.abs() > 0).nonzero().tolist()):
        moved = torch.zeros_like(start)
        moved[at] = step
        up, down = (size_loss(name, dense, assignment, batch, start + m) for m in (moved, -moved))
        expected[at] = (up - down) / (2 * step)
    assert (expected != 0).sum() >= 2
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_centres_send_no_gradient_to_the_shapes() -> None:
    anchors = torch.tensor([[10.0, 10, 30, 50]], requires_grad=True)
    boxes.encode_deltas(anchors, BOXES[:1])[:, :2].sum().backward()
    assert anchors.grad is None or anchors.grad.abs().sum() == 0


# ---------------------------------------------------------------------- the warm-ups, Eq. 10 to 12


def shape_iou(a: Tensor, b: Tensor) -> Tensor:
    corner = torch.zeros(1, 2)
    return tv.box_iou(torch.cat((corner, a.exp()[None]), 1), torch.cat((corner, b.exp()[None]), 1))[0, 0]


@pytest.mark.parametrize("distance", ["iou", "log_l2"])
def test_every_cell_with_a_positive_shares_it_by_equation_10(distance: str) -> None:
    detector = learning("retinanet", init="uniform", distance=distance)
    detector.before_step(TrainingStep(index=4, total=100, images=0))
    temperature = 2 * (1 - 4 / 20) ** 10
    batch = targets(BOXES, BOXES[:0], BOXES[1:])
    dense = detector(images(3))
    assignment = detector.assign(dense, batch)
    hard = detector.assigner(dense.detached(), batch)
    assert torch.equal(assignment.matched, hard.matched)
    expected: dict[tuple[int, int, int], float] = {}
    for image, prior in hard.positive.nonzero().tolist():
        gt, first = int(hard.matched[image, prior]), prior - prior % 5
        own = log_shapes(detector)[int(dense.priors.level[prior])].detach()
        wanted = log_sizes(batch.boxes[gt])
        apart = torch.stack(
            [
                1 - shape_iou(s, wanted) if distance == "iou" else (s - wanted).square().sum().sqrt()
                for s in own
            ]
        )
        for k, weight in enumerate((-apart / temperature).softmax(0).tolist()):
            expected[image, first + k, gt] = weight
    pairs = assignment.matches()
    found = dict(
        zip(
            zip(*(t.tolist() for t in (pairs.image, pairs.prior, pairs.gt)), strict=True),
            pairs.weight.tolist(),
            strict=True,
        )
    )
    assert found.keys() == expected.keys() and len(found) == len(pairs.gt)
    assert list(found.values()) == pytest.approx([expected[key] for key in found], abs=1e-6)


@pytest.mark.parametrize("distance", ["iou", "log_l2"])
def test_a_hot_assignment_is_even_and_a_cold_one_is_the_nearest_shape(distance: str) -> None:
    shapes = torch.tensor([[[8.0, 8], [32, 16], [60, 90]]]).log()
    gt = torch.tensor([[[30.0, 20]]]).log()
    torch.testing.assert_close(softened(shapes, gt, 1e6, distance), torch.full((1, 3), 1 / 3))
    for cold in (1e-4, 1e-40):
        torch.testing.assert_close(softened(shapes, gt, cold, distance), torch.tensor([[0.0, 1, 0]]))


def test_after_the_warm_up_the_assignment_is_hard() -> None:
    detector = learning("retinanet")
    for step, soft in ((0, True), (19, True), (20, False), (99, False)):
        detector.before_step(TrainingStep(step, 100, 0))
        assert (detector.assign(detector(images(1)), targets(BOXES)).soft is not None) == soft


def test_the_clustering_term_is_equations_11_and_12() -> None:
    detector = learning("atss", init="uniform", soft=False)
    detector.before_step(TrainingStep(index=4, total=100, images=0))
    batch = targets(BOXES, BOXES[:2])
    dense = detector(images(2))
    assignment = detector.assign(dense, batch)
    assert detector.shapes is not None
    found = detector.shapes.clustering_loss(assignment, dense.priors, batch, detector.step)["clustering"]
    terms = []
    for image, prior in assignment.positive.nonzero().tolist():
        size = dense.priors.boxes[prior, 2:] - dense.priors.boxes[prior, :2]
        gt = batch.boxes[assignment.matched[image, prior]]
        terms.append((size.log() - (gt[2:] - gt[:2]).log()).square().sum())
    torch.testing.assert_close(found, 0.8 * torch.stack(terms).mean() / 2)
    gradient = torch.autograd.grad(found, log_shapes(detector))[0]
    expected = torch.autograd.grad(0.8 * torch.stack(terms).mean() / 2, log_shapes(detector))[0]
    torch.testing.assert_close(gradient, expected)


def test_schedules_last_1500_steps_of_a_long_training_and_two_fifths_of_a_short_one() -> None:
    grid = Learned()
    long, short = (lambda step: TrainingStep(step, 30_000, 0)), (lambda step: TrainingStep(step, 200, 0))
    assert [grid.temperature_at(long(s)) for s in (0, 750, 1500, 20_000)] == [2, 2 * 0.5**10, 0, 0]
    assert [grid.clustering_at(long(s)) for s in (0, 375, 1500)] == [30, 22.5, 0]
    assert [grid.clustering_at(short(s)) for s in (0, 20, 80)] == [30, 22.5, 0]
    off = Learned(soft=False, clustering=False)
    assert off.temperature_at(long(0)) == off.clustering_at(long(0)) == 0
    assert Learned(warmup_steps=0).clustering_at(long(0)) == 0
    assert Learned(warmup_fraction=1, clustering_weight=1).clustering_at(short(100)) == 0.5


# ---------------------------------------------------------------------- batch norm without shift


def test_the_norm_is_torchs_without_shift_over_all_levels_together() -> None:
    norm = SizeNorm(nn.Conv2d(8, 3 * 7, 1), 3, scale=0.2)
    rows = (torch.randn(2, 3 * 20, 7) * 3 + 1).requires_grad_()
    reference = nn.BatchNorm1d(6)
    nn.init.constant_(reference.weight, 0.2)
    wanted = reference(rows.view(2, 20, 3, 7)[..., 2:4].reshape(-1, 6)).view(2, 60, 2)
    found = norm(rows)
    torch.testing.assert_close(found[..., 2:4], wanted)
    assert torch.equal(found[..., :2], rows[..., :2]) and torch.equal(found[..., 4:], rows[..., 4:])
    torch.testing.assert_close(norm.mean, reference.running_mean)
    torch.testing.assert_close(norm.var, reference.running_var)
    assert {n for n, _ in norm.named_parameters()} == {"scale"}
    sent = torch.randn_like(wanted)
    ours = torch.autograd.grad(found[..., 2:4], (norm.scale, rows), sent)
    theirs = torch.autograd.grad(wanted, (reference.weight, rows), sent)
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_one_cell_alone_is_scaled_and_stays_finite() -> None:
    norm = SizeNorm(nn.Conv2d(8, 4, 1), 1, scale=1.0)
    torch.testing.assert_close(
        norm(torch.full((1, 1, 4), 3.0)), torch.full((1, 1, 4), 3.0), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_folded_convolution_does_what_both_did(channels_last: bool) -> None:
    convolution = nn.Conv2d(8, 3 * 7, 3, padding=1)
    if channels_last:
        convolution.to(memory_format=torch.channels_last)
    norm = SizeNorm(convolution, 3, scale=0.7)
    rows = [convolution(torch.randn(4, 8, 5, 5) + 1).permute(0, 2, 3, 1).reshape(4, -1, 7) for _ in range(3)]
    for given in rows:
        norm(given)
    norm.eval()
    x = torch.randn(2, 8, 4, 6)
    wanted = norm(convolution(x).permute(0, 2, 3, 1).reshape(2, -1, 7))
    found = norm.fold()(x).permute(0, 2, 3, 1).reshape(2, -1, 7)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- on every detector


BATCHES = {
    "usual": (BOXES, BOXES[:0]),
    "none": (BOXES[:0], BOXES[:0]),
    "one class only": (BOXES[:1], BOXES[:0]),
    "one giant box": (GIANT, BOXES[:0]),
    "degenerate": (FLAT, BOXES[:1]),
}


@pytest.mark.parametrize("name", ANCHORED)
@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("step", [TrainingStep(0, 100, 0), AFTER], ids=["warm-up", "after"])
def test_every_parameter_of_a_learning_detector_gets_a_finite_gradient(
    name: str, case: str, step: TrainingStep
) -> None:
    detector = learning(name, init="uniform")
    detector.before_step(step)
    loss = total(detector.training_loss(images(2), targets(*BATCHES[case])))
    loss.backward()
    assert loss.isfinite()
    assert without_gradient(detector) == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", ANCHORED)
def test_shapes_follow_the_boxes_while_the_detector_trains(name: str) -> None:
    detector = learning(name, init="identical")
    rest = [p for p in detector.parameters() if p is not log_shapes(detector)]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": [log_shapes(detector)], "lr": 0.02}]
    optimizer = torch.optim.Adam(groups, 2e-3)
    batch, image = targets(BOXES), images(1)
    before = served(detector, batch)
    for step in range(40):
        detector.before_step(TrainingStep(step, 40, step))
        loss = total(detector.training_loss(image, batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
    assert served(detector, batch) > before + 0.03


def served(detector: Detector, batch: Targets) -> float:
    """Mean over ground truths of the best IoU with any shape, at one centre."""
    shapes = log_shapes(detector).detach().flatten(0, 1)
    best = [max(float(shape_iou(s, gt)) for s in shapes) for gt in log_sizes(batch.boxes)]
    return sum(best) / len(best)


@pytest.mark.parametrize("name", ANCHORED)
@pytest.mark.parametrize("bn", [True, False])
def test_the_predicted_sizes_are_normalised_where_the_switch_is_on(name: str, bn: bool) -> None:
    assert any(isinstance(m, SizeNorm) for m in learning(name, bn=bn).modules()) == bn


def trained(name: str, **options: Any) -> Detector:
    """After a few steps, so that statistics, scales and shapes have moved."""
    detector = learning(name, **options)
    optimizer = torch.optim.Adam(detector.parameters(), 0.01)
    for step in range(4):
        detector.before_step(TrainingStep(step, 100, step))
        optimizer.zero_grad()
        total(detector.training_loss(images(2), targets(BOXES, BOXES[:1]))).backward()
        optimizer.step()
    return detector


@pytest.mark.parametrize("name", ANCHORED)
def test_the_deployed_detector_is_the_baselines_and_predicts_the_same(name: str) -> None:
    detector = trained(name, init="uniform").eval()
    before = copy.deepcopy(detector.state_dict())
    deployed = detector.deployed()
    baseline = build(
        detector.deployed_recipe(recipe_of(name, priors={"name": "learned", "init": "uniform"})), 3
    )
    keys = {key: value.shape for key, value in baseline.state_dict().items()}
    assert {key: value.shape for key, value in deployed.state_dict().items()} == keys
    fixed = build(recipe_of(name, priors={"name": "shapes", "shapes": "uniform"}), 3)
    assert {key: value.shape for key, value in fixed.state_dict().items()} == keys
    baseline.load_state_dict(deployed.state_dict())
    baseline.eval()
    with torch.no_grad():
        one, two, three = (d(images(2)) for d in (detector, deployed, baseline))
    assert torch.equal(two.boxes, three.boxes) and torch.equal(two.logits, three.logits)
    torch.testing.assert_close(one.boxes, two.boxes, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(one.logits, two.logits)
    assert detector.shapes is not None and all(
        torch.equal(v, before[k]) for k, v in detector.state_dict().items()
    )


@pytest.mark.parametrize("name", ANCHORED)
def test_the_deployed_detectors_graph_is_the_baselines(name: str) -> None:
    def operations(detector: Detector) -> list[Any]:
        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            dense = detector(x)
            return dense.logits, dense.boxes

        with torch.no_grad():
            run(images(1))  # priors are made once
            return [node.target for node in make_fx(run)(images(1)).graph.nodes]

    deployed = trained(name, init="uniform").eval().deployed()
    fixed = build(recipe_of(name, priors={"name": "shapes", "shapes": "uniform"}), 3).eval()
    assert operations(deployed) == operations(fixed)


def test_a_detector_of_fixed_priors_is_deployed_as_it_is() -> None:
    recipe = recipe_of("retinanet")
    detector = build(recipe, 3)
    assert detector.deployed() is detector and detector.deployed_recipe(recipe) is recipe


@pytest.mark.parametrize("name", ANCHORED)
def test_the_deployed_recipe_is_what_validation_makes_of_its_fragment(name: str) -> None:
    recipe = recipe_of(name, priors={"name": "learned", "init": "uniform"})
    detector = trained(name, init="uniform")
    (part,) = detector.learned_parts()
    deployed = detector.deployed_recipe(recipe)
    again = with_fragment(recipe, part.fragment(deployed))
    assert deployed == again and deployed.to_yaml() == again.to_yaml()


# ---------------------------------------------------------------------- bounds and what does not fit


def test_shapes_stay_between_a_quarter_of_the_stride_and_the_image() -> None:
    detector = learning("retinanet", init=[[0.001, 5000], [30, 40]])
    sizes = log_shapes(detector).exp()[:, 0]
    torch.testing.assert_close(sizes[:, 0], torch.tensor([2.0, 4, 8, 16]))
    torch.testing.assert_close(sizes[:, 1], torch.full((4,), 128.0))
    log_shapes(detector).data[:] = torch.tensor([-50.0, 50])
    dense = detector(images(1))
    side = dense.priors.boxes[:, 2:] - dense.priors.boxes[:, :2]
    assert side.min() > 1.9 and side.max() < 128.1
    total(detector.training_loss(images(1), targets(BOXES))).backward()
    gradient = log_shapes(detector).grad
    assert gradient is not None and gradient.abs().sum() > 0, "a shape at its bound can come back"
    detector.before_step(AFTER)
    assert log_shapes(detector).min() > math.log(1.9) and log_shapes(detector).max() < math.log(128.1)


def test_without_init_a_detector_learns_from_its_own_shapes() -> None:
    detector, fixed = learning("retinanet"), build(recipe_of("retinanet", augment={"image_size": 128}), 3)
    assert log_shapes(detector).shape == (4, 9, 2)
    own = torch.tensor(fixed.prior_grid.level_boxes(fixed.levels)).clamp(max=128)
    torch.testing.assert_close(log_shapes(detector).exp().detach(), own)


def test_shapes_that_do_not_fit_are_refused_with_the_remedy() -> None:
    with pytest.raises(RecipeError, match="predicts distances from points; use --detector retinanet"):
        learning("fcos")
    with pytest.raises(
        RecipeError, match=r"priors.init must be one list .* detector's 4 levels, got 2 lists"
    ):
        learning("retinanet", init=[[[10, 20]], [[30, 40]]])
    with pytest.raises(
        RecipeError, match=r"priors.shapes must be one list .* detector's 4 levels, got 2 lists"
    ):
        build(recipe_of("retinanet", priors={"name": "shapes", "shapes": [[[10, 20]], [[30, 40]]]}), 3)
    with pytest.raises(RecipeError, match="one prior a cell, got 5; use priors: points"):
        build(recipe_of("fcos", priors="shapes"), 3)
