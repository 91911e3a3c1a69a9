"""The compiled max-IoU, ATSS, FCOS and SimOTA against the PyTorch assigners, and against code from the papers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import detsearch_kernels as kernels
import pytest
import torch
from detsearch_kernels import loader, matchers
from torch import Tensor

from detsearch_cli.slots.assigners.atss import ATSSAssigner
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.slots.assigners.fcos import FCOSAssigner
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.assigners.simota import SimOTA
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Priors, Targets
from tests.slots import _reference as slow

ANCHORS = Anchors()(slow.SIZES, slow.LEVELS)
SQUARES = Anchors(base=8, scales=1, ratios=(1.0,))(slow.SIZES, slow.LEVELS)
POINTS = Points(range_base=16)(slow.SIZES, slow.LEVELS)
EXACT: dict[str, tuple[Assigner, Priors]] = {
    "max_iou": (MaxIoU(), ANCHORS),
    "max_iou on squares": (MaxIoU(), SQUARES),
    "max_iou on points": (MaxIoU(), POINTS),
    "max_iou without low quality": (MaxIoU(low_quality=False), ANCHORS),
    "max_iou, RPN": (MaxIoU(positive_iou=0.7, negative_iou=0.3), ANCHORS),
    "max_iou from 0": (MaxIoU(positive_iou=0.2, negative_iou=0.0), ANCHORS),
    "max_iou that must fit": (MaxIoU(positive_iou=1.0, negative_iou=1.0), ANCHORS),
    "atss": (ATSSAssigner(), SQUARES),
    "atss on 9 anchors": (ATSSAssigner(top_k=3), ANCHORS),
    "atss on points": (ATSSAssigner(), POINTS),
    "atss, one cell": (ATSSAssigner(top_k=1), ANCHORS),
    "atss, every cell": (ATSSAssigner(top_k=1000), SQUARES),
    "fcos": (FCOSAssigner(), POINTS),
    "fcos, middle": (FCOSAssigner(center_sampling=True), POINTS),
    "fcos, narrow middle": (FCOSAssigner(center_sampling=True, radius=0.4), POINTS),
}
COSTS: dict[str, tuple[Assigner, Priors]] = {
    "simota": (SimOTA(), POINTS),
    "simota on anchors": (SimOTA(), ANCHORS),
    "simota, many": (SimOTA(candidate_top_k=40, center_radius=4.0), SQUARES),
    "simota, far": (SimOTA(center_radius=0.3), POINTS),
}


@pytest.fixture(autouse=True)
def compiled() -> None:
    status = loader.load("cpu")
    if status.library is None:
        pytest.skip(f"no compiled kernels: {status.reason}")


@contextmanager
def no_kernels() -> Iterator[None]:
    try:
        kernels.use("off")
        yield
    finally:
        kernels.use("auto")


def both(
    assigner: Assigner, priors: Priors, targets: Targets, dense: Dense | None = None
) -> tuple[Tensor, Tensor]:
    """matched by the kernel and by PyTorch."""
    dense = slow.dense_of(priors, targets.num_images) if dense is None else dense
    ours = assigner(dense, targets).matched
    with no_kernels():
        return ours, assigner(dense, targets).matched


def on_the_grid(seed: int) -> Targets:
    """Boxes with whole coordinates in steps of 4 px, each twice: distances, areas and overlaps tie."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 24, (30, 2), generator=random) * 4
    sides = torch.randint(1, 16, (30, 2), generator=random) * 4
    boxes = torch.cat((corner, corner + sides), 1).float().repeat(2, 1)
    return Targets.from_lists([boxes[:40], boxes[40:]], [torch.arange(40) % 3, torch.arange(20) % 3])


@pytest.mark.parametrize("name", EXACT)
def test_it_chooses_exactly_what_pytorch_chooses(name: str) -> None:
    assigner, priors = EXACT[name]
    for seed in range(10):
        counts = [[0, 1], [6, 60], [200, 3], [4, 0, 7]][seed % 4]
        ours, theirs = both(assigner, priors, slow.random_targets(counts, seed))
        assert torch.equal(ours, theirs), f"{int((ours != theirs).sum())} differ"


