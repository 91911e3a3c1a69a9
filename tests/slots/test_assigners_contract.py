"""What every assigner must do, for every file in slots/assigners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import detsearch_kernels as kernels
import pytest
import torch

from detsearch_cli import parts
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Slot, build_part
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Priors, Targets
from tests.slots import _reference as slow

GRIDS = {"anchors": Anchors(), "points": Points(range_base=16)}
OPTIONS: dict[str, dict[str, Any]] = {}  # of assigners that have options without a default
EVERY = [(name, grid) for name in parts.names("slots.assigners") for grid in GRIDS]


@pytest.fixture(autouse=True, params=["off", "auto"])
def with_and_without_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    kernels.use(request.param)
    yield
    kernels.use("auto")


def make(name: str, grid: str) -> tuple[Assigner, Priors]:
    assigner = build_part("slots.assigners", Slot(name=name, **OPTIONS.get(name, {})), "assign")
    priors = GRIDS[grid](slow.SIZES, slow.LEVELS)
    try:
        assigner(slow.dense_of(priors, 1), slow.random_targets([1], 0))
    except RecipeError:
        pytest.skip(f"{name} refuses {grid}")
    return assigner, priors


def overlapping(count: int) -> Targets:
    box = torch.tensor([[20.0, 20, 90, 70]]).repeat(count, 1)
    return Targets.from_lists([box], [torch.arange(count) % 3])


CASES = {
    "no ground truth": lambda: slow.random_targets([0, 0], 1),
    "one": lambda: slow.random_targets([1], 1),
    "300": lambda: slow.random_targets([300, 0, 2], 1),
    "all the same box": lambda: overlapping(20),
    "empty and huge boxes": lambda: Targets.from_lists(
        [torch.tensor([[9.0, 9, 9, 9], [5, 9, 40, 9], [-900, -900, 900, 900]])], [torch.tensor([0, 1, 2])]
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "grid"), EVERY)
def test_matches_stay_inside_their_image(name: str, grid: str, case: str) -> None:
    assigner, priors = make(name, grid)
    targets = CASES[case]()
    assignment = assigner(slow.dense_of(priors, targets.num_images), targets)
    assert assignment.matched.shape == (targets.num_images, len(priors.boxes))
    assert assignment.matched.dtype == torch.int64
    assert assignment.matched.min() >= -2
    image, prior = assignment.positive.nonzero(as_tuple=True)
    assert torch.equal(targets.image_index()[assignment.matched[image, prior]], image)
    if case in ("one", "300", "all the same box"):
        assert assignment.positive.any()


@pytest.mark.parametrize(("name", "grid"), EVERY)
def test_an_image_is_assigned_the_same_alone_and_in_a_batch(name: str, grid: str) -> None:
    assigner, priors = make(name, grid)
    targets = slow.random_targets([5, 0, 8], 3)
    dense = slow.dense_of(priors, 3)
    together = assigner(dense, targets).matched
    for image, (start, boxes) in enumerate(slow.per_image(targets)):
        labels = targets.labels[start : start + len(boxes)]
        alone = Dense(
            (dense.logits[image : image + 1],),
            *(t[image : image + 1] for t in (dense.boxes, dense.deltas)),
            priors=priors,
            centerness=None if dense.centerness is None else dense.centerness[image : image + 1],
        )
        found = assigner(alone, Targets.from_lists([boxes], [labels])).matched[0]
        shifted = torch.where(found >= 0, found + start, found)
        assert torch.equal(shifted, together[image])
