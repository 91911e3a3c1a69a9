"""Reads what says how a YOLO set is laid out: a yaml with `names`, darknet's obj.data, or a file of class names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data.formats import _layout
from detsearch_cli.errors import DataError

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
MOST_KEY_NUMBERS = 3000


@dataclass(frozen=True)
class Config:
    """Class names, the file that gives them, and the places of each split as they are written.

    bases: folders that written places start from. key_numbers: how many numbers of key points follow each box; None:
    the set has no key points.
    """

    names: tuple[str, ...]
    named_by: Path
    written: dict[str, tuple[str, ...]]
    bases: tuple[Path, ...]
    key_numbers: int | None = None


def read_config(folder: Path) -> Config | None:
    """What the yaml says, else obj.data; None where neither is there. Raises DataError where they contradict themselves."""
    found = _yaml(folder)
    if found is not None:
        path, content = found
        names = _yaml_names(path, content)
        _check_count(path, "nc", content.get("nc"), names)
        base = content.get("path")
        bases = (folder / base, folder) if isinstance(base, str) else (folder,)
        written = {s: _written(path, s, content) for s in _layout.SPLITS}
        return Config(
            names, path, {s: w for s, w in written.items() if w}, bases, _key_numbers(path, content)
        )
    found = _darknet(folder)
    if found is None:
        return None
    path, content = found
    # The paths start with data/, darknet's own folder, which here is the set's.
    named_by = _first_file(folder / content["names"], folder / Path(content["names"]).name)
    if named_by is None:
        raise DataError(
            f"{path} names its classes in {content['names']!r}, which does not exist; add the file"
        )
    names = read_names(named_by)
    _check_count(path, "classes", content.get("classes"), names)
    written = {s: _written(path, s, content) for s in _layout.SPLITS}
    return Config(names, named_by, {s: w for s, w in written.items() if w}, (folder,))


def has_splits(folder: Path) -> bool:
    """Whether a yaml or obj.data names the places of splits. Raises DataError for a broken one."""
    found = _yaml(folder) or _darknet(folder)
    return found is not None and any(found[1].get(k) for k in (*_layout.SPLITS, "valid"))


def has_yaml(folder: Path) -> bool:
    """Whether a yaml with `names` is there. Raises DataError for a broken one."""
    return _yaml(folder) is not None


def named_in_files(folder: Path, beside: Iterable[Path]) -> tuple[tuple[str, ...], Path] | None:
    """(names, file) from the file of class names in the folder, else from those in `beside`, the labels' folders.

    Raises DataError where those of two splits contradict each other.
    """
    own = [*(folder / f for f in NAME_FILES), *(folder / "labels" / f for f in NAME_FILES)]
    path = _first_file(*own) or _only(folder.glob("*.names"))
    if path is not None:
        return read_names(path), path
    found = [p for place in beside if (p := _first_file(*(place / f for f in NAME_FILES))) is not None]
    if not found:
        return None
    named = [(read_names(p), p) for p in dict.fromkeys(found)]
    # Annotation tools add new names at the end, so one list may go on where the other stops.
    longest, by = max(named, key=lambda n: len(n[0]))
    for names, path in named:
        if names != longest[: len(names)]:
            raise DataError(f"{by} and {path} give different class names; labels would mean different things")
    return longest, by


def has_names(folder: Path, beside: Iterable[Path]) -> bool:
    """Whether `named_in_files` finds a file."""
    places = [folder, folder / "labels", *beside]
    found = any(_first_file(*(place / f for f in NAME_FILES)) for place in places)
    return found or _only(folder.glob("*.names")) is not None


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line. Raises DataError for an empty line between names, a double, or none at all.

    An empty line is never passed over: the ids of all names after it would shift.
    """
    lines = [line.strip() for line in lines_of(path)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise DataError(
            f"{path} line {lines.index('') + 1} is empty, so the class ids after it are in doubt; remove the line "
            "if labels do not count it, or write a name there"
        )
    return _checked(path, lines)


def lines_of(path: Path) -> list[str]:
    """Lines of a text file as every tool counts them. Raises DataError when it cannot be read."""
    # str.splitlines also breaks at characters that may stand in a name
    return re.split(r"\r\n|\r|\n", reading.read_text(path, DataError))


def _yaml(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The yaml file with `names`, data.yaml first; every value is the text that was written.

    Raises DataError for a broken data.yaml, and for another broken one that names classes and splits.
    """
    files = [p for p in (*folder.glob("*.yaml"), *folder.glob("*.yml")) if not p.name.startswith(".")]
    for path in sorted(files, key=lambda p: (p.stem != "data", p.name)):
        try:
            # as written: `no` is a class name, 010 too, and not false and 8
            text = reading.read_text(path, DataError)
            content = reading.parse_yaml(text, path, DataError, as_written=True)
        except DataError:
            if path.stem == "data" or _names_classes_and_splits(path):
                raise
            continue
        if isinstance(content, dict) and "names" in content:
            return path, content
    return None


def _names_classes_and_splits(path: Path) -> bool:
    """Whether a file that is no YAML was meant to describe a set."""
    try:
        with reading.open_regular(path, DataError) as file:
            start = file.read(100_000)
    except (OSError, DataError):
        return False
    return bool(re.search(rb"^names\s*:", start, re.M) and re.search(rb"^(train|val|path)\s*:", start, re.M))


def _darknet(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """darknet's lines of `key = value` with the keys `names` and `train` or `valid`, as in obj.data."""
    for path in sorted(folder.glob("*.data"), key=lambda p: (p.name != "obj.data", p.name)):
        try:
            pairs = [line.partition("=") for line in lines_of(path)]
        except DataError:  # other programs write .data files, too
            continue
        content = {key.strip(): value.strip() for key, equals, value in pairs if equals}
        if content.get("names") and (content.get("train") or content.get("valid")):
            return path, content
    return None


def _written(path: Path, split: str, content: dict[str, Any]) -> tuple[str, ...]:
    """Places of a split as they are written. Raises DataError for anything but text and lists of text."""
    value = content.get(split, content.get("valid") if split == "val" else None)
    items = value if isinstance(value, list) else [value]
    texts = tuple(item for item in items if item not in (None, "", "~", "null", "Null", "NULL"))
    if not all(isinstance(item, str) for item in texts):
        raise DataError(f"{path}: {split} must be a folder, a list file, or a list of these")
    return texts


def _yaml_names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Class names from a list or from {0: name, ...}. Raises DataError for gaps and doubles."""
    names = content["names"]
    if isinstance(names, dict):
        by_id = {reading.whole(key): name for key, name in names.items()}
        if set(by_id) != set(range(len(names))):
            raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1} without gaps")
        names = [by_id[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names must be a list of class names, got {str(names)[:60]!r}")
    for number, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            got = f"got {str(name)[:60]!r}" if name else "it is empty"
            raise DataError(f"{path}: the name of class {number} must be text, {got}; write a name there")
    return _checked(path, [name.strip() for name in names])


def _checked(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise DataError(f"{path} has no class name; write one a line, in the order of the class ids")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(
                f"{path}: class name {name[:60]!r} stands for two ids; every class needs its own name"
            )
        seen.add(name)
    return tuple(names)


def _check_count(path: Path, key: str, written: Any, names: Sequence[str]) -> None:
    if written not in (None, "") and reading.whole(written) != len(names):
        raise DataError(
            f"{path}: {key} is {str(written)[:40]} but {len(names)} names are given; labels would shift"
        )


def _key_numbers(path: Path, content: dict[str, Any]) -> int | None:
    """How many numbers of key points `kpt_shape: [points, 2 or 3]` puts after each box."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    points, size = map(reading.whole, shape) if isinstance(shape, list) and len(shape) == 2 else (None, None)
    if points is None or size not in (2, 3) or not 0 < points * size <= MOST_KEY_NUMBERS:
        raise DataError(f"{path}: kpt_shape must be [number of points, 2 or 3], got {str(shape)[:60]}")
    return points * size


def _first_file(*paths: Path) -> Path | None:
    return next((p for p in paths if _is_file(p)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a NUL
        return False


def _only(paths: Iterable[Path]) -> Path | None:
    found = list(paths)
    return found[0] if len(found) == 1 else None
