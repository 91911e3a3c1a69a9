"""The search space: ranges, candidates, keys."""

from __future__ import annotations

import numpy as np
import pytest

from detsearch_cli.errors import SpaceError
from detsearch_cli.search.space import Choice, Integer, Product, Real, key

SPACE = Product((Integer("count", 1, 25), Real("alpha", 0.1, 10, log=True), Choice("loss", ("giou", "iou"))))


def test_every_sample_lies_in_the_space() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        SPACE.check(SPACE.sample(rng))


def test_size_is_the_product_and_none_with_a_real_parameter() -> None:
    assert Product((Integer("a", 1, 3), Choice("b", ("x", "y")))).size == 6
    assert SPACE.size is None
    assert Product((Real("a", 2.0, 2.0),)).size == 1


def test_a_space_survives_json() -> None:
    assert Product.from_json(SPACE.to_json()) == SPACE


def test_all_levels_of_an_integer_are_all_its_values() -> None:
    p = Integer("a", 3, 9)
    assert [p.level(i, p.size) for i in range(p.size)] == list(range(3, 10))


def test_key_does_not_depend_on_the_order_of_names() -> None:
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "candidate, named",
    [
        ({"count": 26, "alpha": 1.0, "loss": "iou"}, "count must lie in 1..25, got 26"),
        ({"count": 2.5, "alpha": 1.0, "loss": "iou"}, "count"),
        ({"count": 2, "alpha": 0.01, "loss": "iou"}, "alpha"),
        ({"count": 2, "alpha": 1.0, "loss": "l1"}, "giou | iou"),
        ({"count": 2}, "alpha"),
    ],
)
def test_a_candidate_outside_the_space_is_named(candidate: dict, named: str) -> None:
    with pytest.raises(SpaceError) as caught:
        SPACE.check(candidate)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Integer("a", 3, 2),
        lambda: Real("a", 0.0, 1.0, log=True),
        lambda: Real("a", 0.0, float("inf")),
        lambda: Choice("a", ()),
        lambda: Choice("a", ("x", "x")),
        lambda: Product(()),
        lambda: Product((Integer("a", 1, 2), Integer("a", 1, 2))),
    ],
)
def test_impossible_spaces_are_refused(build: object) -> None:
    with pytest.raises(SpaceError):
        build()  # type: ignore[operator]