@pytest.mark.parametrize("name", EXACT)
def test_ties_go_where_pytorch_sends_them(name: str) -> None:
    assigner, priors = EXACT[name]
    for seed in range(5):
        ours, theirs = both(assigner, priors, on_the_grid(seed))
        assert torch.equal(ours, theirs), f"{int((ours != theirs).sum())} differ"


@pytest.mark.parametrize("name", COSTS)
def test_simota_differs_from_pytorch_only_where_costs_are_equal_up_to_rounding(name: str) -> None:
    assigner, priors = COSTS[name]
    positives = differing = 0
    for seed in range(8):
        targets = (
            on_the_grid(seed) if seed % 2 else slow.random_targets([[6, 60], [100, 0]][seed // 2 % 2], seed)
        )
        ours, theirs = both(assigner, priors, targets, slow.dense_of(priors, 2, 20, seed))
        positives += int((theirs >= 0).sum())
        differing += int((ours != theirs).sum())
    assert positives > 400
    assert differing <= positives / 400


@pytest.mark.parametrize("counts", [[4, 0, 7, 1], [0, 0], [300, 3]])
def test_it_is_what_the_papers_write(counts: list[int]) -> None:
    targets = slow.random_targets(counts, 11)
    boxes, splits = targets.boxes, targets.splits
    assert ANCHORS.tiling is not None and POINTS.tiling is not None and SQUARES.tiling is not None
    assert torch.equal(matchers.max_iou(boxes, splits, ANCHORS.tiling), slow.max_iou(ANCHORS, targets))
    assert torch.equal(matchers.atss(boxes, splits, SQUARES.tiling), slow.atss(SQUARES, targets))
    for radius in (None, 1.5):
        found = matchers.fcos_targets(boxes, splits, POINTS.tiling, radius=radius)
        assert torch.equal(found, slow.fcos(POINTS, targets, radius))
    dense = slow.dense_of(POINTS, len(counts))
    assert torch.equal(by_simota(dense, targets), slow.simota(dense, targets))


def by_simota(dense: Dense, targets: Targets) -> Tensor:
    assert dense.priors.tiling is not None
    return matchers.simota(
        dense.maps, dense.boxes, targets.boxes, targets.labels, targets.splits, dense.priors.tiling
    )


DEGENERATE = {
    "no area": (10.0, 10.0, 10.0, 10.0),
    "a line": (5.0, 9.0, 40.0, 9.0),
    "inside out": (50.0, 50.0, 20.0, 20.0),
    "outside": (-900.0, -900.0, -800.0, -800.0),
    "huge": (-1e9, -1e9, 1e9, 1e9),
    "far away": (1e9, 1e9, 2e9, 2e9),
    "too large to multiply": (-1e30, -1e30, 1e30, 2e30),
    "infinite": (-math.inf, -math.inf, math.inf, math.inf),
    "half infinite": (3.0, 3.0, math.inf, 60.0),
    "not a number": (math.nan, 0.0, 10.0, 10.0),
    "partly not a number": (0.0, 0.0, 40.0, math.nan),
}


@pytest.mark.parametrize("name", [*EXACT, *COSTS])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_boxes_are_treated_as_pytorch_does(name: str, kind: str) -> None:
    assigner, priors = (EXACT | COSTS)[name]
    targets = slow.random_targets([4], 5)
    boxes = torch.cat((targets.boxes[:2], torch.tensor([DEGENERATE[kind]]), targets.boxes[2:]))
    more = Targets(boxes, torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 5]))
    ours, theirs = both(assigner, priors, more)
    assert torch.equal(ours, theirs)
    only = Targets(boxes[2:3], torch.tensor([1]), torch.tensor([0, 0, 1]))
    ours, theirs = both(assigner, priors, only)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["max_iou", "atss on 9 anchors", "simota on anchors"])
