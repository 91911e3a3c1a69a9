"""Records: the first field that is wrong, by its place and its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from detsearch_cli.document import Document, checked
from detsearch_cli.errors import CheckpointError


class Row(Document):
    name: str
    AP: float | None


class Table(Document):
    rows: list[Row]
    seed: int = 0


@dataclass(frozen=True)
class Task:
    trial: int
    gpu: str | None = None


def told(content: Any, kind: type[Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        checked(content, kind, "t.json", CheckpointError, "restore it")
    return str(caught.value)


def test_what_is_right_comes_back_and_further_keys_are_let_pass() -> None:
    found = checked({"rows": [{"name": "a", "AP": 1, "x": 2}]}, Table, "t.json", CheckpointError, "")
    assert (found.rows[0].name, found.rows[0].AP, found.seed) == ("a", 1.0, 0)
    assert checked({"trial": 3}, Task, "t.json", CheckpointError, "") == Task(3)


@pytest.mark.parametrize(
    "content, kind, said",
    [
        ({"rows": [{"name": "a", "AP": "x"}]}, Table, "rows.0.AP should be a valid number, got 'x'"),
        (
            {"rows": [{"name": "a", "AP": float("nan")}]},
            Table,
            "rows.0.AP should be a finite number, got nan",
        ),
        ({"rows": [{"name": "a"}]}, Table, "rows.0.AP is missing"),
        ({"rows": [], "seed": True}, Table, "seed should be a valid integer, got True"),
        ({"rows": [], "seed": "1"}, Table, "seed should be a valid integer, got '1'"),
        ([], Table, "its content should be an object, got []"),
        ({"trial": "3"}, Task, "trial should be a valid integer, got '3'"),
        ({"trial": 3.0}, Task, "trial should be a valid integer, got 3.0"),
        (None, Task, "its content should be an object, got None"),
        ({"a": 1}, list[str], "its content should be a valid list, got {'a': 1}"),
    ],
)
def test_the_first_wrong_field_is_named_with_its_value(content: Any, kind: type[Any], said: str) -> None:
    assert told(content, kind) == f"t.json is damaged or of another version of detsearch: {said}; restore it"


def test_a_long_value_is_cut() -> None:
    assert len(told({"rows": "x" * 10_000}, Table)) < 200
