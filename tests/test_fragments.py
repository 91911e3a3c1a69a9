"""Fragments as plain data: nested keys as one, and what tells two of them apart."""

from __future__ import annotations

import pytest

from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import differences, flattened, merge


def test_nested_mappings_become_one_with_dotted_keys() -> None:
    content = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None, "g": {}}
    assert flattened(content) == {"a.b": 1, "a.c.d": [2, {"e": 3}], "f": None}


def test_every_difference_is_a_sentence_and_equal_mappings_have_none() -> None:
    there = {"optim": {"lr": 0.01, "name": "sgd"}, "assign": None}
    here = {"optim": {"lr": 0.1, "name": "sgd"}, "assign": {"name": "atss"}}
    assert differences(there, here) == [
        "assign.name is unset there, atss here",
        "optim.lr is 0.01 there, 0.1 here",
    ]
    assert differences(there, dict(reversed(there.items()))) == []


@pytest.mark.parametrize("below", [[1], {"lr"}, 5, True])
def test_keys_over_what_has_none_are_refused_instead_of_replacing_it(below: object) -> None:
    with pytest.raises(RecipeError, match="optim takes keys and values"):
        merge({"optim": below}, {"optim": {"batch_size": 4}})
    assert merge({"optim": None, "assign": "atss"}, {"optim": {"lr": 1}, "assign": {"alpha": 2}})[
        "optim"
    ] == {"lr": 1}
