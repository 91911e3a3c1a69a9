"""max-IoU, FCOS, ATSS and SimOTA in PyTorch, against slow per-image code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import detsearch_kernels as kernels
import pytest
import torch
from torch import Tensor

from detsearch_cli.slots.assigners import _candidates, base
from detsearch_cli.slots.assigners.atss import ATSSAssigner
from detsearch_cli.slots.assigners.fcos import FCOSAssigner
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.assigners.simota import SimOTA
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import BACKGROUND, IGNORE, Priors, Targets
from tests.slots import _reference as slow

ANCHORS = Anchors()(slow.SIZES, slow.LEVELS)
SQUARES = Anchors(base=8, scales=1, ratios=(1.0,))(slow.SIZES, slow.LEVELS)
POINTS = Points(range_base=16)(slow.SIZES, slow.LEVELS)
BATCHES = {
    "usual": [4, 0, 7, 1],
    "no object": [0, 0],
    "crowd": [300, 3],
}


@pytest.fixture(autouse=True)
def pytorch() -> Iterator[None]:
    """What is compiled is compared with this in tests/kernels."""
    kernels.use("off")
    yield
    kernels.use("auto")


def batch(name: str) -> Targets:
    return slow.random_targets(BATCHES[name], seed=len(name))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.equal(found, expected), f"{int((found != expected).sum())} of {found.numel()} differ"


@pytest.mark.parametrize("name", BATCHES)
def test_max_iou_equals_torchvisions_matcher(name: str) -> None:
    targets = batch(name)
    found = MaxIoU()(slow.dense_of(ANCHORS, targets.num_images), targets).matched
    assert_same(found, slow.max_iou(ANCHORS, targets))
    if name == "usual":
        assert (found == IGNORE).any() and (found >= 0).any() and (found == BACKGROUND).any()


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("radius", [None, 1.5])
def test_fcos_equals_brute_force(name: str, radius: float | None) -> None:
    targets = batch(name)
    assigner = FCOSAssigner(center_sampling=radius is not None)
    found = assigner(slow.dense_of(POINTS, targets.num_images), targets).matched
    assert_same(found, slow.fcos(POINTS, targets, radius))


def test_atss_takes_the_first_of_cells_equally_near() -> None:
    box = torch.tensor([[28.0, 28.0, 36.0, 36.0]])  # its middle lies on the corner of four cells of level 3
    nearest = ATSSAssigner(top_k=1).nearest(box, SQUARES)
    assert nearest[0, 0] == 3 * slow.SIZES[0][1] + 3


@pytest.mark.parametrize("name", BATCHES)
def test_atss_equals_brute_force(name: str) -> None:
    targets = batch(name)
    found = ATSSAssigner()(slow.dense_of(SQUARES, targets.num_images), targets).matched
    assert_same(found, slow.atss(SQUARES, targets))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("priors", [ANCHORS, POINTS])
def test_simota_equals_yolox_written_out(name: str, priors: Priors) -> None:
    targets = batch(name)
    dense = slow.dense_of(priors, targets.num_images)
    assert_same(SimOTA()(dense, targets).matched, slow.simota(dense, targets))


def test_simota_gives_more_positives_where_predictions_fit() -> None:
    box = torch.tensor([[20.0, 20.0, 90.0, 70.0]])
    targets = Targets.from_lists([box, box], [torch.zeros(1, dtype=torch.int64)] * 2)
    dense = slow.dense_of(POINTS, 2)
    predicted = torch.stack((box.expand(len(POINTS.boxes), 4), torch.zeros(len(POINTS.boxes), 4)))
    found = SimOTA()(replace(dense, boxes=predicted), targets)
    assert found.positive.sum(1).tolist() == [10, 1]


@pytest.mark.parametrize(
    ("assigner", "priors"),
    [(MaxIoU(), ANCHORS), (FCOSAssigner(), POINTS), (ATSSAssigner(), SQUARES), (SimOTA(), POINTS)],
)
def test_working_in_pieces_changes_nothing(
    assigner: base.Assigner, priors: Priors, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = slow.random_targets([20, 5, 0, 9], seed=5)
    dense = slow.dense_of(priors, targets.num_images)
    whole = assigner(dense, targets).matched
    monkeypatch.setattr(base, "MAX_PAIRS", 3 * max(priors.counts))
    monkeypatch.setattr(_candidates, "BUDGET", 64)
    assert torch.equal(assigner(dense, targets).matched, whole)


def test_the_last_level_is_open_and_every_box_has_a_level() -> None:
    targets = Targets.from_lists([torch.tensor([[0.0, 0, 5000, 5000]])], [torch.zeros(1, dtype=torch.int64)])
    found = FCOSAssigner()(slow.dense_of(POINTS, 1), targets).matched
    assert POINTS.level[found[0] >= 0].unique().tolist() == [POINTS.num_levels - 1]


def test_max_iou_gives_an_empty_box_no_prior() -> None:
    targets = Targets.from_lists([torch.tensor([[7.0, 7, 7, 7]])], [torch.zeros(1, dtype=torch.int64)])
    assert MaxIoU()(slow.dense_of(ANCHORS, 1), targets).matched.eq(BACKGROUND).all()
