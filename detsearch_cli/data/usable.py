"""Leaves out the images of a split that cannot be decoded, before a training or a search begins.

One truncated JPEG of a hundred thousand would else stop a training in its middle, and fail every trial of a search.
Every image is decoded once: nothing less finds all that the decoder refuses (a look at the end of a JPEG finds what
is cut short, and 2 of 242 with a damaged block in the middle). What was found is kept by the file's size and time of
change under $XDG_CACHE_HOME, by default ~/.cache, in detsearch/images; deleting it costs only time. It depends on the
files alone, so every process of a search and the final training leave out the same images.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL

from detsearch_cli.data.checks import TRUNCATED_IMAGE
from detsearch_cli.data.images import ImageError, check_image
from detsearch_cli.data.types import Defect, Split
from detsearch_cli.errors import DataError, DetsearchError
from detsearch_cli.files import write_signed_json
from detsearch_cli.reading import read_json

LEFT_OUT = "image left out"
NAMED = 3  # in one line
WORTH_KEEPING = 0.5  # seconds; what is found faster is found again, and leaves no file behind
_SIGNED = "checked images"
_Verdicts = dict[
    str, tuple[int, int, str]
]  # file name -> size, time of change in ns, why it is refused or ""


def usable(split: Split) -> Split:
    """The split without images that cannot be decoded, each a defect of the split.

    Raises DataError where no image is left, and for a file that the system cannot read now: that is an outage, and
    says nothing about the image.
    """
    files = [(row, record.file) for row, record in enumerate(split.records) if record.file is not None]
    reasons = _reasons([file for _, file in files])
    broken = {row: reason for (row, _), reason in zip(files, reasons, strict=True) if reason}
    if not broken:
        return split
    if len(broken) == len(split):
        raise DataError(
            f"none of the {len(split)} images of {split.name!r} can be decoded; the first, "
            f"{split.records[0].file}: {reasons[0]}"
        )
    defects = tuple(
        Defect(TRUNCATED_IMAGE, str(split.records[row].file), reason, LEFT_OUT)
        for row, reason in broken.items()
    )
    rest = split.take([row for row in range(len(split)) if row not in broken])
    return replace(rest, defects=split.defects + defects)


def left_out(splits: Sequence[Split]) -> list[str]:
    """What `usable` has left out of these splits, in one line; none where it was nothing."""
    # of splits that were divided each holds the defects of the whole
    found = list(dict.fromkeys(d for s in splits for d in s.defects if d.kind == TRUNCATED_IMAGE))
    if not found:
        return []
    named = ", ".join(f"{d.file} ({d.detail})" for d in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    count = (
        "1 image that cannot be decoded is"
        if len(found) == 1
        else f"{len(found)} images that cannot be decoded are"
    )
    return [f"{count} left out: {named}{more}"]


def _reasons(files: Sequence[Path]) -> list[str]:
    """Why each file is refused by its decoder, "" where it is not."""
    if not files:
        return []
    folder = Path(os.path.commonpath([os.path.abspath(file.parent) for file in files]))  # noqa: PTH100
    names = [os.path.relpath(file, folder) for file in files]
    kept_in = _place(folder)
    kept, started = _read(kept_in, folder), time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(lambda name, file: _look(file, kept.get(name)), names, files))
    if time.monotonic() - started > WORTH_KEEPING and any(
        kept.get(n) != f for n, f in zip(names, found, strict=True)
    ):
        # ours: a file in the program's own cache folder. A home that cannot be written to costs time, no more
        with contextlib.suppress(DetsearchError, OSError):
            files_now = {**kept, **dict(zip(names, found, strict=True))}
            about = {"decoder": PIL.__version__, "folder": str(folder), "files": files_now}
            write_signed_json(kept_in, _SIGNED, about)
    return [reason for _, _, reason in found]


def _look(file: Path, kept: tuple[int, int, str] | None) -> tuple[int, int, str]:
    """What is known of a file, or found by decoding it. Raises DataError where it cannot be read now."""
    try:
        # before it is decoded: a file that somebody is writing is another one at the next look
        state = file.stat()
    except OSError as error:
        raise DataError(
            f"{file} was there a moment ago and cannot be read now ({error.strerror}); is its disk there?"
        ) from error
    now = (state.st_size, state.st_mtime_ns)
    if kept is not None and kept[:2] == now:
        return kept
    try:
        check_image(file)
    except ImageError as error:
        return (*now, error.reason)
    except FileNotFoundError as error:
        raise DataError(f"{file} was there a moment ago and is gone; is its disk there?") from error
    return (*now, "")


def _place(folder: Path) -> Path:
    """Where the verdicts about the images in `folder` are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return Path(root or os.path.expanduser("~/.cache")) / "detsearch" / "images" / f"{name}.json"  # noqa: PTH111


def _read(path: Path, folder: Path) -> _Verdicts:
    """The verdicts kept in a file; none where it is missing, damaged, or another decoder's."""
    try:
        content = read_json(path, DataError)
        if (content["decoder"], content["folder"]) != (PIL.__version__, str(folder)):
            return {}
        return {
            name: (int(size), int(when), str(why)) for name, (size, when, why) in content["files"].items()
        }
    except (DataError, KeyError, TypeError, ValueError, AttributeError):
        return {}
