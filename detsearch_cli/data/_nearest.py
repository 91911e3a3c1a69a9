"""Says what in a folder comes closest to a data set, for the message that the folder is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detsearch_cli import reading
from detsearch_cli.data.checks import short
from detsearch_cli.data.images import SUFFIXES
from detsearch_cli.errors import DataError

_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".tfrecord", ".record")
_MOST_FILES, _MOST_FOLDERS = 5000, 30
_MOST_JSON = 1 << 20


def nearest(folder: Path, format_of: Callable[[Path], str | None]) -> str:
    """One clause. format_of: the format that a folder can be read as, or None."""
    files, folders = _below(folder)
    if not files and not folders:
        return "it is empty"
    for inner in folders:
        name = format_of(inner)
        if name:
            return f"{inner} is one ({name}), so give that folder"
    of_kind = {
        kind: [f for f in files if f.suffix.lower() in kind] for kind in (_PACKED, _TABLES, (".json",))
    }
    images = sum(f.suffix.lower() in SUFFIXES for f in files)
    if of_kind[(".json",)]:
        return _json(of_kind[(".json",)])
    if of_kind[_TABLES]:
        return f"{of_kind[_TABLES][0]} is a table, which no format here uses; convert it to COCO json"
    if of_kind[_PACKED] and not images:
        return f"{of_kind[_PACKED][0]} is packed; unpack it"
    xml = next((f for f in files if f.suffix.lower() == ".xml"), None)
    if xml is not None:
        return f"{xml} is XML, but VOC's labels are <annotation> with one <object> a box"
    if images:
        first = next(f for f in files if f.suffix.lower() in SUFFIXES)
        return f"it has {images} images such as {first}, but no labels"
    return f"it has {listing(folder)}"


def listing(folder: Path, limit: int = 6) -> str:
    """First entries of a folder, for error messages."""
    try:
        entries = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    except OSError as error:
        return f"an unreadable folder ({error.strerror})"
    if not entries:
        return "an empty folder"
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return ", ".join(entries[:limit]) + more


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, folders) to a depth of three, sorted, not all of a large folder."""
    files: list[Path] = []
    folders: list[Path] = []
    for parent, names, found in os.walk(folder):
        here = Path(parent)
        deep = len(here.relative_to(folder).parts) >= 2
        names[:] = [] if deep else sorted(n for n in names if not n.startswith("."))
        folders += [here / name for name in names]
        files += [here / name for name in sorted(found) if not name.startswith(".")]
        if len(files) > _MOST_FILES:
            break
    return files[:_MOST_FILES], folders[:_MOST_FOLDERS]


def _json(files: list[Path]) -> str:
    """What a json file lacks to be COCO; the first of several stands for all."""
    path, count = files[0], len(files)
    and_more = f" (and {count - 1} more like it)" if count > 1 else ""
    try:
        if path.stat().st_size > _MOST_JSON:
            return f"{path} is json{and_more}, but without COCO's lists images, annotations and categories"
        content = reading.read_json(path, DataError)
    except (DataError, OSError) as error:
        return str(error)
    if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
        return f"{path}{and_more} is labelme's json, one an image; convert it to COCO json"
    held = f"the keys {short(sorted(map(str, content)))}" if isinstance(content, dict) else "no object"
    return f"{path}{and_more} holds {held}, but COCO needs the lists images, annotations and categories"
