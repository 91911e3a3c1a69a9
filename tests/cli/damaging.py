"""Every small way in which a JSON value can be wrong, and a command's answer to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.cli.app import run

WRONG: tuple[Any, ...] = (
    "x",
    None,
    [],
    {},
    float("nan"),
    -1,
    10**400,
    True,
    [[1, "y"]],
    float("inf"),
    "\ud800",
)


def damaged(content: Any, depth: int = 9, values: int = 2, missing: bool = True) -> Iterator[tuple[str, Any]]:
    """(what is wrong, the content) for every field down to a depth, of a list the first entry.

    Every field is missing once, and has some of WRONG in turn, so that all of them come up in a file.
    """
    for turn, path in enumerate(_paths(content, depth)):
        name = ".".join(map(str, path))
        if missing:
            yield f"{name} missing", _changed(content, path, _delete)
        for at in range(turn * values, (turn + 1) * values):
            value = WRONG[at % len(WRONG)]
            yield f"{name} {str(value)[:9]!r}", _changed(content, path, value)


_delete = object()


def _changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    holder = changed
    for part in path[:-1]:
        holder = holder[part]
    if value is _delete:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return changed


def _paths(content: Any, depth: int, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(content, dict):
        inner = list(content.items())
    else:
        inner = list(enumerate(content))[:1] if isinstance(content, list) else []
    for key, value in inner if depth else []:
        yield (*above, key)
        yield from _paths(value, depth - 1, (*above, key))


def answer(arguments: list[str], file: Path, told: pytest.CaptureFixture[str], what: str) -> int:
    """Run; 0, or 2 with one sentence that names the file or its folder. Returns the code."""
    told.readouterr()
    code = run(arguments)
    said = told.readouterr().err
    assert code in (0, 2), f"{what}: exit {code}: {said}"
    if code == 2:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and (str(file) in errors[0] or str(file.parent) in errors[0]), (
            f"{what}: {said}"
        )
        assert len(errors[0]) < 900, f"{what}: {said}"
    return code
