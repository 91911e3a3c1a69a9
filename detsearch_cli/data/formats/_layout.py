"""How folders of data sets are laid out: names of splits, and where to look."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.errors import DataError

SPLITS = ("train", "val", "test")
_ALIASES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
_ALIASES |= {"dev": "val", "test": "test", "testing": "test"}


def split_name(stem: str) -> str | None:
    """train, val or test for names such as "instances_train2017", "valid", "det_val"; else None."""
    words = [w for w in re.split(r"[^a-z]+", stem.lower()) if w]
    found = {_ALIASES[w] for w in words if w in _ALIASES}
    return found.pop() if len(found) == 1 else None


def aliases(split: str) -> tuple[str, ...]:
    """Every name of a split: ("val", "valid", "validation", "dev")."""
    return tuple(alias for alias, name in _ALIASES.items() if name == split)


def split_folders(folder: Path) -> dict[str, Path]:
    """Subfolders named after a split: {"train": folder/train, "val": folder/valid, ...}."""
    found: dict[str, Path] = {}
    for alias, name in _ALIASES.items():
        if name not in found and (folder / alias).is_dir():
            found[name] = folder / alias
    return found


def file_of(split: str, found: dict[str, Path], folder: Path) -> Path:
    """The file of a split. Raises DataError where it went away since the folder was opened."""
    if split not in found:
        raise DataError(f"{folder} has no split {split!r} any more; its files were moved since it was opened")
    return found[split]


def without_empty(
    found: dict[str, Path], is_empty: Callable[[Path], bool]
) -> tuple[dict[str, Path], dict[str, Path]]:
    """(the splits whose file names images, those whose file names none), from split name -> file.

    Where none does all are in the first, so that reading one says what is wrong.
    """
    empty = {split: path for split, path in found.items() if is_empty(path)}
    if len(empty) == len(found):
        return found, {}
    return {split: path for split, path in found.items() if split not in empty}, empty


def is_blank(path: Path) -> bool:
    """Whether a list file has nothing but blanks in its first thousand bytes."""
    try:
        with reading.open_regular(path, DataError) as file:
            return not file.read(1000).strip()
    except (DataError, OSError):
        return False


def listed_classes(folder: Path) -> frozenset[str]:
    """The names in the folder's classes.txt, one a line; none where there is no such file.

    In a format that knows classes by name alone, such as VOC, they are classes exactly as written.
    """
    path = folder / "classes.txt"
    if not path.exists():  # what is there and no file is refused by the reader
        return frozenset()
    return frozenset(filter(None, (line.strip() for line in reading.read_text(path, DataError).splitlines())))


def holds(folder: Path, suffix: str) -> bool:
    """Whether a file with this suffix lies directly in the folder."""
    try:
        with os.scandir(folder) as entries:
            return any(e.name.lower().endswith(suffix) and not e.name.startswith(".") for e in entries)
    except OSError:
        return False
