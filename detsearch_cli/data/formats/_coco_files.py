"""Which files of a folder are COCO json, which split each is, and where its images lie."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.formats._find import Finder, composed, ending_alike
from detsearch_cli.data.images import find_images
from detsearch_cli.errors import DataError

_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "lvis")
_KEYS = tuple(re.compile(rb'"%s"\s*:\s*\[' % key) for key in (b"images", b"annotations", b"categories"))
_NO_IMAGES = re.compile(rb'"images"\s*:\s*\[\s*\]')
_MOST_JSON = 50
"""More json files than this in one folder are one an image, as labelme writes them, and none of them is COCO."""


@dataclass(frozen=True)
class Files:
    """The json file of each split, and of those splits that list no image."""

    splits: dict[str, Path]
    empty: dict[str, Path]


def find_files(folder: Path) -> Files:
    """The json files of a folder. Raises DataError when two files claim one split on equal terms."""
    return Files(*_layout.without_empty(_found(folder), _is_empty))


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """A file's bytes without reading it whole. Raises DataError where it is no regular file or cannot be read."""
    with reading.open_regular(path, DataError) as file:
        if file.seek(0, os.SEEK_END) == 0:  # an empty file cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def _found(folder: Path) -> dict[str, Path]:
    inside = _layout.split_folders(folder)
    roboflow = {s: p / "_annotations.coco.json" for s, p in inside.items()}
    roboflow = {s: p for s, p in roboflow.items() if p.is_file()}
    if roboflow:
        return roboflow
    for place in (folder / "annotations", folder):
        found = sorted(p for p in place.glob("instances_*.json") if p.is_file()) or _candidates(place)
        if found:
            return _by_split(found)
    return {s: path for s, place in inside.items() if (path := _only_one(place, s))}


def _only_one(folder: Path, split: str) -> Path | None:
    """The COCO json of a split's own folder, under whatever name. Raises DataError when there are several."""
    for place in (folder, folder / "annotations"):
        found = _candidates(place)
        found = [p for p in found if p.stem.startswith("instances")] or found
        if len(found) > 1:
            listed = ", ".join(p.name for p in found[:5])
            raise DataError(f"{place} has several files for split {split!r} ({listed}); keep one of them")
        if found:
            return found[0]
    return None


def _candidates(place: Path) -> list[Path]:
    """COCO json files that lie directly in a folder, sorted."""
    found = sorted(p for p in place.glob("*.json") if not p.stem.startswith((*_OTHER_TASKS, ".")))
    return [p for p in found if _looks_like_coco(p)] if len(found) <= _MOST_JSON else []


def _by_split(files: list[Path]) -> dict[str, Path]:
    if len(files) == 1:
        return {_layout.split_name(files[0].stem) or "train": files[0]}
    result: dict[str, Path] = {}
    for name in _layout.SPLITS:
        claims = [p for p in files if _layout.split_name(p.stem) == name]
        # Of train2014 and train2017 the later one; "train" before "train_cats".
        plain = [p for p in claims if re.fullmatch(r"(instances_)?[a-z]+\d*", p.stem)]
        if plain:
            result[name] = max(plain, key=lambda p: p.stem)
        elif len(claims) > 1:
            listed = ", ".join(p.name for p in claims)
            raise DataError(
                f"{files[0].parent} has several files for split {name!r} ({listed}); keep one of them"
            )
        elif claims:
            result[name] = claims[0]
    if not result:
        listed = ", ".join(p.name for p in files[:5])
        raise DataError(
            f"{files[0].parent} has several json files ({listed}) and none says train, val or test"
        )
    return result


def _looks_like_coco(path: Path) -> bool:
    """Whether two of the lists that COCO consists of are there; one is enough in a file named after a split."""
    needed = 1 if _layout.split_name(path.stem) else 2
    try:
        with mapped(path) as content:
            if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
                return False
            # Both ends first: most tools write a list at one of them, and 500 MB are searched for a second.
            ends = content[:4096] + content[-65536:]
            found = sum(key.search(ends) is not None for key in _KEYS)
            return found >= needed or sum(key.search(content) is not None for key in _KEYS) >= needed
    except (DataError, OSError, ValueError):
        return False


def _is_empty(path: Path) -> bool:
    """Whether the file lists no image, as Roboflow writes for a split that nothing was dealt to."""
    try:
        with mapped(path) as content:
            return content.find(b'"file_name"') < 0 and _NO_IMAGES.search(content) is not None
    except (DataError, OSError, ValueError):
        return False


class ImageFinder:
    """Finds the file of a `file_name`; remembers in which folder the last one was.

    used: the folders that images were found in. moved: (as written, file) of those that were found by the last
    part of their path alone.
    """

    def __init__(self, folder: Path, annotation: Path, split: str) -> None:
        stem = annotation.stem.removeprefix("instances_")
        own = annotation.parent
        words = list(dict.fromkeys([stem, *_layout.aliases(split)]))
        places = [folder / w for w in words] + [folder / "images" / w for w in words]
        places += [folder / w / "images" for w in words] + [folder / w / "data" for w in words]
        places += [folder / "images", own, folder, folder / "JPEGImages", folder / "data"]
        self.places = [p for p in dict.fromkeys(places) if p.is_dir()]
        self.used: set[Path] = set()
        self.moved: list[tuple[str, Path]] = []
        self._folder, self._split = folder, split
        self._files = Finder()
        self._index: dict[str, list[Path]] | None = None

    def find(self, file_name: str) -> Path:
        """Path of the image; where it was expected first when it exists nowhere."""
        name = file_name.replace("\\", "/")
        for index, place in enumerate(self.places):
            file = self._files.file(place, name)
            if file is not None:
                # Images of a split lie together: look there first for the next one.
                if index:
                    self.places.insert(0, self.places.pop(index))
                self.used.add(file.parent)
                return file
        moved = self._by_last_part(name) if "/" in name else None
        if moved is not None:
            self.moved.append((file_name, moved))
            self.used.add(moved.parent)
            return moved
        return (self.places[0] if self.places else Path()) / name

    def _by_last_part(self, name: str) -> Path | None:
        """The image of that name below the folder, of several the one that shares most of the path.

        A path such as C:\\work\\set\\images\\a.jpg was true on the machine that wrote it. Only paths are looked up
        so: a plain name that is missing from its place is missing, and a like-named image elsewhere another one.
        """
        if self._index is None:
            self._index = self._all_images()
        wanted = name.split("/")
        return ending_alike(wanted, {file: file.parts for file in self._index.get(composed(wanted[-1]), ())})

    def _all_images(self) -> dict[str, list[Path]]:
        """Composed name -> images below the folder, without the folders of other splits."""
        found: dict[str, list[Path]] = {}
        for file in find_images(self._folder, recursive=True):
            folders = file.relative_to(self._folder).parts[:-1]
            if all(_layout.split_name(f) in (None, self._split) for f in folders):
                found.setdefault(composed(file.name), []).append(file)
        return found
