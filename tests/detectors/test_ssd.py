"""SSD against torchvision's: its priors, its loss, and what only it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import _utils as tv_utils
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD as TorchvisionSSD

from detsearch_cli.detectors.ssd import SSD
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Test as Selection
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.losses.multibox import MultiBox
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets
from tests.detectors.test_detectors_contract import BOXES, detector_of, images, targets, total
from tests.slots import _reference as slow
from tests.slots.test_losses import priors_of


def ssd(image_size: int = 300, **options: Any) -> SSD:
    made = detector_of({"name": "ssd", **options}, augment={"image_size": image_size})
    assert isinstance(made, SSD)
    return made


# ---------------------------------------------------------------------- priors


def test_the_shapes_are_those_of_ssd300() -> None:
    """torchvision's ssd300_vgg16: scales .07 to 1.05 for COCO; here VOC's, and six shapes on every level."""
    scales = [0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05]
    generator = DefaultBoxGenerator([[2, 3]] * 6, scales=scales, clip=False)
    lists = ssd().prior_grid.level_boxes((3, 8))
    assert len(lists) == 6
    for level, found in enumerate(lists):
        expected = generator._wh_pairs[level] * 300
        torch.testing.assert_close(torch.tensor(found).sort(0).values, expected.sort(0).values)
        assert {tuple(round(x, 2) for x in s) for s in found} == {
            tuple(round(x, 2) for x in s) for s in expected.tolist()
        }


def test_ssd512_has_seven_levels_and_its_maps_end_in_one_cell() -> None:
    large = ssd(512, size=512)
    assert large.strides == (8, 16, 32, 64, 128, 256, 512)
    dense = large(images(1, 512, 512))
    assert [count // 6 for count in dense.priors.counts] == [64**2, 32**2, 16**2, 8**2, 4**2, 2**2, 1]
    smallest = large.prior_grid.level_boxes((3, 9))[0][0]
    assert smallest == pytest.approx((35.84, 35.84))


def test_shapes_are_parts_of_the_image_side_that_is_trained_on() -> None:
    half, whole = (ssd(side).prior_grid.level_boxes((3, 8)) for side in (150, 300))
    torch.testing.assert_close(torch.tensor(half) * 2, torch.tensor(whole))


# ---------------------------------------------------------------------- loss


def dense_and_targets() -> tuple[Dense, Targets, Assignment]:
    there = slow.random_targets([4, 2, 6], 0)
    dense = slow.dense_of(priors_of("anchors"), 3)
    return dense, there, MaxIoU(positive_iou=0.5, negative_iou=0.5)(dense, there)


def test_the_loss_equals_torchvisions() -> None:
    dense, there, assignment = dense_and_targets()
    found = MultiBox()(dense, assignment, there)

    class Frame:
        """The parts of torchvision's SSD that its loss reads."""

        box_coder = tv_utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
        neg_to_pos_ratio = 3

    lists = [
        {"boxes": own, "labels": there.labels[start : start + len(own)] + 1}
        for start, own in slow.per_image(there)
    ]
    starts = [start for start, _ in slow.per_image(there)]
    matched = [
        torch.where(row >= 0, row - start, -1) for row, start in zip(assignment.matched, starts, strict=True)
    ]
    outputs = {
        "bbox_regression": dense.deltas,
        "cls_logits": torch.nn.functional.pad(dense.logits, (1, 0)),
    }
    anchors = [dense.priors.boxes] * 3
    expected = TorchvisionSSD.compute_loss(Frame(), lists, outputs, anchors, matched)  # type: ignore[arg-type]
    torch.testing.assert_close(found["classification"], expected["classification"])
    torch.testing.assert_close(found["regression"], expected["bbox_regression"])


def test_three_hardest_negatives_for_each_positive_get_a_gradient() -> None:
    dense, there, assignment = dense_and_targets()
    logits = dense.logits.clone().requires_grad_()
    MultiBox()(Dense((logits,), dense.boxes, dense.deltas, dense.priors), assignment, there)[
        "classification"
    ].backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1) > 0
    positives = assignment.positive.sum(1)
    assert torch.equal(touched.sum(1), 4 * positives)
    hardness = torch.nn.functional.pad(dense.logits, (1, 0)).logsumexp(-1)
    for image in range(3):
        negative = assignment.matched[image] == BACKGROUND
        chosen, rest = hardness[image][negative & touched[image]], hardness[image][negative & ~touched[image]]
        assert chosen.min() >= rest.max()


def test_an_image_without_objects_teaches_background() -> None:
    dense = slow.dense_of(priors_of("anchors"), 1)
    logits = dense.logits.clone().requires_grad_()
    nothing = slow.random_targets([0], 0)
    empty = Assignment.background(1, logits.shape[1], logits.device)
    terms = MultiBox()(Dense((logits,), dense.boxes, dense.deltas, dense.priors), empty, nothing)
    total(terms).backward()
    assert logits.grad is not None and int((logits.grad.abs().sum(-1) > 0).sum()) == 3


def test_scores_are_softmax_probabilities_beside_background() -> None:
    logits = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = MultiBox().probabilities(logits)
    expected = torch.cat((torch.zeros(2, 5, 1), logits), 2).softmax(2)[..., 1:]
    torch.testing.assert_close(found, expected)
    detector = ssd(128).eval()
    with torch.no_grad():
        best = detector.loss.probabilities(detector(images(1)).logits).max()
    scores = detector.detect(images(1), torch.tensor([[128, 128]]), Selection())[0].scores
    assert scores.max() <= best + 1e-6


def test_points_are_refused_with_the_remedy() -> None:
    with pytest.raises(RecipeError, match="got points; use loss: focal_iou"):
        detector_of("ssd", priors="points").training_loss(images(1), targets(BOXES))


# ---------------------------------------------------------------------- VGG


def test_vgg_has_the_papers_layers_and_every_parameter_learns() -> None:
    detector = detector_of("ssd", backbone="vgg16")
    assert isinstance(detector, SSD) and detector.vgg is not None
    features = detector.features(images(1, 96, 96))
    assert [f.shape[1] for f in features] == [512, 1024, 512, 256, 256, 256]
    assert [f.shape[2] for f in features] == [12, 6, 3, 2, 1, 1]
    norm = features[0].norm(dim=1)
    assert norm[norm > 1e-3].allclose(torch.tensor(20.0), rtol=1e-3)
    total(detector.training_loss(images(1, 96, 96), targets(BOXES))).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_vgg_takes_torchvisions_weights(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    torch.manual_seed(1)
    theirs = vgg16(weights=None).features.state_dict(prefix="features.")
    save_file(theirs, tmp_path / "vgg16.safetensors")
    weights = {"name": "vgg16", "weights": tmp_path / "vgg16.safetensors"}
    detector = detector_of("ssd", backbone=weights)
    own = detector.backbone.state_dict()  # type: ignore[union-attr]
    assert torch.equal(own["body.features_28.weight"], theirs["features.28.weight"])


def test_other_losses_and_assigners_work() -> None:
    for changes in ({"loss": "focal_smooth_l1"}, {"loss": "focal_iou"}, {"assign": "atss"}):
        detector = detector_of("ssd", **changes)
        assert total(detector.training_loss(images(2), targets(BOXES, BOXES[:0]))).isfinite()
