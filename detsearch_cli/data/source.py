"""Opens a data set by folder or by name: `open_source("path/to/set")`, `open_source("shapes:images=200")`.

The format of a folder is found by looking at it: every file in data/formats is asked. Named sets lie under
the folder that the environment variable DETSEARCH_DATA names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from detsearch_cli import parts
from detsearch_cli.data import checks
from detsearch_cli.data._nearest import listing, nearest
from detsearch_cli.data.types import Record, Source, Split
from detsearch_cli.errors import DataError

FORMATS = "data.formats"
EMBEDDED = "data.embedded"


@dataclass(frozen=True)
class _Named:
    """Where a well-known set is looked for under DETSEARCH_DATA, and what should lie there."""

    format: str
    folders: tuple[str, ...]
    expects: str


_DEVKIT = ("VOCdevkit", "voc/VOCdevkit", "voc", "VOC", ".")
NAMED = {
    "voc": _Named(
        "voc", _DEVKIT, "VOC2007 and VOC2012, each with JPEGImages/, Annotations/ and ImageSets/Main/"
    ),
    "voc07": _Named(
        "voc",
        tuple(f"{d}/VOC2007" for d in _DEVKIT),
        "JPEGImages/, Annotations/ and ImageSets/Main/ of VOC2007",
    ),
    "voc12": _Named(
        "voc",
        tuple(f"{d}/VOC2012" for d in _DEVKIT),
        "JPEGImages/, Annotations/ and ImageSets/Main/ of VOC2012",
    ),
    "coco": _Named(
        "coco",
        ("coco", "COCO", "coco2017", "MSCOCO"),
        "train2017/, val2017/ and annotations/instances_{train,val}2017.json",
    ),
    "bdd": _Named(
        "bdd100k",
        ("bdd100k", "bdd", "BDD100K"),
        "images/100k/{train,val}/ and labels/det_20/det_{train,val}.json",
    ),
    "brainwash": _Named(
        "brainwash",
        ("brainwash", "Brainwash"),
        "brainwash_{train,val,test}.idl and the image folders they name",
    ),
    "wider": _Named(
        "wider",
        ("wider", "WIDER", "WIDER_FACE", "WIDERFACE", "widerface", "wider_face"),
        "WIDER_{train,val}/images/ and wider_face_split/wider_face_{train,val}_bbx_gt.txt",
    ),
    "fddb": _Named(
        "fddb",
        ("fddb", "FDDB"),
        "FDDB-folds/FDDB-fold-*-ellipseList.txt and the images under images/ or the folder",
    ),
}


class _Format(Protocol):
    """What a module in data/formats offers."""

    def detect(self, folder: Path) -> bool: ...

    def splits(self, folder: Path) -> tuple[str, ...]: ...

    def load(self, folder: Path, split: str) -> Split: ...


class _Embedded(Protocol):
    """What a module in data/embedded offers."""

    def source(self, options: dict[str, str]) -> Source: ...


@dataclass(frozen=True)
class FolderSource:
    """A data set in a folder on disk."""

    spec: str
    format: str
    folder: Path
    splits: tuple[str, ...]

    def load(self, split: str, strict: bool = False) -> Split:
        """One of `splits`. Strict decodes every image and raises DataError for the first defect."""
        self._refuse_unknown(split)
        loaded = _format(self.format).load(self.folder, split)
        if strict:
            checks.refuse_defects(self.spec, loaded, loaded.defects)
            checks.refuse_defects(self.spec, loaded, checks.decode_all(loaded))
        return loaded

    def load_annotations(self, split: str) -> Split:
        """One of `splits` for scoring alone: pictures that are missing count where the annotations tell their sizes."""
        self._refuse_unknown(split)
        module = _format(self.format)
        return getattr(module, "load_annotations", module.load)(self.folder, split)

    def _refuse_unknown(self, split: str) -> None:
        if split not in self.splits:
            raise DataError(f"{self.spec} has no split {split!r}; it has {', '.join(self.splits)}")


def open_source(spec: str) -> Source:
    """Find the data set that `spec` names; nothing but file names and first bytes are read.

    spec: `shapes` or `faces`, with options as in `shapes:images=200,size=160`; a name of NAMED, looked up
    under $DETSEARCH_DATA; a folder; or `format:folder` where a folder could be read as several formats.
    Raises DataError saying what was looked for and what was found.
    """
    name, colon, rest = spec.partition(":")
    if name in parts.names(EMBEDDED):
        module = cast(_Embedded, parts.load(EMBEDDED, name, DataError))
        return module.source(_options(name, rest))
    if spec in NAMED:
        return _open_named(spec)
    if colon and name in parts.names(FORMATS) and not Path(spec).exists():
        return _open_folder(spec, _existing(rest), name)
    return _open_folder(spec, _existing(spec), None)


def load_split(source: Source, split: str, strict: bool = False, pictures: bool = True) -> Split:
    """Load "train", or several joined: "train+val". Raises DataError as `Source.load` does.

    pictures: False where they are never looked at; see `FolderSource.load_annotations`.
    """
    wanted = [part.strip() for part in split.split("+")]
    if len(set(wanted)) != len(wanted) or not all(wanted):
        raise DataError(f"a split is a name, or different names joined by +, got {split!r}")
    if not pictures and isinstance(source, FolderSource):
        return join([source.load_annotations(part) for part in wanted], split)
    return join([source.load(part, strict) for part in wanted], split)


def join(splits: Sequence[Split], name: str) -> Split:
    """Several splits of one data set as one. Image ids are kept when they stay unique, else numbered 1..N.

    Raises DataError when their classes differ.
    """
    first = splits[0]
    if len(splits) == 1:
        return replace(first, name=name)
    for other in splits[1:]:
        if (other.classes, other.category_ids) != (first.classes, first.category_ids):
            raise DataError(
                f"splits {first.name!r} and {other.name!r} have different classes and cannot be joined"
            )
    records: list[Record] = [r for s in splits for r in s.records]
    unique = len({r.image_id for r in records}) == len(records)
    if not unique:
        records = [replace(r, image_id=i) for i, r in enumerate(records, start=1)]
    return replace(
        first,
        name=name,
        records=tuple(records),
        defects=tuple(d for s in splits for d in s.defects),
        read=_JoinedReader(tuple(splits)),
        own_ids=first.own_ids and unique,
    )


class _JoinedReader:
    """`Split.read` of joined splits."""

    def __init__(self, splits: tuple[Split, ...]) -> None:
        self.splits = splits
        self.ends = np.cumsum([len(s) for s in splits])

    def __call__(self, index: int) -> np.ndarray:
        """Image `index` as uint8 (H, W, 3) RGB."""
        if not 0 <= index < int(self.ends[-1]):
            raise IndexError(f"image {index} of {int(self.ends[-1])}")
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.splits[part].read(index - (int(self.ends[part - 1]) if part else 0))


def _format(name: str) -> _Format:
    return cast(_Format, parts.load(FORMATS, name, DataError))


def _nearly(name: str, folder: Path) -> str | None:
    """What the folder lacks to be of that format, in one sentence; None where the format cannot tell."""
    say: Callable[[Path], str | None] | None = getattr(_format(name), "nearly", None)
    return say(folder) if say else None


def _options(name: str, text: str) -> dict[str, str]:
    """`images=200,size=160` -> {"images": "200", "size": "160"}."""
    options: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or key.strip() in options:
            raise DataError(f"options of {name} are key=value, each key once, joined by commas; got {item!r}")
        options[key.strip()] = value.strip()
    return options


def _home(path: str) -> Path:
    """The path with `~` written out. Raises DataError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path!r} names the home of no user of this machine; write the path out") from error


