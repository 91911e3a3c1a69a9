"""Finds files by the names that annotations give them, whichever Unicode form a name was written in.

macOS stores `ä` in a file's name as `a` and a combining mark (NFD), annotation tools write one character (NFC).
Both look the same and mean the same file, so names are compared in their composed form.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path


def composed(name: str) -> str:
    """The name in NFC, in which two names that look the same are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def ending_alike(parts: Sequence[str], found: Mapping[Path, Sequence[str]]) -> Path | None:
    """Of the paths found, each with its parts, the one that ends like `parts` the longest; None where several do."""
    wanted = [composed(part) for part in reversed(parts)]
    alike: dict[int, list[Path]] = {}
    for path, own in found.items():
        same = zip(wanted, map(composed, reversed(own)), strict=False)
        length = next((i for i, (a, b) in enumerate(same) if a != b), min(len(wanted), len(own)))
        alike.setdefault(length, []).append(path)
    best = alike[max(alike)] if alike else []
    return best[0] if len(best) == 1 else None


class Finder:
    """Files by name. It remembers the folders that it listed, so make a new one for each reading of a split."""

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, str]] = {}

    def file(self, folder: Path, name: str) -> Path | None:
        """The regular file `name` in `folder`, or None. `name` may lead through folders, or be absolute."""
        path = folder / name
        # os.path.isfile, because Path.is_file raises for a name that is too long
        if os.path.isfile(path):  # noqa: PTH113
            return path
        # a name of ASCII letters has one form only: no folder needs to be listed for it
        if name.isascii():
            return None
        here = str(folder)
        for part in Path(name).parts:
            entry = self._entries(here).get(composed(part))
            if entry is None:
                return None
            here = f"{here}/{entry}"
        return Path(here) if os.path.isfile(here) else None  # noqa: PTH113

    def _entries(self, folder: str) -> dict[str, str]:
        """Composed name -> name on disk of what lies in the folder."""
        if folder not in self._listed:
            try:
                self._listed[folder] = {composed(name): name for name in os.listdir(folder)}  # noqa: PTH208
            except (OSError, ValueError):
                self._listed[folder] = {}
        return self._listed[folder]
