"""YOLOv2 as the paper and darknet describe it: layers, decoding, scores, selection, warm-up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor, nn

from detsearch_cli.detectors import build
from detsearch_cli.detectors.yolov2 import YOLOv2, decode
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Test as Selection
from detsearch_cli.recipe import compose
from detsearch_cli.structures import Targets, TrainingStep

SHAPES = [[20, 24], [40, 70], [90, 60]]
TRUTH = Targets.from_lists(
    [torch.tensor([[10.0, 20, 60, 80], [50, 10, 120, 60]]), torch.zeros(0, 4)],
    [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
)


def detector_of(num_classes: int = 4, options: dict[str, Any] | None = None, **changes: Any) -> YOLOv2:
    torch.manual_seed(0)
    base = {"detector": {"name": "yolov2", **(options or {})}, "backbone": "tiny"}
    priors = {"priors": {"name": "shapes", "shapes": SHAPES}}
    found = build(compose([("base", base), ("priors", priors), ("changes", changes)]), num_classes)
    assert isinstance(found, YOLOv2)
    return found


def images(count: int = 2, size: int = 128) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def convolutions(module: nn.Module) -> list[tuple[int, int, int]]:
    found = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in found]


def test_with_darknet19_the_head_is_the_published_one() -> None:
    """Of yolov2-voc.cfg: 20 classes, 5 anchors, 125 outputs a cell."""
    detector = detector_of(20, backbone="darknet19", priors=None)
    assert convolutions(detector.head) == [
        (1024, 1024, 3), (1024, 1024, 3), (512, 64, 1), (1280, 1024, 3), (1024, 125, 1)
    ]  # fmt: skip
    shapes = detector.prior_grid([(1, 1)], (5, 5)).cell_shapes()[0] / 32
    published = [
        [1.3221, 1.73145],
        [3.19275, 4.00944],
        [5.05587, 8.09892],
        [9.47112, 4.84053],
        [11.2364, 10.0071],
    ]
    torch.testing.assert_close(shapes, torch.tensor(published), rtol=1e-5, atol=1e-5)


def test_with_a_small_backbone_the_head_shrinks_with_it_unless_told_otherwise() -> None:
    assert {outputs for _, outputs, kernel in convolutions(detector_of().head) if kernel == 3} == {80}
    told = detector_of(options={"channels": 48, "passthrough": 7})
    assert convolutions(told.head) == [(80, 48, 3), (48, 48, 3), (56, 7, 1), (76, 48, 3), (48, 27, 1)]


def test_the_passthrough_stacks_neighbouring_cells_of_the_finer_feature() -> None:
    head = detector_of().head
    head.passthrough[0] = nn.Identity()
    fine = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    stacked = head.passthrough(fine)
    assert stacked.shape == (1, 8, 2, 3)
    assert sorted(stacked[0, :, 1, 2].tolist()) == sorted(fine[0, :, 2:4, 4:6].flatten().tolist())


def test_boxes_are_decoded_as_in_figure_3_of_the_paper() -> None:
    detector = detector_of()
    dense = detector(images(1))
    raw = dense.deltas[0, 3 * (1 * 4 + 2) + 1]  # row 1, column 2, second shape
    x, y = (32 * (cell + 1 / (1 + math.exp(-t))) for cell, t in zip((2, 1), raw[:2].tolist(), strict=True))
    w, h = (s * math.exp(t) for s, t in zip(SHAPES[1], raw[2:].tolist(), strict=True))
    expected = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(dense.boxes[0, 3 * (1 * 4 + 2) + 1], expected)
    extreme = torch.full((1, len(dense.priors.points), 4), 1e4)
    assert decode(dense.priors, extreme).isfinite().all()


def by_hand(
    dense: Any, image: int, threshold: float, iou: float, most: int
) -> list[tuple[float, int, list[float]]]:
    """Objectness times softmax, then greedy suppression within each class, one box at a time."""
    scores = dense.logits[image].softmax(1) * dense.objectness[image].sigmoid()[:, None]
    kept = []
    for label in range(scores.shape[1]):
        left = [
            (float(s), b) for s, b in zip(scores[:, label], dense.boxes[image].clamp(0, 128), strict=True)
        ]
        left = sorted((pair for pair in left if pair[0] > threshold), key=lambda pair: -pair[0])
        while left:
            score, box = left.pop(0)
            kept.append((score, label, box.tolist()))
            left = [pair for pair in left if tv.box_iou(pair[1][None], box[None]) <= iou]
    return sorted(kept, reverse=True)[:most]


@pytest.mark.parametrize(("test", "threshold", "iou", "most"), [
    ({}, 0.005, 0.45, 300),
    ({"score_threshold": 0.1, "nms_iou": 0.2, "max_detections": 7}, 0.1, 0.2, 7),
])  # fmt: skip
def test_detections_are_objectness_times_class_after_suppression_by_class(
    test: dict[str, Any], threshold: float, iou: float, most: int
) -> None:
    detector = detector_of().eval()
    nn.init.normal_(detector.head.last.weight, std=0.6)
    with torch.no_grad():
        dense = detector(images())
    found = detector.detect(images(), torch.full((2, 2), 128), Selection(**test))
    for image in range(2):
        expected = by_hand(dense, image, threshold, iou, most)
        assert len(expected) == len(found[image].scores) > 5
        torch.testing.assert_close(found[image].scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(found[image].boxes, torch.tensor([box for _, _, box in expected]))
        assert found[image].labels.tolist() == [label for _, label, _ in expected]


@pytest.mark.parametrize(
    ("step", "warming"),
    [
        (TrainingStep(0, 80_200, 0), True),
        (TrainingStep(199, 80_200, 12_736), True),
        (TrainingStep(200, 80_200, 12_800), False),
        (TrainingStep(9, 100, 144), True),  # a tenth of a short training
        (TrainingStep(10, 100, 160), False),
    ],
)
def test_coordinates_warm_up_over_the_first_images_but_at_most_a_tenth(
    step: TrainingStep, warming: bool
) -> None:
    detector = detector_of()
    detector.before_step(step)
    terms = detector.training_loss(images(), TRUTH)
    assert terms.keys() - {"warmup"} == {"classification", "objectness", "regression"}
    assert ("warmup" in terms) == warming


def test_one_class_trains_without_a_classification_loss() -> None:
    """As the paper does for heads: a softmax over one class is 1."""
    targets = Targets.from_lists([TRUTH.boxes[:1]], [torch.zeros(1).long()])
    detector = detector_of(1)
    terms = detector.training_loss(images(1), targets)
    torch.stack(list(terms.values())).sum().backward()
    assert terms["classification"] == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_any_backbone_of_timm_with_features_will_do() -> None:
    detector = detector_of(backbone="timm/resnet10t")
    assert convolutions(detector.head)[0] == (512, 512, 3)
    torch.stack(list(detector.training_loss(images(), TRUTH).values())).sum().backward()
    assert [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []


def test_shapes_that_learn_have_their_gradient_and_deploy_as_fixed_ones() -> None:
    detector = detector_of(priors={"name": "learned", "init": SHAPES})
    detector.before_step(TrainingStep(3, 100, 12))
    terms = detector.training_loss(images(), TRUTH)
    torch.stack(list(terms.values())).sum().backward()
    assert detector.shapes is not None and detector.shapes.log_shapes.grad is not None
    assert (detector.shapes.log_shapes.grad != 0).all(), "soft assignment reaches every shape"
    detector.eval()
    deployed = detector.deployed()
    assert deployed.state_dict().keys() == detector_of().state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(deployed(images()).boxes, detector(images()).boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["dynamic", "max_iou", "atss"])
@pytest.mark.parametrize("priors", [SHAPES, "learned"])
def test_other_assignments_of_anchors_train_it_too(name: str, priors: Any) -> None:
    learned = {"name": "learned", "init": SHAPES}
    detector = detector_of(assign=name, **({"priors": learned} if priors == "learned" else {}))
    assert detector.assign(detector(images()), TRUTH).positive.any()
    torch.stack(list(detector.training_loss(images(), TRUTH).values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(RecipeError, match="predicts boxes from shapes, got priors: points"):
        detector_of(priors="points")
    with pytest.raises(RecipeError, match="trains its objectness, got loss: focal_iou; use loss: yolo"):
        detector_of(loss="focal_iou")
