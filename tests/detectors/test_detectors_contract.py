"""What every detector must do, for every file in detectors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from detsearch_cli import parts
from detsearch_cli.detectors import build
from detsearch_cli.detectors._pyramid import PyramidDetector
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Recipe, compose
from detsearch_cli.recipe import Test as Selection
from detsearch_cli.structures import Targets
from tests.recipes import skip_without_extra

NAMES = parts.names("detectors")
VARIANTS: list[dict[str, Any]] = [
    *({"name": name} for name in NAMES),
    {"name": "fcos", "center_sampling": True, "norm_on_bbox": True, "centerness_on_reg": True},
    {"name": "fcos", "centerness": False},
    {"name": "atss", "centerness": False},
    {"name": "faster_rcnn", "fpn": False, "region_head": "mlp"},
    {"name": "faster_rcnn", "fpn": False},
    {"name": "ssd", "size": 512},
]
BOXES = torch.tensor([[10.0, 20, 60, 80], [50, 10, 120, 60], [90, 90, 120, 115]])


SIZE: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"width": 64, "regions": 128},
    "deformable_detr": {"queries": 30, "layers": 2},
}
"""Options that make a detector fit the size of the test images, without changing what it does."""
PRIORS: dict[str, dict[str, Any]] = {
    "fcos": {"name": "points", "range_base": 32},
    "yolov2": {"name": "shapes", "shapes": [[15, 15], [25, 40], [50, 30], [45, 60], [70, 50]]},
    "faster_rcnn False": {"name": "shapes", "shapes": [[30, 30], [60, 40], [40, 60]]},
}


def recipe_of(detector: dict[str, Any] | str, **changes: Any) -> Recipe:
    own = {"name": detector} if isinstance(detector, str) else detector
    small = {
        "detector": {**SIZE.get(own["name"], {}), **own},
        "backbone": "tiny",
        "neck": {"channels": 32, "levels": [3, 6]},
        "head": {"convs": 1},
        "augment": {"image_size": 128},
        "priors": PRIORS.get(" ".join([own["name"], *(str(own[k]) for k in ("fpn",) if k in own)])),
    }
    return compose([("small", small), ("test", changes)])


def detector_of(detector: dict[str, Any] | str, num_classes: int = 3, **changes: Any) -> Detector:
    recipe = recipe_of(detector, **changes)
    skip_without_extra(recipe)
    torch.manual_seed(0)
    return build(recipe, num_classes)


def images(count: int, height: int = 128, width: int = 128) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def targets(*boxes: Tensor) -> Targets:
    return Targets.from_lists(list(boxes), [torch.arange(len(b)) % 3 for b in boxes])


def total(terms: dict[str, Tensor]) -> Tensor:
    assert all(term.shape == () for term in terms.values())
    return torch.stack(list(terms.values())).sum()


def unsettle(detector: Detector) -> None:
    """Give every class score another value, as if trained."""
    names = ("cls", "last")  # YOLOv2's last convolution writes everything
    scoring = [module for name, module in detector.named_modules() if name.rpartition(".")[2] in names]
    for module in scoring:
        torch.nn.init.normal_(module.weight, std=0.5)  # type: ignore[arg-type]
    assert scoring


def without_gradient(detector: Detector) -> list[str]:
    return [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_predictions_have_one_row_a_prior(variant: dict[str, Any]) -> None:
    detector = detector_of(variant)
    dense = detector(images(2, 96, 160))
    num_priors = dense.priors.boxes.shape[0]
    cells = sum(-(-96 // s) * -(-160 // s) for s in detector.strides)
    wanted = getattr(detector.options, "queries", cells * detector.prior_grid.per_cell)
    assert num_priors == wanted == sum(dense.priors.counts)
    assert dense.priors.image == (96, 160)
    num_classes = 1 + int(detector.dense_targets(targets(BOXES)).labels.max())
    assert dense.logits.shape == (2, num_priors, num_classes)
    assert dense.boxes.shape == dense.deltas.shape == (2, num_priors, 4)
    assert dense.centerness is None or dense.centerness.shape == (2, num_priors)
    assert torch.equal(dense.priors.level.bincount(), torch.tensor(dense.priors.counts))
    assert detector.max_count > 0 and 0 < detector.default_nms_iou <= 1


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("case", ["usual", "none", "crowd", "one box 40 times", "degenerate"])
def test_every_parameter_gets_a_finite_gradient(variant: dict[str, Any], case: str) -> None:
    corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(2)) * 110
    batch = {
        "usual": targets(BOXES, BOXES[:0]),
        "none": targets(BOXES[:0], BOXES[:0]),
        "crowd": targets(torch.cat((corner, corner + 15), 1), BOXES[:1]),
        "one box 40 times": targets(BOXES[:1].repeat(40, 1), BOXES[:0]),
        "degenerate": targets(torch.tensor([[9.0, 9, 9, 9], [5, 9, 40, 9], [0, 0, 9000, 9000]]), BOXES[:0]),
    }[case]
    detector = detector_of(variant)
    loss = total(detector.training_loss(images(2), batch))
    assert loss.isfinite()
    loss.backward()
    assert without_gradient(detector) == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_overfits_one_image_and_finds_its_boxes(variant: dict[str, Any]) -> None:
    detector = detector_of(variant)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    batch, image = targets(BOXES), images(1)
    losses = []
    for _ in range(70):
        loss = total(detector.training_loss(image, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    detector.train()  # batch norm's own statistics of one image are what it was trained with
    found = detector.detect(image, torch.tensor([[128, 128]]), Selection())[0]
    for box, label in zip(BOXES, range(3), strict=True):
        same = found.boxes[found.labels == label][:1]
        assert len(same) and (same - box).abs().max() < 12, (box, same)


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_sorted_clipped_and_limited(name: str) -> None:
    detector = detector_of(name).eval()
    unsettle(detector)
    sizes = torch.tensor([[90, 128], [128, 70]])
    selection = Selection(score_threshold=0.0, max_detections=17)
    for found, (height, width) in zip(
        detector.detect(images(2), sizes, selection), sizes.tolist(), strict=True
    ):
        assert len(found.boxes) == len(found.scores) == len(found.labels) == 17
        assert (found.scores.diff() <= 0).all() and not found.boxes.requires_grad
        assert found.boxes.min() >= 0
        assert found.boxes[:, 2].max() <= width and found.boxes[:, 3].max() <= height
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("name", NAMES)
def test_a_threshold_above_every_score_gives_no_detection(name: str) -> None:
    found = (
        detector_of(name).eval().detect(images(1), torch.tensor([[128, 128]]), Selection(score_threshold=0.9))
    )
    assert found[0].boxes.shape == (0, 4) and found[0].scores.shape == found[0].labels.shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_changes_the_loss_by_rounding_only(name: str) -> None:
    detector = detector_of(name)
    exact = total(detector.training_loss(images(2), targets(BOXES, BOXES[:1]))).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = detector.training_loss(images(2), targets(BOXES, BOXES[:1]))
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert total(terms).item() == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_training_after_detecting_and_a_deep_copy_work(name: str) -> None:
    detector = detector_of(name)
    with torch.inference_mode():
        detector.eval().detect(images(1), torch.tensor([[128, 128]]), Selection())
    other = copy.deepcopy(detector.train())
    total(other.training_loss(images(1), targets(BOXES))).backward()
    assert without_gradient(other) == []
    assert set(other.state_dict()) == set(detector_of(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [(2, 3), (3, 7), (4, 5), (5, 5)])
def test_any_levels_build_and_leave_no_parameter_without_gradient(name: str, levels: tuple[int, int]) -> None:
    detector = detector_of(name, neck={"levels": levels})
    total(detector.training_loss(images(1), targets(BOXES))).backward()
    assert without_gradient(detector) == []
    if not isinstance(detector, PyramidDetector):  # the others predict on levels of their own
        levels = detector.pyramid_levels(recipe_of(name, neck={"levels": levels}))
    assert len(detector.strides) == levels[1] - levels[0] + 1


def test_parts_that_do_not_fit_are_refused_with_the_remedy() -> None:
    with pytest.raises(RecipeError, match="one prior a cell, got 9; use priors: points"):
        detector_of("fcos", priors="anchors")
    with pytest.raises(RecipeError, match="must begin at one of the backbone's"):
        detector_of("fcos", backbone="mobilenetv1_025", neck={"levels": (2, 5)})
    with pytest.raises(RecipeError, match="assign fcos needs priors with level ranges"):
        detector_of("retinanet", assign="fcos").training_loss(images(1), targets(BOXES))
    with pytest.raises(RecipeError, match="use loss: focal_iou"):
        detector_of("fcos", loss="rpn").training_loss(images(1), targets(BOXES))


def test_slots_of_a_recipe_replace_the_detectors_own() -> None:
    detector = detector_of(
        "retinanet",
        priors={"name": "anchors", "scales": 1},
        assign={"name": "max_iou", "positive_iou": 0.6},
        loss={"name": "focal_iou", "iou": "giou"},
    )
    assert detector.prior_grid.per_cell == 3
    assert detector.assigner.positive_iou == 0.6  # type: ignore[attr-defined]
    assert total(detector.training_loss(images(1), targets(BOXES))).isfinite()


def test_the_defaults_are_the_papers() -> None:
    retinanet, fcos, atss = (detector_of(name, priors=None) for name in ("retinanet", "fcos", "atss"))
    assert (retinanet.max_count, fcos.max_count, atss.max_count) == (80, 25, 32)
    assert (retinanet.default_nms_iou, fcos.default_nms_iou, atss.default_nms_iou) == (0.5, 0.6, 0.6)
    assert [d.prior_grid.per_cell for d in (retinanet, fcos, atss)] == [9, 1, 1]
    sides = retinanet.prior_grid([(1, 1)], (3, 3)).boxes[3:6]
    torch.testing.assert_close((sides[:, 2] - sides[:, 0]), 32 * 2 ** (torch.arange(3) / 3))
    square = atss.prior_grid([(1, 1)], (3, 3)).boxes[0]
    assert (square[2:] - square[:2]).tolist() == [64, 64]
