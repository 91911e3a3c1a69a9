"""The categories of COCO files: one list for all splits, so that labels mean the same in each."""

from __future__ import annotations

import json
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.formats._coco_files import mapped
from detsearch_cli.data.formats._find import composed
from detsearch_cli.errors import DataError

_KEY = re.compile(rb'"categories"\s*:\s*\[')
_WINDOW = 1 << 20
"""Bytes in which the end of a list of categories is looked for first; 1,203 of LVIS take a quarter of it."""


@dataclass(frozen=True)
class _Category:
    name: str
    parent: str | None
    origin: Path
    id_as_text: bool


@dataclass(frozen=True)
class Classes:
    """Names and ids in order of id. problems: (kind, detail, how it was handled), to be reported once."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    problems: tuple[tuple[str, str, str], ...]


def read_classes(files: tuple[Path, ...]) -> Classes:
    """Union of the files' categories.

    Raises DataError when two splits contradict each other: labels would shift silently.
    """
    found: dict[int, _Category] = {}
    roots: list[int | None] = []
    for path in files:
        within = _within(path)
        roots.append(_root(within))
        for number, category in within.items():
            known = found.setdefault(number, category)
            if known.name != category.name:
                raise DataError(
                    f"category id {number} is {known.name!r} in {known.origin} but {category.name!r} in "
                    f"{path}; labels would mean different things in each split, so make them agree"
                )
    problems = []
    root = roots[0] if len(set(roots)) == 1 else None
    if root is not None and not any(_has_box(path, root) for path in files):
        detail = f"{found.pop(root).name!r} (id {root}) is the supercategory of all others and has no box"
        problems.append((checks.ROOT_CATEGORY, detail, "not a class"))
    ids = tuple(sorted(found))
    _refuse_doubles(found, ids)
    problems += _spellings(found, ids)
    as_text = [number for number in ids if found[number].id_as_text]
    if as_text:
        detail = f"{len(as_text)} category ids are written as text, such as {str(as_text[0])!r}"
        problems.append((checks.BROKEN_LABEL, detail, "read as the numbers that they spell"))
    return Classes(tuple(found[i].name for i in ids), ids, tuple(problems))


def _within(path: Path) -> dict[int, _Category]:
    """The categories of one file by id. Raises DataError for one without id or name, and an id with two names."""
    within: dict[int, _Category] = {}
    for item in _categories(path):
        number, name, parent = reading.whole(item.get("id")), item.get("name"), item.get("supercategory")
        if number is None or not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{path}: every category needs a whole-number id and a name, got {checks.short(item)}"
            )
        above = composed(parent) if isinstance(parent, str) else None
        category = _Category(composed(name), above, path, isinstance(item["id"], str))
        if within.setdefault(number, category).name != category.name:
            raise DataError(
                f"{path}: category id {number} is both {within[number].name!r} and {category.name!r}"
            )
    return within


def _root(categories: dict[int, _Category]) -> int | None:
    """Id of the category that only names the project: Roboflow puts it first and makes it the parent of all."""
    for number, category in categories.items():
        others = [c for n, c in categories.items() if n != number]
        if (
            others
            and category.parent in (None, "", "none")
            and all(c.parent == category.name for c in others)
        ):
            return number
    return None


def _has_box(path: Path, number: int) -> bool:
    """Whether an annotation of the file is of that category, found without parsing the file."""
    use = re.compile(rb'"category_id"\s*:\s*"?%d(?:\.0*)?"?\s*[,}\]]' % number)
    with mapped(path) as content:
        return use.search(content) is not None


def _refuse_doubles(found: dict[int, _Category], ids: tuple[int, ...]) -> None:
    first: dict[str, int] = {}
    for number in ids:
        name = found[number].name
        other = first.setdefault(name, number)
        if other != number:
            raise DataError(
                f"category {name!r} has id {other} in {found[other].origin} and {number} in "
                f"{found[number].origin}; one class must have one id"
            )


def _spellings(found: dict[int, _Category], ids: tuple[int, ...]) -> list[tuple[str, str, str]]:
    """Names that differ only in blanks. Their ids say that they are two classes; a reader sees one."""
    problems = []
    first: dict[str, int] = {}
    for number in ids:
        name = found[number].name
        other = first.setdefault(" ".join(name.split()), number)
        if other != number:
            detail = f"{name!r} (id {number}) and {found[other].name!r} (id {other}) differ only in blanks"
            problems.append((checks.CLASS_SPELLING, detail, "kept as two classes"))
    return problems


def _categories(path: Path) -> list[dict[str, Any]]:
    """Only the categories of a file: those of every split are needed, and train's json may hold 500 MB."""
    with mapped(path) as content:
        # From the end: of a key that is there twice JSON takes the last.
        for match in reversed(list(_KEY.finditer(content))):
            found = _list_at(content, match.end() - 1)
            if found is not None and all(isinstance(c, dict) and "name" in c for c in found):
                return found
    reading.read_json(path, DataError)
    raise DataError(f"{path}: 'categories' must be a list of objects with id and name")


def _list_at(content: mmap.mmap | bytes, start: int) -> list[Any] | None:
    """The JSON list that begins at a byte; None where it is none, or broken."""
    window = _WINDOW
    while True:
        text = content[start : start + window].decode("utf-8", "ignore")
        try:
            found = json.JSONDecoder().raw_decode(text)[0]
        except (ValueError, RecursionError):
            if start + window >= len(content):
                return None
            # eightfold, so that a list that never ends costs one more reading of the file, not thousands
            window *= 8
            continue
        return found if isinstance(found, list) else None
