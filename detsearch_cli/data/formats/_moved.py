r"""Finds what a yaml or a list names by the path of another machine, such as D:\sets\a\images\train.

The last parts of a path that lead to something in the set's folder are taken for it, the most parts first: such files
were written where the folder had another place. The name of a split in it is never overlooked: a missing
`valid/images` is not `train/images`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed, ending_alike


class Locator:
    """Finds files and folders of one set. It remembers what lies below `root`, so make a new one for each reading.

    bases: folders that relative paths start from. moved: (as written, what was taken for it), for the report.
    """

    def __init__(self, root: Path, bases: Sequence[Path]) -> None:
        self.root = root
        self.bases = tuple(dict.fromkeys([*bases, root]))
        self.moved: list[tuple[str, Path]] = []
        self._named: dict[str, list[Path]] | None = None
        self._finder = Finder()

    def place(self, written: str) -> Path | None:
        """A folder or a file of the set; None where there is none, or several that fit."""
        parts = _parts(written)
        meant = _split_of(parts)
        # images/test is not what a missing test/images means, so both must name the same split, or none
        return self._find(written, parts, _place, lambda found: _split_of(found) == meant)

    def image(self, written: str) -> Path | None:
        """A file of a list of images; None where there is none, or several that fit."""
        parts = _parts(written)
        meant = _split_of(parts[:-1])
        return self._find(
            written,
            parts,
            self._finder.file,
            lambda found: _split_of(found[:-1]) in (None, meant) or not meant,
        )

    def _find(
        self,
        written: str,
        parts: Sequence[str],
        look: Callable[[Path, str], Path | None],
        agrees: Callable[[Sequence[str]], bool],
    ) -> Path | None:
        for base in self.bases:
            path = look(base, written)
            if path is not None:
                return path
        for start in range(len(parts)):
            tail = parts[start:]
            for base in self.bases:
                path = look(base, "/".join(tail)) if agrees(tail) else None
                if path is not None:
                    # data/ is what darknet and CVAT call the set's own folder
                    if any(part != "data" for part in parts[:start]):
                        self.moved.append((written, path))
                    return path
        found = self._below(parts, look, agrees)
        if found is not None:
            self.moved.append((written, found))
        return found

    def _below(
        self,
        parts: Sequence[str],
        look: Callable[[Path, str], Path | None],
        agrees: Callable[[Sequence[str]], bool],
    ) -> Path | None:
        """What has the same last part anywhere below the root: the one there is, or the one that shares most parts."""
        if not parts:
            return None
        if self._named is None:
            self._named = _names_below(self.root)
        inside = {
            path: path.relative_to(self.root).parts for path in self._named.get(composed(parts[-1]), [])
        }
        return ending_alike(
            parts,
            {
                path: own
                for path, own in inside.items()
                if "labels" not in own[:-1] and agrees(own) and look(path.parent, path.name)
            },
        )


def _place(folder: Path, name: str) -> Path | None:
    """The folder or file `name` in `folder`, or None."""
    path = folder / name
    # os.path, because Path.is_dir raises for a name that is too long; no pipes and devices
    return path if os.path.isdir(path) or os.path.isfile(path) else None  # noqa: PTH112, PTH113


def _names_below(root: Path) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for parent, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in (*folders, *files):
            named.setdefault(composed(name), []).append(Path(parent, name))
    return named


def _parts(written: str) -> list[str]:
    """Names in a path of any system, without drive and dots."""
    parts = [p for p in written.replace("\\", "/").split("/") if p not in ("", ".", "..")]
    return parts[1:] if parts and parts[0].endswith(":") else parts


def _split_of(parts: Sequence[str]) -> str | None:
    """The split that the last part naming one names: val for sets/train2/images/valid."""
    named = (_layout.split_name(part.removesuffix(".txt")) for part in reversed(parts))
    return next((name for name in named if name), None)