def test_learned_anchors_of_any_size_and_place_in_the_cell_are_assigned(name: str) -> None:
    assigner, priors = (EXACT | COSTS)[name]
    tiling = priors.tiling
    assert tiling is not None
    cell = tiling.cell + torch.randn(tiling.cell.shape, generator=torch.Generator().manual_seed(3)) * 3
    boxes = priors.points.repeat(1, 2) + cell[priors.level, torch.arange(len(priors.boxes)) % 9]
    moved = replace(priors, boxes=boxes, tiling=replace(tiling, cell=cell.requires_grad_()))
    for seed in range(4):
        ours, theirs = both(assigner, moved, slow.random_targets([12, 40], seed))
        assert torch.equal(ours, theirs)


def test_every_ground_truth_that_overlaps_a_prior_makes_its_best_one_positive() -> None:
    targets = slow.random_targets([20, 9], 4)
    matched = MaxIoU()(slow.dense_of(ANCHORS, 2), targets).matched
    for image, (_, boxes) in enumerate(slow.per_image(targets)):
        best = slow.tv.box_iou(boxes, ANCHORS.boxes).argmax(1)
        assert (matched[image, best] >= 0).all()


def test_simota_reads_logits_where_the_head_wrote_them() -> None:
    dense, targets = slow.dense_of(ANCHORS, 2), slow.random_targets([5, 9], 1)
    whole = by_simota(dense, targets)
    for layout in (torch.contiguous_format, torch.channels_last):
        levels, first = [], 0
        for (height, width), count in zip(slow.SIZES, ANCHORS.counts, strict=True):
            own = dense.logits[:, first : first + count].reshape(2, height, width, 27).permute(0, 3, 1, 2)
            levels.append(own.contiguous(memory_format=layout))
            first += count
        assert torch.equal(by_simota(replace(dense, maps=tuple(levels)), targets), whole)


def test_simota_survives_predictions_that_are_not_numbers() -> None:
    targets = slow.random_targets([30, 4], 6)
    dense = slow.dense_of(POINTS, 2)
    for broken in (
        replace(dense, maps=(torch.full_like(dense.logits, math.nan),)),
        replace(dense, boxes=torch.full_like(dense.boxes, math.nan)),
        replace(dense, boxes=torch.full_like(dense.boxes, math.inf)),
    ):
        ours, theirs = both(SimOTA(), POINTS, targets, broken)
        assert torch.equal(ours >= 0, theirs >= 0)
        assert int(ours.max()) < 34 and int(ours.min()) >= -1


@pytest.mark.parametrize("name", [*EXACT, *COSTS])
def test_two_threads_choose_what_one_chooses(name: str) -> None:
    assigner, priors = (EXACT | COSTS)[name]
    targets, before = slow.random_targets([60, 30, 0, 1], 4), torch.get_num_threads()
    dense = slow.dense_of(priors, 4)
    try:
        torch.set_num_threads(1)
        one = assigner(dense, targets).matched
        torch.set_num_threads(2)
        assert torch.equal(assigner(dense, targets).matched, one)
    finally:
        torch.set_num_threads(before)


def test_operands_need_not_be_contiguous() -> None:
    targets, dense = slow.random_targets([9, 4], 2), slow.dense_of(POINTS, 2)
    spread = Targets(
        torch.stack((targets.boxes, targets.boxes), 2)[..., 0],
        targets.labels.repeat_interleave(2)[::2],
        targets.splits.repeat_interleave(2)[::2],
    )
    wide = replace(dense, boxes=torch.stack((dense.boxes, dense.boxes), 3)[..., 0])
    assert not wide.boxes.is_contiguous()
    assert torch.equal(by_simota(wide, spread), by_simota(dense, targets))
    for assigner in (MaxIoU(), ATSSAssigner(), FCOSAssigner()):
        assert torch.equal(assigner(dense, spread).matched, assigner(dense, targets).matched)


