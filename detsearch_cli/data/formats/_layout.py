"""How folders of data sets are laid out: names of splits, and where to look."""

from __future__ import annotations

import os
import re
from pathlib import Path

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


def holds(folder: Path, suffix: str) -> bool:
    """Whether a file with this suffix lies directly in the folder."""
    try:
        with os.scandir(folder) as entries:
            return any(e.name.lower().endswith(suffix) and not e.name.startswith(".") for e in entries)
    except OSError:
        return False
