"""The loss over a head's levels and over the processes of a training: nothing is copied, and two rank as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detsearch_kernels import loader
from torch import Tensor

from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP
from detsearch_cli.structures import IGNORE, Assignment, Dense, Matches, Targets
from tests.slots import _reference as slow
from tests.slots.test_parameterized_ap import RELEASED, case, equation_6, loss_of


def in_levels(dense: Dense, memory: torch.memory_format) -> tuple[Dense, list[Tensor]]:
    """The same predictions as a head writes them, (B, C, H, W) a level, and these as leaves."""
    maps = []
    for part, (height, width) in zip(dense.logits.split(dense.priors.counts, 1), slow.SIZES, strict=True):
        level = part.detach().unflatten(1, (height, width)).permute(0, 3, 1, 2)
        maps.append(level.contiguous(memory_format=memory).clone().requires_grad_())
    return Dense(tuple(maps), dense.boxes, dense.deltas, dense.priors), maps


def in_rows(gradients: list[Tensor]) -> Tensor:
    """Gradients of maps as one (B, A, C)."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in gradients], 1)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("over", ["batch", "image"])
@pytest.mark.parametrize("through", [False, True])
def test_the_scores_are_read_where_the_head_wrote_them(
    memory: torch.memory_format, over: Any, through: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, assignment, targets, (logits, boxes) = case(4)
    loss = loss_of(curves=RELEASED, over=over, through_denominator=through)
    if over == "batch":
        theirs = equation_6(dense, assignment, targets, RELEASED, through=through)
    else:
        theirs = loss(dense, assignment, targets)["ap"]
    wanted = torch.autograd.grad(theirs, [logits, boxes])
    levels, maps = in_levels(dense, memory)
    monkeypatch.setattr(Dense, "logits", property(lambda _: pytest.fail("all scores are copied")))
    ours = loss(levels, assignment, targets)["ap"]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    *found, by_boxes = torch.autograd.grad(ours, [*maps, boxes])
    torch.testing.assert_close(in_rows(found), wanted[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(by_boxes, wanted[1], rtol=0, atol=1e-9)
    if over == "batch":
        assert all(x.is_contiguous(memory_format=memory) for x in found)


@pytest.mark.parametrize("over", ["batch", "image"])
def test_soft_pairs_of_anchors_that_learn_change_nothing(over: Any) -> None:
    dense, assignment, targets, leaves = case(5)
    random = torch.Generator().manual_seed(0)
    number = 60
    soft = Matches(
        torch.randint(0, 3, (number,), generator=random),
        torch.randint(0, assignment.matched.shape[1], (number,), generator=random),
        torch.randint(0, len(targets.boxes), (number,), generator=random),
        torch.rand(number, generator=random),
    )
    loss = loss_of(curves=RELEASED, over=over)
    hard, while_learning = (
        loss(dense, x, targets)["ap"] for x in (assignment, Assignment(assignment.matched, soft))
    )
    assert while_learning.item() == hard.item()
    for a, b in zip(*(torch.autograd.grad(x, leaves) for x in (hard, while_learning)), strict=True):
        assert torch.equal(a, b)


# ---------------------------------------------------------------------- two processes

# images of the batch that each has; image 1 has no object
SPLITS = {
    "uneven": ([0, 1], [2]),
    "one without an object": ([1], [0, 2]),
    "the other without an object": ([0, 2], [1]),
    "none with an object": ([1], [1]),
}
LOSSES: list[dict[str, Any]] = [
    {"curves": RELEASED},
    {"curves": RELEASED, "scale": 3.0, "through_denominator": True},
    {"curves": RELEASED, "over": "image"},
]


def part(images: list[int], dtype: torch.dtype) -> tuple[Dense, Assignment, Targets, list[Tensor]]:
    """Some images of a batch as a batch of their own, and the leaves: maps and boxes."""
    whole, assignment, targets, _ = case(6)
    boxes = whole.boxes.detach()[images].to(dtype).requires_grad_()
    scores = whole.logits.detach()[images].to(dtype)
    dense, maps = in_levels(Dense((scores,), boxes, boxes, whole.priors), torch.contiguous_format)
    targets = Targets(targets.boxes.to(dtype), targets.labels, targets.splits)
    return dense, Assignment(assignment.matched[images]), targets, [*maps, boxes]


def solve(
    loss: ParameterizedAP, dense: Dense, assignment: Assignment, targets: Targets, leaves: list[Tensor]
) -> list[Tensor]:
    """Value, and gradients by maps and boxes."""
    value = loss(dense, assignment, targets)["ap"]
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def process(rank: int, folder: str) -> None:
    """What each of two processes runs: value and gradients of its images, in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = {
        (number, name, str(dtype)): solve(loss_of(**options), *part(split[rank], dtype))
        for number, options in enumerate(LOSSES)
        for name, split in SPLITS.items()
        for dtype in (torch.float32, torch.float64)
    }
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, list[Tensor]]]:
    """What both processes found."""
    folder: Path = tmp_path_factory.mktemp("two")
    loader.ready(torch.device("cpu"))  # compiled once, not in each
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("number", range(len(LOSSES)))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_the_mean_of_two_processes_is_the_loss_of_one(
    two: list[dict[Any, list[Tensor]]], number: int, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    first, second = SPLITS[name]
    one, *wanted = solve(loss_of(**LOSSES[number]), *part(first + second, dtype))
    found = [x[number, name, str(dtype)] for x in two]
    assert (found[0][0] + found[1][0]).item() / 2 == pytest.approx(one.item(), abs=tolerance)
    for ours, theirs in zip(zip(*(x[1:] for x in found), strict=True), wanted, strict=True):
        # a training averages gradients over processes
        torch.testing.assert_close(torch.cat(ours) / 2, theirs, rtol=0, atol=tolerance)
    if "over" not in LOSSES[number]:
        assert found[0][0] == found[1][0]  # each reports the whole


def test_the_parts_hold_ignored_predictions() -> None:
    assert all((part(images, torch.float64)[1].matched == IGNORE).any() for images in ([0], [1], [2]))
