"""assign_topk on a GPU chooses what it chooses on the CPU: on a GPU where one is, and emulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from detsearch_kernels import loader
from torch import Tensor

from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import Dense, Targets
from tests.kernels import emulated
from tests.kernels.test_assign import GRIDS, scene

NINE = torch.tensor([[9]])
BY_LEVEL = torch.tensor([[3, 9, 2], [4, 12, 1], [5, 6, 7]])
EDGES = torch.tensor([[0.5, 2.0]]).repeat(3, 1)
Operator = Callable[..., Tensor]


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Operator:
    """The CUDA operator for tensors on the CPU: where a GPU is it moves them there and back."""
    if loader.load("cpu").library is None:
        pytest.skip("no compiled kernels")
    if request.param == "emulated":
        emulated.load("assign")
        return torch.ops.detsearch_emulated.assign_topk
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    assert loader.load("cuda").library is not None
    return _on_cuda


def _on_cuda(maps: list[Tensor], *operands: Tensor | float) -> Tensor:
    """The predictions and ground truths on the GPU, the tiling and tables where they are."""
    four = [x.cuda() for x in operands[:4] if isinstance(x, Tensor)]
    there: Tensor = torch.ops.detsearch.assign_topk([x.cuda() for x in maps], *four, *operands[4:])
    return there.cpu()


def operands(
    dense: Dense, targets: Targets, counts: Tensor = NINE, edges: Tensor | None = None, min_iou: float = 0.1
) -> tuple[list[Tensor] | Tensor | float, ...]:
    tiling = dense.priors.tiling
    assert tiling is not None
    classes = (
        dense.maps[0].shape[2] if dense.maps[0].dim() == 3 else dense.maps[0].shape[1] // tiling.cell.shape[1]
    )
    return (
        list(dense.maps), dense.boxes, targets.boxes, targets.labels, targets.splits, tiling.sizes, tiling.cell,
        tiling.strides, tiling.ranges, counts, torch.empty(1, 0) if edges is None else edges, classes, 1.5, min_iou,
    )  # fmt: skip


def assert_same(gpu: Operator, *given: list[Tensor] | Tensor | float) -> Tensor:
    expected: Tensor = torch.ops.detsearch.assign_topk(*given)
    torch.testing.assert_close(gpu(*given), expected, rtol=0, atol=0)
    return expected


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("classes", [1, 20, 83])
def test_it_chooses_the_cpu_s_priors(gpu: Operator, name: str, classes: int) -> None:
    dense, targets = scene(GRIDS[name], [4, 0, 30], seed=classes, classes=classes)
    assert_same(gpu, *operands(dense, targets))
    assert_same(gpu, *operands(dense, targets, BY_LEVEL, EDGES))


@pytest.mark.parametrize("images", [[0], [0, 1]])
def test_images_without_ground_truths_are_background(gpu: Operator, images: list[int]) -> None:
    matched = assert_same(gpu, *operands(*scene(Anchors(), images, 0)))
    assert (matched[0] == -1).all()


def test_scores_are_read_where_the_head_wrote_them(gpu: Operator) -> None:
    dense, targets = scene(Anchors(), [5, 9], 1)
    tiling = dense.priors.tiling
    assert tiling is not None
    maps, first = [], 0
    for (height, width), count in zip(tiling.sizes.tolist(), dense.priors.counts, strict=True):
        own = dense.logits[:, first : first + count].reshape(2, height, width, 27).permute(0, 3, 1, 2)
        maps.append(own.contiguous(memory_format=torch.channels_last if first else torch.contiguous_format))
        first += count
    assert_same(gpu, *operands(replace(dense, maps=tuple(maps)), targets))


@pytest.mark.parametrize("shift", [0.0, 3.0])
@pytest.mark.parametrize("count", [1, 4, 60])
@pytest.mark.parametrize("name", ["anchors", "points"])
def test_boxes_on_top_of_each_other_share_as_on_the_cpu(
    gpu: Operator, name: str, count: int, shift: float
) -> None:
    """Requests in rounds and augmenting paths; points are fewer than the 30 boxes."""
    dense, _ = scene(GRIDS[name], [1], 0)
    moved = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)) * shift
    boxes = torch.tensor([[8.0, 8.0, 34.0, 30.0]]) + moved
    targets = Targets.from_lists([boxes], [torch.arange(30) % 3])
    matched = assert_same(gpu, *operands(dense, targets, torch.tensor([[count]])))
    if name == "anchors":
        assert len(matched[matched >= 0].unique()) == 30


@pytest.mark.parametrize("count", [1, 9, 10**6])
def test_equal_losses_go_to_the_lower_prior_and_row(gpu: Operator, count: int) -> None:
    dense, targets = scene(Anchors(), [9, 3], 1)
    equal = replace(dense, maps=(torch.full_like(dense.logits, -2.0),), boxes=torch.zeros_like(dense.boxes))
    assert_same(gpu, *operands(equal, targets, torch.tensor([[count]])))


@pytest.mark.parametrize("count", [5, 300, 5000])
def test_more_candidates_than_a_block_holds_at_once(gpu: Operator, count: int) -> None:
    dense, targets = scene(Anchors(), [3], 3, size=(400, 400))
    boxes = torch.cat((targets.boxes, torch.tensor([[1.0, 2.0, 390.0, 399.0]])))
    many = Targets(boxes, torch.cat((targets.labels, targets.labels[:1])), torch.tensor([0, 4]))
    matched = assert_same(gpu, *operands(dense, many, torch.tensor([[count]]), min_iou=0.0))
    assert int((matched == 3).sum()) >= min(count, 4) if count < 5000 else int((matched == 3).sum()) > 3072


@pytest.mark.parametrize("name", ["anchors", "points"])
def test_degenerate_boxes_are_treated_as_on_the_cpu(gpu: Operator, name: str) -> None:
    dense, targets = scene(GRIDS[name], [4], 5)
    worst = torch.tensor([
        [10.0, 10.0, 10.0, 10.0], [50.0, 50.0, 20.0, 20.0], [-900.0, -900.0, -800.0, -800.0],
        [-1e9, -1e9, 1e9, 1e9], [math.nan, 0.0, 10.0, 10.0], [-math.inf, 0.0, math.inf, 30.0],
    ])  # fmt: skip
    labels = torch.cat((targets.labels, torch.zeros(6, dtype=torch.int64)))
    more = Targets(torch.cat((targets.boxes, worst)), labels, torch.tensor([0, 10]))
    assert_same(gpu, *operands(dense, more))
    assert_same(gpu, *operands(dense, more, BY_LEVEL, EDGES))


def test_what_only_the_cpu_refuses_harms_nothing_else(gpu: Operator) -> None:
    dense, targets = scene(Anchors(), [6, 4], 6)
    labels = targets.labels.clone()
    labels[7], labels[2] = 99, -1
    matched = gpu(*operands(dense, replace(targets, labels=labels)))
    assert not ((matched == 7) | (matched == 2)).any()
    assert set(matched.unique().tolist()) == {-1, 0, 1, 3, 4, 5, 6, 8, 9}
    for splits in ([0, 20, 3], [-5, 2, 4], [7, 2, 10]):
        matched = gpu(*operands(dense, replace(targets, splits=torch.tensor(splits))))
        assert -1 <= int(matched.min()) <= int(matched.max()) < 10
    broken = replace(dense, maps=(torch.full_like(dense.logits, math.nan),))
    matched = gpu(*operands(broken, targets))
    assert -1 <= int(matched.min()) <= int(matched.max()) < 10


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (torch.tensor([[0]]), "every count must be at least 1, got 0"),
        (torch.tensor([[60000]]), "counts may be up to [0-9]+ on this GPU, got 60000"),
        (torch.ones(1, 300, dtype=torch.int64), "1 to 256 counts on a GPU, got 300"),
    ],
)
def test_counts_that_do_not_fit_a_gpu_are_named(gpu: Operator, counts: Tensor, sentence: str) -> None:
    edges = torch.full((1, counts.shape[1] - 1), math.inf)
    with pytest.raises(RuntimeError, match=sentence):
        gpu(*operands(*scene(Anchors(), [2], 7, size=(800, 800)), counts, edges))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_torch_knows_the_operator_on_a_gpu() -> None:
    given = operands(*scene(Anchors(), [3, 0], 8))
    maps, four = given[0], given[1:5]
    assert isinstance(maps, list)
    there = ([x.cuda() for x in maps], *(x.cuda() for x in four if isinstance(x, Tensor)), *given[5:])
    torch.library.opcheck(torch.ops.detsearch.assign_topk.default, there)