def _data_root() -> Path | None:
    root = os.environ.get("DETSEARCH_DATA")
    return _home(root) if root else None


def _open_named(name: str) -> Source:
    known = NAMED[name]
    root = _data_root()
    hint = f"; a folder of that name here is ./{name}" if Path(name).is_dir() else ""
    if root is None:
        raise DataError(
            f"data set {name!r} is looked up under $DETSEARCH_DATA, which is not set; expected "
            f"$DETSEARCH_DATA/{known.folders[0]} with {known.expects}{hint}"
        )
    for place in known.folders:
        folder = root / place
        if folder.is_dir() and _format(known.format).detect(folder):
            if name == "voc" and not all((folder / year).is_dir() for year in ("VOC2007", "VOC2012")):
                continue
            return _open_folder(name, folder, known.format)
    found = listing(root) if root.is_dir() else "no such folder"
    raise DataError(
        f"data set {name!r} is not under $DETSEARCH_DATA; expected {root / known.folders[0]} with "
        f"{known.expects}, found {found}{hint}"
    )


def _existing(spec: str) -> Path:
    folder = _home(spec)
    root = _data_root()
    if not folder.exists() and root is not None and (root / spec).is_dir():
        folder = root / spec
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(
            f"data is a folder, but {spec} is a file; give the folder that holds images and labels"
        )
    names = ", ".join([*parts.names(EMBEDDED), *NAMED])
    parent = next(p for p in folder.absolute().parents if p.is_dir())
    raise DataError(
        f"no data at {spec!r}: neither a folder ({parent} has {listing(parent)}) nor one of {names}"
    )


def _open_folder(spec: str, folder: Path, format_name: str | None) -> FolderSource:
    known = parts.names(FORMATS)
    names = [format_name] if format_name else [n for n in known if _format(n).detect(folder)]
    if len(names) > 1:
        choices = " or ".join(f"{n}:{folder}" for n in names)
        raise DataError(f"{folder} can be read as {' and '.join(names)}; say which, as {choices}")
    if not names or (format_name and not _format(format_name).detect(folder)):
        lacking = [say for n in (names or known) if (say := _nearly(n, folder))]
        if lacking:
            raise DataError(lacking[0])
        raise DataError(
            f"{folder} is not a data set of {'that' if format_name else 'a known'} format: "
            f"{nearest(folder, _only_format)}; looked for {_looked_for(names or known)}"
        )
    splits = _format(names[0]).splits(folder)
    if not splits:
        raise DataError(f"{folder} looks like {names[0]} but offers no split; found {listing(folder)}")
    return FolderSource(spec, names[0], folder, splits)


def _only_format(folder: Path) -> str | None:
    """The first format that a folder can be read as; None where there is none, or its files contradict each other."""
    for name in parts.names(FORMATS):
        try:
            if _format(name).detect(folder):
                return name
        except DataError:
            continue
    return None


def _looked_for(names: Sequence[str]) -> str:
    """The whole first line of one format; of several the words before the colon, such as "COCO json"."""
    lines = [parts.summary(FORMATS, name).rstrip(".") for name in names]
    if len(lines) == 1:
        return lines[0]
    return ", ".join(line.partition(":")[0] for line in lines) + " (docs/formats.md shows their layouts)"
