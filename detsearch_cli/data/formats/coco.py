"""COCO json: annotations/instances_*.json, or one json a split folder (Roboflow), images in any usual place.

Found are `annotations/instances_X.json`, other COCO json files in `annotations/` or in the folder itself, and
`X/_annotations.coco.json`. Images are looked for in `X/`, `images/X/`, `images/`, beside the json and in the
folder. Category ids stay in `Split.category_ids`; labels are contiguous in order of id, over all splits.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.data import checks
from detsearch_cli.data.checks import Collector, Objects
from detsearch_cli.data.formats import _layout
from detsearch_cli.data.images import Header, find_images
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

_KEY = re.compile(rb'"categories"\s*:\s*\[')
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "lvis")


@dataclass(frozen=True)
class _Classes:
    names: tuple[str, ...]
    ids: tuple[int, ...]


def detect(folder: Path) -> bool:
    """Whether the folder holds a COCO json at one of the places named above."""
    return bool(_files(folder))


def splits(folder: Path) -> tuple[str, ...]:
    """Those of train, val, test that can be loaded."""
    found = _files(folder)
    return tuple(s for s in _layout.SPLITS if s in found)


def load_annotations(folder: Path, split: str) -> Split:
    """As `load`, but a missing picture stays where the json tells its size: scoring results opens none."""
    return load(folder, split, pictures=False)


def load(folder: Path, split: str, *, pictures: bool = True) -> Split:
    """Read one split. Raises DataError for json that is broken or no COCO, or classes that contradict.

    pictures: whether a missing one is left out.
    """
    files = _files(folder)
    path = files[split]
    content = reading.read_json(path, DataError)
    images, annotations = _lists(path, content)
    classes = _classes(files)
    collector = Collector(folder, split)
    finder = _Finder(folder, path)
    objects = _objects(collector, path, images, annotations, classes)
    numbered = all(type(i.get("id")) is int for i in images)
    if not numbered:
        collector.defect(checks.BROKEN_LABEL, path, "image ids are not whole numbers", "images numbered anew")
    for image, header, file in _images(collector, path, images, finder, pictures):
        declared = _declared(image)
        own = objects.get(image["id"], Objects())
        number = int(image["id"]) if numbered else None
        collector.add(file, header, own, where=path, declared=declared, image_id=number)
    if split == splits(folder)[0]:
        _orphans(collector, files, finder)
    return collector.finish(classes.names, classes.ids, own_ids=numbered)


def _lists(path: Path, content: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images and annotations. Raises DataError when they are not what COCO says."""
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold an object with images, annotations and categories")
    result = []
    for key in ("images", "annotations"):
        value = content.get(key)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise DataError(f"{path}: {key!r} must be a list of objects, got {type(value).__name__}")
        result.append(value)
    if not all(isinstance(i.get("file_name"), str) and isinstance(i.get("id"), int | str) for i in result[0]):
        raise DataError(f"{path}: every image needs an id and a file_name")
    return result[0], result[1]


def _images(
    collector: Collector, path: Path, images: list[dict[str, Any]], finder: _Finder, pictures: bool
) -> Iterator[tuple[dict[str, Any], Header, Path]]:
    seen: set[Any] = set()
    for image in images:
        if image["id"] in seen:
            detail = f"image id {image['id']} again for {image['file_name']}"
            collector.defect(checks.DUPLICATE_ID, path, detail, "second image left out")
            continue
        seen.add(image["id"])
        file = finder.find(image["file_name"])
        size = _declared(image)
        if pictures or size is None or file.is_file():
            header = collector.open(file, path.name)
        else:
            header = Header(*size, mode="RGB", orientation=1)
        if header is not None:
            yield image, header, file


def _objects(
    collector: Collector,
    path: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    classes: _Classes,
) -> dict[Any, Objects]:
    """Annotations grouped by image id, the unusable ones recorded and left out."""
    label_of = {number: label for label, number in enumerate(classes.ids)}
    by_image: dict[Any, Objects] = {image["id"]: Objects() for image in images}
    seen: set[Any] = set()
    for position, item in enumerate(annotations):
        number, image_id = item.get("id"), item.get("image_id")
        name = f"annotation {number if number is not None else f'number {position}'}"
        if isinstance(number, int | str):
            if number in seen:
                collector.defect(checks.DUPLICATE_ID, path, f"{name} appears again", "kept, ids are not used")
            seen.add(number)
        if not isinstance(image_id, int | str) or image_id not in by_image:
            collector.defect(checks.LABEL_ONLY, path, f"{name}: no image {image_id!r}", "annotation left out")
            continue
        category = item.get("category_id")
        if not isinstance(category, int) or category not in label_of:
            collector.defect(checks.UNKNOWN_CLASS, path, f"{name}: no category {category!r}", "box left out")
            continue
        box = _corners(item.get("bbox"))
        if box is None:
            detail = f"{name}: bbox must be four numbers, got {item.get('bbox')!r}"
            collector.defect(checks.BROKEN_LABEL, path, detail, "box left out")
            continue
        area = item.get("area")
        by_image[image_id].append(
            box,
            label_of[category],
            crowd=bool(item.get("iscrowd", 0)),
            difficult=bool(item.get("difficult", 0)),
            area=float(area) if isinstance(area, int | float) else math.nan,
        )
    return by_image


