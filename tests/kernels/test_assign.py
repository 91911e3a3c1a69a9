"""The compiled assignment against the paper's algorithm written out, and against the PyTorch operator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from detsearch_kernels import loader
from detsearch_kernels.assign import Scattered, Tiling, assign_topk

from detsearch_cli.slots.assigners._candidates import find_candidates
from detsearch_cli.slots.assigners.dynamic import Dynamic
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.base import PriorGrid
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Priors, Targets
from tests.slots import dynamic_reference as paper

GRIDS: dict[str, PriorGrid] = {
    "anchors": Anchors(),
    "square": Anchors(base=8.0, scales=1, ratios=(1.0,)),
    "points": Points(),
}
LEVELS = (3, 5)


@pytest.fixture(autouse=True)
def compiled() -> None:
    status = loader.load("cpu")
    if status.library is None:
        pytest.skip(f"no compiled kernels: {status.reason}")


def scene(
    grid: PriorGrid, images: list[int], seed: int, classes: int = 3, size: tuple[int, int] = (96, 128)
) -> tuple[Dense, Targets]:
    """Predictions near the priors, and `images[b]` ground truths of 5 to 110 px in image b."""
    random = torch.Generator().manual_seed(seed)
    sizes = [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(LEVELS[0], LEVELS[1] + 1)]
    priors = grid(sizes, LEVELS)
    boxes, labels = [], []
    for count in images:
        sides = 5 * torch.exp2(torch.rand(count, 2, generator=random) * 4.4)
        corner = torch.rand(count, 2, generator=random) * (torch.tensor(size).flip(0) - sides).clamp(min=1)
        boxes.append(torch.cat((corner, corner + sides), 1))
        labels.append(torch.randint(classes, (count,), generator=random))
    shape = (len(images), len(priors.boxes))
    logits = torch.randn(*shape, classes, generator=random) * 2 - 3
    span = (priors.boxes[:, 2:] - priors.boxes[:, :2]).repeat(1, 2)
    predicted = priors.boxes + torch.randn(*shape, 4, generator=random) * 0.2 * span
    return Dense((logits,), predicted, torch.zeros(1), priors), Targets.from_lists(boxes, labels)


def by_pytorch(assigner: Dynamic, dense: Dense, targets: Targets) -> torch.Tensor:
    loader.use("off")
    try:
        return assigner(dense, targets).matched
    finally:
        loader.use("auto")


def by_kernel(assigner: Dynamic, dense: Dense, targets: Targets) -> torch.Tensor:
    assert dense.priors.tiling is not None
    return assigner._compiled(dense, targets, dense.priors.tiling)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_algorithm_2_of_the_paper(name: str, seed: int) -> None:
    dense, targets = scene(GRIDS[name], [4, 0, 7], seed)
    assigner = Dynamic(counts=((3, 9, 2), (4, 12, 1), (5, 6, 7)))
    matched = by_kernel(assigner, dense, targets)
    priors = dense.priors
    for image in range(3):
        rows = range(int(targets.splits[image]), int(targets.splits[image + 1]))
        found = paper.Scene(
            priors.boxes.numpy(),
            priors.points.numpy(),
            priors.level.numpy(),
            None if priors.ranges is None else [tuple(r) for r in priors.ranges.tolist()],
            dense.logits[image].double().numpy(),
            dense.boxes[image].double().numpy(),
        )
        boxes = [targets.boxes[g].tolist() for g in rows]
        labels = [int(targets.labels[g]) for g in rows]
        owner, loss = paper.assign(found, boxes, labels, assigner.counts, assigner.edge_rows())
        owner = paper.serve(owner, loss)
        expected = np.full(len(priors.boxes), -1)
        for prior, g in owner.items():
            expected[prior] = rows[g]
        np.testing.assert_array_equal(matched[image].numpy(), expected)


@pytest.mark.parametrize("name", GRIDS)
def test_it_differs_from_the_pytorch_operator_only_where_losses_are_equal_up_to_rounding(name: str) -> None:
    assigner = Dynamic(counts=((20,),))
    positives = differing = 0
    for seed in range(12):
        dense, targets = scene(GRIDS[name], [[0, 1], [6, 60], [200, 3]][seed % 3], seed, classes=20)
        ours, theirs = by_kernel(assigner, dense, targets), by_pytorch(assigner, dense, targets)
        positives += int((theirs >= 0).sum())
        differing += int((ours != theirs).sum())
        # every ground truth has as many, and choosing otherwise costs nothing
        assert torch.equal(ours[ours >= 0].unique(), theirs[theirs >= 0].unique())
    assert differing <= positives / 1000


def test_boxes_on_top_of_each_other_all_keep_a_positive() -> None:
    dense, _ = scene(Anchors(), [1], 0)
    box = torch.tensor([[30.0, 30.0, 62.0, 60.0]]).repeat(40, 1)
    targets = Targets.from_lists([box], [torch.arange(40) % 3])
    for counts in (((4,),), ((60,),)):
        assigner = Dynamic(counts=counts)
        matched = by_kernel(assigner, dense, targets)
        assert matched[matched >= 0].unique().tolist() == list(range(40))
        assert torch.equal(matched, by_pytorch(assigner, dense, targets))


def test_more_boxes_than_candidates_serves_as_many_as_any_assignment_can() -> None:
    dense, _ = scene(Points(), [1], 0)
    boxes = torch.tensor([[8.0, 8.0, 30.0, 30.0]]).repeat(30, 1)  # few points lie inside
    targets = Targets.from_lists([boxes], [torch.zeros(30, dtype=torch.int64)])
    candidates = int(Dynamic().explain(dense.priors, boxes[:1]).candidates)
    matched = by_kernel(Dynamic(), dense, targets)
    assert 0 < candidates < 30
    assert len(matched[matched >= 0].unique()) == candidates


def test_logits_are_read_where_the_head_wrote_them() -> None:
    dense, targets = scene(Anchors(), [5, 9], 1)
    tiling = dense.priors.tiling
    assert tiling is not None
    counts, edges = torch.tensor([[7]]), torch.empty(1, 0)
    others = (dense.boxes, targets.boxes, targets.labels, targets.splits, tiling, counts, edges)
    whole = assign_topk(dense.logits, *others, alpha=1.5, min_iou=0.1)
    for layout in (torch.contiguous_format, torch.channels_last):
        levels, first = [], 0
        for (height, width), count in zip(tiling.sizes.tolist(), dense.priors.counts, strict=True):
            own = dense.logits[:, first : first + count].reshape(2, height, width, 27).permute(0, 3, 1, 2)
            levels.append(own.contiguous(memory_format=layout))
            first += count
        assert torch.equal(assign_topk(levels, *others, alpha=1.5, min_iou=0.1), whole)


def test_learned_anchors_of_any_size_and_place_in_the_cell_are_found() -> None:
    dense, targets = scene(Anchors(), [12], 2)
    tiling = dense.priors.tiling
    assert tiling is not None
    cell = tiling.cell + torch.randn(tiling.cell.shape, generator=torch.Generator().manual_seed(3)) * 3
    shifts = dense.priors.points.repeat(1, 2)
    boxes = shifts + cell[dense.priors.level, torch.arange(len(shifts)) % 9]
    moved = replace(dense, priors=replace(dense.priors, boxes=boxes, tiling=replace(tiling, cell=cell)))
    assigner = Dynamic(counts=((15,),))
    assert torch.equal(by_kernel(assigner, moved, targets), by_pytorch(assigner, moved, targets))


def test_learned_anchors_may_carry_a_gradient() -> None:
    dense, targets = scene(Anchors(), [12], 2)
    tiling = dense.priors.tiling
    assert tiling is not None
    learned = replace(tiling, cell=tiling.cell.clone().requires_grad_())
    with_gradient = replace(dense, priors=replace(dense.priors, tiling=learned))
    assert torch.equal(by_kernel(Dynamic(), with_gradient, targets), by_kernel(Dynamic(), dense, targets))


def boxes_for(priors: Priors, kind: str, count: int, random: torch.Generator) -> torch.Tensor:
    """Ground truths (count, 4) where rounding matters: anywhere, on whole px, on the grid, or on priors."""
    if kind == "priors":
        rows = torch.randint(len(priors.boxes), (count,), generator=random)
        return priors.boxes[rows] + torch.randn(count, 1, generator=random) * 1e-3
    sides = torch.exp(torch.rand(count, 2, generator=random) * 5.5)
    middle = torch.rand(count, 2, generator=random) * torch.tensor([150.0, 110.0]) - 10
    step = {"anywhere": 2**-10, "pixels": 1.0, "grid": 8.0}[kind]
    return torch.cat((middle - sides / 2, middle + sides / 2), 1).div(step).round() * step


@pytest.mark.parametrize("layout", ["tiled", "clipped", "moved"])
@pytest.mark.parametrize("kind", ["anywhere", "pixels", "grid", "priors"])
@pytest.mark.parametrize("name", [*GRIDS, "slim"])
def test_candidates_and_best_levels_are_exactly_those_of_the_full_comparison(
    name: str, kind: str, layout: str
) -> None:
    random = torch.Generator().manual_seed(0)
    grid = Anchors(base=3.3, scales=2, ratios=(0.1, 7.0)) if name == "slim" else GRIDS[name]
    priors = grid([(12, 16), (6, 8), (3, 4)], LEVELS)
    count, every = 60, len(priors.boxes)
    where: Tiling | Scattered | None = priors.tiling
    if layout != "tiled":
        priors = clipped(priors, (96, 128)) if layout == "clipped" else moved(priors, random)
        where = scattered(priors)
    assert where is not None
    boxes = boxes_for(priors, kind, count, random)
    # every ground truth has an image of its own, so that no two want the same
    logits, predicted = torch.zeros(1, 1, 1).expand(count, every, 1), priors.boxes.expand(count, every, 4)
    others = (logits, predicted, boxes, torch.zeros(count, dtype=torch.int64), torch.arange(count + 1), where)
    for min_iou in (0.0, 1e-6, 0.1, 0.5):
        pairs = find_candidates(priors, boxes, min_iou)
        expected = torch.zeros(count, every, dtype=torch.bool)
        expected[pairs.gt, pairs.prior] = True
        counts = torch.full((3, 1), every)
        found = assign_topk(*others, counts, torch.empty(3, 0), alpha=1.5, min_iou=min_iou)
        assert torch.equal(found >= 0, expected)
        one_more_a_level = torch.tensor([[1], [2], [3]])
        found = assign_topk(*others, one_more_a_level, torch.empty(3, 0), alpha=1.5, min_iou=min_iou)
        wanted = torch.minimum(pairs.level.clamp(min=0) + 1, expected.sum(1))
        assert torch.equal((found >= 0).sum(1), wanted)


def clipped(priors: Priors, size: tuple[int, int]) -> Priors:
    """The same, cut at the borders of an image of this height and width."""
    high, wide = size
    limits = torch.tensor([wide, high, wide, high], dtype=torch.float32)
    return replace(priors, boxes=torch.minimum(priors.boxes.clamp(min=0), limits), tiling=None)


def moved(priors: Priors, random: torch.Generator) -> Priors:
    """Each prior at a place and of a size of its own."""
    boxes = priors.boxes + torch.randn(priors.boxes.shape, generator=random) * 4
    points = priors.points + torch.randn(priors.points.shape, generator=random) * 3
    return replace(priors, boxes=boxes, points=points, tiling=None)


def scattered(priors: Priors) -> Scattered:
    sizes = torch.tensor([(count, 1, 1) for count in priors.counts])
    if priors.ranges is None:
        return Scattered(priors.boxes, sizes, torch.empty(0, 2))
    return Scattered(priors.points, sizes, priors.ranges)


@pytest.mark.parametrize("name", GRIDS)
def test_priors_that_do_not_tile_are_assigned_as_the_pytorch_operator_does(name: str) -> None:
    random = torch.Generator().manual_seed(1)
    assigner = Dynamic(counts=((3, 9, 2), (4, 12, 1), (5, 6, 7)))
    for seed in range(4):
        dense, targets = scene(GRIDS[name], [9, 0, 30], seed)
        tiling = dense.priors.tiling
        assert tiling is not None
        for priors in (clipped(dense.priors, (96, 128)), moved(dense.priors, random)):
            free = replace(dense, priors=priors)
            matched = assigner(free, targets).matched
            assert torch.equal(matched, by_pytorch(assigner, free, targets))
            assert torch.equal(assigner(replace(free, maps=maps_of(dense, tiling)), targets).matched, matched)


def maps_of(dense: Dense, tiling: Tiling) -> tuple[torch.Tensor, ...]:
    """The class scores as a head writes them."""
    parts = zip(tiling.sizes.tolist(), dense.logits.split(dense.priors.counts, 1), strict=True)
    return tuple(
        own.reshape(len(own), height, width, -1).permute(0, 3, 1, 2).contiguous()
        for (height, width), own in parts
    )


def test_two_threads_choose_what_one_chooses() -> None:
    dense, targets = scene(Anchors(), [60, 30, 0, 1], 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = by_kernel(Dynamic(), dense, targets)
        torch.set_num_threads(2)
        assert torch.equal(by_kernel(Dynamic(), dense, targets), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "box",
    [
        (10.0, 10.0, 10.0, 10.0),  # no area
        (50.0, 50.0, 20.0, 20.0),  # inside out
        (-900.0, -900.0, -800.0, -800.0),  # outside the image
        (-1e9, -1e9, 1e9, 1e9),
        (math.nan, 0.0, 10.0, 10.0),
    ],
)
@pytest.mark.parametrize("name", GRIDS)
def test_degenerate_boxes_are_treated_as_the_pytorch_operator_does(name: str, box: tuple[float, ...]) -> None:
    dense, targets = scene(GRIDS[name], [4], 5)
    more = Targets(
        torch.cat((targets.boxes, torch.tensor([box]))),
        torch.cat((targets.labels, torch.tensor([0]))),
        torch.tensor([0, 5]),
    )
    assert torch.equal(by_kernel(Dynamic(), dense, more), by_pytorch(Dynamic(), dense, more))


def test_logits_that_are_not_numbers_do_not_harm_other_memory() -> None:
    dense, targets = scene(Anchors(), [30], 6)
    broken = replace(dense, maps=(torch.full_like(dense.logits, math.nan),))
    matched = by_kernel(Dynamic(), broken, targets)
    assert int(matched.max()) < 30
    assert int(matched.min()) >= -1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": torch.tensor([0, 1, 9])}, "labels must be below the 3 classes, got 9"),
        ({"splits": torch.tensor([0, 2])}, "splits must run from 0 to the 3 ground truths"),
        ({"splits": torch.tensor([0, 1, 3])}, "2 splits"),
        (
            {"boxes": torch.zeros(1, 7, 4)},
            r"boxes must be \(1, \d+, 4\), got \(1, 7, 4\)|differ in images or priors",
        ),
        ({"truth": torch.zeros(3, 4, dtype=torch.float64)}, "truth must be float32 on the CPU"),
        ({"counts": torch.ones(2, 1, dtype=torch.int64)}, "counts must have one row or 3"),
        ({"counts": torch.zeros(1, 1, dtype=torch.int64)}, "every count must be at least 1, got 0"),
    ],
)
def test_input_that_contradicts_itself_is_named(change: dict[str, torch.Tensor], sentence: str) -> None:
    dense, targets = scene(Anchors(), [3], 7)
    given = {
        "logits": dense.logits,
        "boxes": dense.boxes,
        "truth": targets.boxes,
        "labels": targets.labels,
        "splits": targets.splits,
        "tiling": dense.priors.tiling,
        "counts": torch.tensor([[4]]),
        "edges": torch.empty(1, 0),
    }
    if "splits" in change and len(change["splits"]) == 3:
        sentence = "1 images need 2 splits"
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        assign_topk(**{**given, **change}, alpha=1.5, min_iou=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"priors": torch.zeros(4, 4)}, r"priors must be \(\d+, 4\), got \(4, 4\)"),
        ({"sizes": torch.tensor([[2, 1, 1]])}, r"boxes must be \(B, 2, 4\)"),
        ({"ranges": torch.zeros(1, 2)}, r"ranges must be \(0, 2\) or \(3, 2\), got \(1, 2\)"),
        ({"ranges": torch.zeros(3, 2)}, r"priors must be \(\d+, 2\)"),
    ],
)
def test_scattered_priors_that_contradict_themselves_are_named(
    change: dict[str, torch.Tensor], sentence: str
) -> None:
    dense, targets = scene(Anchors(), [3], 7)
    free = replace(scattered(dense.priors), **change)
    truths = (targets.boxes, targets.labels, targets.splits, free, torch.tensor([[4]]), torch.empty(1, 0))
    with pytest.raises(ValueError, match=sentence):
        assign_topk(dense.logits, dense.boxes, *truths, alpha=1.5, min_iou=0.1)


def test_torch_knows_the_operator() -> None:
    for images in ([3, 0], [0]):
        dense, targets = scene(Anchors(), images, 8)
        tiling = dense.priors.tiling
        assert tiling is not None
        operands = (
            [dense.logits], dense.boxes, targets.boxes, targets.labels, targets.splits, tiling.sizes, tiling.cell,
            tiling.strides, tiling.ranges, torch.tensor([[4]]), torch.empty(1, 0), 3, 1.5, 0.1,
        )  # fmt: skip
        torch.library.opcheck(torch.ops.detsearch.assign_topk.default, operands)
        free = scattered(dense.priors)
        operands = (*operands[:5], free.sizes, free.priors, free.ranges, *operands[9:])
        torch.library.opcheck(torch.ops.detsearch.assign_topk_scattered.default, operands)