def call(function: Callable[..., Tensor], **change: Any) -> Tensor:
    targets, dense = slow.random_targets([3], 7), slow.dense_of(POINTS, 1)
    given: dict[str, Any] = {"truth": targets.boxes, "splits": targets.splits, "tiling": POINTS.tiling}
    if function is matchers.simota:
        given |= {"logits": dense.logits, "boxes": dense.boxes, "labels": torch.tensor([0, 1, 2])}
    return function(**{**given, **change})


@pytest.mark.parametrize(
    ("function", "change", "sentence"),
    [
        (matchers.max_iou, {"truth": torch.zeros(3, 4, dtype=torch.float64)}, "truth must be torch.float32, got"),
        (matchers.max_iou, {"truth": torch.zeros(3, 5)}, r"truth must be \(G, 4\), got \(3, 5\)"),
        (matchers.max_iou, {"splits": torch.tensor([0, 2])}, r"from 0 to the 3 ground truths, got \[0, 2\]"),
        (matchers.max_iou, {"splits": torch.tensor([0, 3, 2, 3])}, "splits must ascend"),
        (matchers.max_iou, {"splits": torch.tensor([0, 3], dtype=torch.int32)}, "splits must be torch.int64"),
        (matchers.max_iou, {"positive_iou": 0.3}, "0 <= negative <= positive <= 1, got negative 0.4, positive 0.3"),
        (matchers.atss, {"top_k": 0}, "top_k must be above 0, got 0"),
        (matchers.fcos_targets, {"tiling": ANCHORS.tiling}, "FCOS needs points with ranges"),
        (matchers.fcos_targets, {"radius": 0.0}, "radius must be above 0, got 0.0"),
        (matchers.simota, {"labels": torch.tensor([0, 1, 9])}, "labels must be below the 3 classes, got 9"),
        (matchers.simota, {"labels": torch.tensor([0, 1])}, "3 ground truths need as many labels"),
        (matchers.simota, {"boxes": torch.zeros(1, 7, 4)}, r"boxes must be \(1, \d+, 4\), got \(1, 7, 4\)"),
        (matchers.simota, {"logits": torch.zeros(1, 7, 3)}, r"logits must be \(1, \d+, C\), got \(1, 7, 3\)"),
        (matchers.simota, {"logits": [torch.zeros(1, 3, 4, 4)]}, r"logits must be \(B, 1 x C, H, W\) for 1 images"),
    ],
)  # fmt: skip
def test_input_that_contradicts_itself_is_named(
    function: Callable[..., Tensor], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        call(function, **change)


@pytest.mark.parametrize("operator", ["max_iou", "atss", "fcos_targets", "simota"])
def test_it_may_be_the_first_operator_of_a_process(operator: str) -> None:
    code = (
        "from detsearch_kernels import matchers; from tests.kernels.test_matchers import call; "
        f"print(call(matchers.{operator}).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_knows_the_operators() -> None:
    tiling = POINTS.tiling
    assert tiling is not None
    for counts in ([3, 0], [0]):
        targets, dense = slow.random_targets(counts, 8), slow.dense_of(POINTS, len(counts))
        places = (tiling.sizes, tiling.cell, tiling.strides, tiling.ranges)
        start = (targets.boxes, targets.splits, *places, tiling.num_priors)
        ops = torch.ops.detsearch
        torch.library.opcheck(ops.max_iou.default, (*start, 0.5, 0.4, True))
        torch.library.opcheck(ops.atss.default, (*start, 9))
        torch.library.opcheck(ops.fcos_targets.default, (*start, 1.5))
        operands = (
            [dense.logits],
            dense.boxes,
            targets.boxes,
            targets.labels,
            targets.splits,
            *places,
            3,
            10,
            2.5,
        )
        torch.library.opcheck(ops.simota.default, operands)