def _corners(bbox: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(v) in (int, float) for v in bbox):
        return None
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _declared(image: dict[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    if isinstance(width, int | float) and isinstance(height, int | float):
        return int(width), int(height)
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Split name -> json file. Raises DataError when two files claim one split on equal terms."""
    own = {s: p / "_annotations.coco.json" for s, p in _layout.split_folders(folder).items()}
    own = {s: p for s, p in own.items() if p.is_file()}
    if own:
        return own
    for place in (folder / "annotations", folder):
        found = sorted(place.glob("instances_*.json"))
        if not found:
            candidates = [p for p in sorted(place.glob("*.json")) if not p.stem.startswith(_OTHER_TASKS)]
            found = [p for p in candidates if _looks_like_coco(p)]
        if found:
            return _by_split(found)
    return {}


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
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            size = file.seek(0, 2)
            file.seek(max(0, size - 65536))
            tail = file.read()
    except OSError:
        return False
    known = (b'"images"', b'"annotations"', b'"categories"')
    needed = 1 if _layout.split_name(path.stem) else 2
    starts = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
    return starts and sum(k in head or k in tail for k in known) >= needed


def _classes(files: dict[str, Path]) -> _Classes:
    """Union of the splits' categories.

    Raises DataError when two splits contradict each other: labels would shift silently.
    """
    name_of: dict[int, str] = {}
    origin: dict[int, Path] = {}
    for path in files.values():
        within: dict[int, str] = {}
        for category in _categories(path):
            number, name = category.get("id"), category.get("name")
            if not isinstance(number, int) or not isinstance(name, str):
                raise DataError(
                    f"{path}: every category needs a whole-number id and a name, got {category!r}"
                )
            if within.get(number, name) != name:
                raise DataError(f"{path}: category id {number} is both {within[number]!r} and {name!r}")
            within[number] = name
            if name_of.get(number, name) != name:
                raise DataError(
                    f"category id {number} is {name_of[number]!r} in {origin[number]} but {name!r} in "
                    f"{path}; labels would mean different things in each split, so make them agree"
                )
            name_of[number], origin[number] = name, path
    ids = tuple(sorted(name_of))
    names = tuple(name_of[i] for i in ids)
    for first, number in enumerate(ids):
        for other in ids[first + 1 :]:
            if name_of[number] == name_of[other]:
                raise DataError(
                    f"category {name_of[number]!r} has id {number} in {origin[number]} and {other} in "
                    f"{origin[other]}; one class must have one id"
                )
    return _Classes(names, ids)


def _categories(path: Path) -> list[dict[str, Any]]:
    """Only the categories of a file: those of every split are needed, and train's json may hold 500 MB."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            places = [m.end() - 1 for m in _KEY.finditer(content)]
            for start in reversed(places):
                end = content.find(b"]", start)
                while end != -1:
                    try:
                        found = json.loads(content[start : end + 1])
                    except ValueError:
                        end = content.find(b"]", end + 1)
                        continue
                    if all(isinstance(c, dict) and "name" in c for c in found):
                        return list(found)
                    break
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    reading.read_json(path, DataError)
    raise DataError(f"{path}: 'categories' must be a list of objects with id and name")


class _Finder:
    """Finds the file of a `file_name`; remembers in which folder the last one was."""

    def __init__(self, folder: Path, annotation: Path) -> None:
        stem = annotation.stem.removeprefix("instances_")
        split = _layout.split_name(annotation.stem)
        words = [stem, *([split] if split else []), *(["valid"] if split == "val" else [])]
        places = [folder / w for w in words] + [folder / "images" / w for w in words]
        places += [folder / w / "images" for w in words]
        places += [folder / "images", annotation.parent, folder, folder / "JPEGImages", folder / "data"]
        self.places = [p for p in dict.fromkeys(places) if p.is_dir()]
        self.used: set[Path] = set()

    def find(self, file_name: str) -> Path:
        """Path of the image; where it was expected first when it exists nowhere."""
        name = file_name.replace("\\", "/")
        for index, place in enumerate(self.places):
            file = place / name
            if file.is_file():
                # Images of a split lie together: look there first for the next one.
                self.places.insert(0, self.places.pop(index))
                self.used.add(file.parent)
                return file
        return (self.places[0] if self.places else Path()) / name


def _orphans(collector: Collector, files: dict[str, Path], finder: _Finder) -> None:
    """Images in the folders used that no split names; looked for once, with the first split."""
    named: set[str] = set()
    for path in files.values():
        text = path.read_bytes()
        named.update(Path(json.loads(m.group(1)).replace("\\", "/")).name for m in _FILE_NAME.finditer(text))
    for folder in sorted(finder.used):
        for image in find_images(folder):
            if image.name not in named:
                collector.defect(checks.IMAGE_ONLY, image, "named by no annotation file", "image left out")
