"""What data a run was trained and scored on, kept as data.json, so that a change of the data is told and not missed.

For every image of train and val: its name below their common folder (data may move), its size in bytes and a hash of
its end, and a hash of its boxes with their class names. It is no part of the recipe and of no recipe's hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detsearch_cli.data import leaks
from detsearch_cli.data.types import Record, Split
from detsearch_cli.document import checked
from detsearch_cli.engine.checkpoint import DATA
from detsearch_cli.engine.documents import KeptData
from detsearch_cli.errors import CheckpointError, DataError
from detsearch_cli.files import write_signed_json
from detsearch_cli.reading import read_json

_SIGNED = "data"
_REMEDY = "restore it, or remove it: then nothing tells that the data has changed since"
_Images = dict[str, tuple[str, str]]  # name -> what its pixels are, what its labels are


@dataclass(frozen=True)
class Fingerprint:
    """The images of a run: those trained on and those scored."""

    train: Mapping[str, tuple[str, str]]
    val: Mapping[str, tuple[str, str]]

    def warning(self, scored: Split) -> str | None:
        """The sentence for images of `scored` that were trained on; None where there are none."""
        trained = {pixels for pixels, _ in self.train.values() if pixels}
        again = [record for record in scored.records if _pixels(record) in trained]
        if not again:
            return None
        return leaks.warning(len(again), scored, str(again[0].file or again[0].key))


def fingerprint(train: Split, val: Split) -> Fingerprint:
    """Of two splits as they are now."""
    return Fingerprint(_images(train), _images(val))


def keep(folder: Path, train: Split, val: Split) -> None:
    """Write data.json into a folder that the caller has claimed, where none is yet: it tells of the beginning."""
    if (folder / DATA).exists():
        return
    found = fingerprint(train, val)
    write_signed_json(folder / DATA, _SIGNED, {"train": found.train, "val": found.val})


def read(folder: Path) -> Fingerprint | None:
    """What a folder's data.json holds; None where there is none. Raises CheckpointError where it is damaged."""
    path = folder / DATA
    if not path.is_file():
        return None
    kept = checked(read_json(path, CheckpointError, _REMEDY), KeptData, path, CheckpointError, _REMEDY)
    train, val = ({n: (pixels, labels) for n, (pixels, labels) in p.items()} for p in (kept.train, kept.val))
    return Fingerprint(train, val)


def changes(folder: Path, train: Split, val: Split) -> str | None:
    """What is different in the data since the run or study in `folder` began, in one line; None where nothing is."""
    kept = read(folder)
    if kept is None:
        return None
    now = fingerprint(train, val)
    said = [
        f"{part}: {text}"
        for part, before, after in (("train", kept.train, now.train), ("val", kept.val, now.val))
        if (text := _difference(before, after))
    ]
    if not said:
        return None
    return (
        f"the data is not what {folder} began with ({'; '.join(said)}); what it holds was trained and scored on the "
        "data as it was"
    )


def _difference(before: Mapping[str, tuple[str, str]], after: Mapping[str, tuple[str, str]]) -> str:
    both = before.keys() & after.keys()
    counted = (
        (len(after.keys() - both), "added"),
        (len(before.keys() - both), "removed"),
        (sum(before[name][1] != after[name][1] for name in both), "with other labels"),
        (sum(before[name][0] != after[name][0] for name in both), "with other pixels"),
    )
    return ", ".join(f"{count} {what}" for count, what in counted if count)


def _images(split: Split) -> _Images:
    return {
        name: (_pixels(record), _labels(record, split.classes))
        for name, record in zip(_names(split.records), split.records, strict=True)
    }


def _names(records: Sequence[Record]) -> list[str]:
    """Of each image, below the folder that all of them have in common; a rendered one's is its key."""
    files = [r.file for r in records if r.file is not None]
    root = os.path.commonpath([os.path.abspath(f.parent) for f in files]) if files else ""  # noqa: PTH100
    return [
        r.key or str(r.image_id) if r.file is None else Path(os.path.relpath(r.file, root)).as_posix()
        for r in records
    ]


def _pixels(record: Record) -> str:
    """What tells a file's content without reading it whole; of a rendered image its key."""
    if record.file is None:
        return record.key or ""
    try:
        return f"{record.file.stat().st_size}-{leaks.tail(record.file).hex()}"
    except (OSError, DataError):  # it vanished: whoever reads it says so
        return ""


def _labels(record: Record, classes: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    # by name: the number of a class changes when another one is added
    digest.update(repr([classes[label] for label in record.labels.tolist()]).encode(errors="surrogatepass"))
    for values in (np.round(record.boxes.astype(np.float64), 2), record.crowd, record.difficult):
        digest.update(values.tobytes())
    return digest.hexdigest()
