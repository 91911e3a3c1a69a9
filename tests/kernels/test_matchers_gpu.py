"""The matchers on a GPU choose what they choose on the CPU: on a GPU where one is, and emulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from detsearch_kernels import loader
from torch import Tensor

from detsearch_cli.structures import Dense, Priors, Targets
from tests.kernels import emulated
from tests.kernels.test_matchers import ANCHORS, DEGENERATE, POINTS, SQUARES, on_the_grid
from tests.slots import _reference as slow

Operator = Callable[..., Tensor]
EXACT: dict[str, tuple[str, Priors, tuple[Any, ...]]] = {
    "max_iou": ("max_iou", ANCHORS, (0.5, 0.4, True)),
    "max_iou on points": ("max_iou", POINTS, (0.7, 0.3, True)),
    "max_iou without low quality": ("max_iou", ANCHORS, (0.5, 0.4, False)),
    "max_iou from 0": ("max_iou", SQUARES, (0.2, 0.0, True)),
    "max_iou that must fit": ("max_iou", ANCHORS, (1.0, 1.0, True)),
    "fcos": ("fcos_targets", POINTS, (float("inf"),)),
    "fcos, middle": ("fcos_targets", POINTS, (1.5,)),
    "atss": ("atss", SQUARES, (9,)),
    "atss on 9 anchors": ("atss", ANCHORS, (3,)),
    "atss, one cell": ("atss", POINTS, (1,)),
    "atss, most cells": ("atss", SQUARES, (25,)),
}
COSTS: dict[str, tuple[str, Priors, tuple[Any, ...]]] = {
    "simota": ("simota", POINTS, (10, 2.5)),
    "simota on anchors": ("simota", ANCHORS, (4, 2.5)),
    "simota, many": ("simota", SQUARES, (30, 4.0)),
    "simota, far": ("simota", POINTS, (10, 0.3)),
}
CASES = EXACT | COSTS


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Operator:
    """Calls a CUDA operator by name for tensors on the CPU: where a GPU is it moves them there and back."""
    if loader.load("cpu").library is None:
        pytest.skip("no compiled kernels")
    if request.param == "emulated":
        emulated.load("matchers")
        return lambda name, *operands: getattr(torch.ops.detsearch_emulated, name)(*operands)
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    assert loader.load("cuda").library is not None
    return _on_cuda


def _on_cuda(name: str, *operands: Any) -> Tensor:
    """Predictions and ground truths on the GPU, the tiling where it is."""
    first = 5 if name == "simota" else 2  # logits, boxes, truth, labels, splits; or truth, splits
    there = [[x.cuda() for x in y] if isinstance(y, list) else y.cuda() for y in operands[:first]]
    found: Tensor = getattr(torch.ops.detsearch, name)(*there, *operands[first:])
    return found.cpu()


def check(gpu: Operator, name: str, targets: Targets, dense: Dense | None = None) -> Tensor:
    """The GPU's choice, after comparing it with the CPU's."""
    operator, priors, options = CASES[name]
    tiling = priors.tiling
    assert tiling is not None
    places = (tiling.sizes, tiling.cell, tiling.strides, tiling.ranges)
    operands: tuple[Any, ...] = (targets.boxes, targets.splits, *places, len(priors.boxes), *options)
    if operator == "simota":
        dense = slow.dense_of(priors, targets.num_images, 20, 1) if dense is None else dense
        given = (list(dense.maps), dense.boxes, targets.boxes, targets.labels, targets.splits)
        operands = (*given, *places, 20, *options)
    expected: Tensor = getattr(torch.ops.detsearch, operator)(*operands)
    found = gpu(operator, *operands)
    assert torch.equal(found, expected), f"{int((found != expected).sum())} differ"
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("counts", [[6, 20], [40, 0, 3], [0, 0]])
def test_it_chooses_the_cpus_priors(gpu: Operator, name: str, counts: list[int]) -> None:
    found = check(gpu, name, slow.random_targets(counts, 3))
    assert bool((found >= 0).any()) == (sum(counts) > 0)


@pytest.mark.parametrize("name", CASES)
def test_ties_go_where_the_cpu_sends_them(gpu: Operator, name: str) -> None:
    check(gpu, name, on_the_grid(1))


@pytest.mark.parametrize("name", CASES)
def test_degenerate_boxes_are_treated_as_on_the_cpu(gpu: Operator, name: str) -> None:
    boxes = torch.tensor([*DEGENERATE.values(), (20.0, 20.0, 60.0, 50.0)])
    check(
        gpu, name, Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), torch.tensor([0, len(boxes)]))
    )


def test_predictions_that_are_not_numbers_are_treated_as_on_the_cpu(gpu: Operator) -> None:
    targets, dense = slow.random_targets([20, 4], 6), slow.dense_of(POINTS, 2, 20)
    for broken in (float("nan"), float("inf")):
        check(gpu, "simota", targets, replace(dense, boxes=torch.full_like(dense.boxes, broken)))
        check(gpu, "simota", targets, replace(dense, maps=(torch.full_like(dense.maps[0], broken),)))
