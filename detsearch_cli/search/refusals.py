"""The log of refused proposals, `refused.jsonl` in the study's folder: one line each, no row in the ledger.

A row costs a transaction, so ten thousand refusals would take half an hour; a line takes microseconds. The
sampler's events are numbered through ledger and log, so a replay merges both by number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detsearch_cli.errors import StudyError
from detsearch_cli.reading import open_regular
from detsearch_cli.search.space import Candidate
from detsearch_cli.search.storage import guarded

if TYPE_CHECKING:
    from io import FileIO

REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class Refusal:
    """A proposal that was refused. asked, told: the numbers of its two events."""

    asked: int
    told: int
    candidate: Candidate
    epochs: int | None
    reason: str


def read_refusals(folder: Path) -> list[Refusal]:
    """All refusals of the study in `folder`, in order."""
    return _read(folder / REFUSED)[0]


def reasons(folder: Path) -> dict[str, int]:
    """How many proposals were refused for each reason, the commonest first."""
    return dict(Counter(refusal.reason for refusal in read_refusals(folder)).most_common())


class RefusalLog:
    """The log, open for appending by the study's only writer."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / REFUSED
        self.entries, self._whole_bytes = _read(self.path)
        self._file: FileIO | None = None
        self._unsynced = False

    def append(self, refusal: Refusal) -> None:
        """Write one line; a kill of this process cannot lose it, a power cut can until `sync`."""
        line = json.dumps(vars(refusal)) + "\n"
        with guarded(str(self.path)):
            if self._file is None:
                self._file = self._opened()
            rest = line.encode()
            while rest:  # a disk that fills up takes a part of it first, and refuses the next
                rest = rest[self._file.write(rest) :]
        self.entries.append(refusal)
        self._unsynced = True

    def _opened(self) -> FileIO:
        file = self.path.open("ab", buffering=0)  # unbuffered: a line is the system's at once
        # cuts off a line that a kill or a full disk left torn; it is ours, in a folder that was claimed
        file.truncate(self._whole_bytes)
        return file

    def sync(self) -> None:
        """Make sure that a power cut keeps what was appended."""
        if self._file is not None and self._unsynced:
            with guarded(str(self.path)):
                os.fsync(self._file.fileno())
            self._unsynced = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _read(path: Path) -> tuple[list[Refusal], int]:
    """The entries without a torn last line, and the number of bytes they take.

    Raises StudyError for a line further up that is damaged: what follows it would be cut off with it.
    """
    if not path.exists():
        return [], 0
    with open_regular(path, StudyError) as file:
        lines = file.readlines()
    entries: list[Refusal] = []
    whole_bytes = 0
    for number, line in enumerate(lines, 1):
        # torn just before its end: the next line would be appended to it
        entry = _refusal(line) if line.endswith(b"\n") else None
        if entry is None and number == len(lines):
            break
        if entry is None:
            raise StudyError(
                f"{path}, line {number}, is damaged: it is no refused proposal, and more lines follow; restore the "
                "file from a copy, or start another --name"
            )
        entries.append(entry)
        whole_bytes += len(line)
    return entries, whole_bytes


def _refusal(line: bytes) -> Refusal | None:
    """The refusal in a line, None where it is none. By hand: a schema would take ten times as long, of 10,000 lines."""
    try:
        entry = Refusal(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    whole = all(type(n) is int and n >= 0 for n in (entry.asked, entry.told))
    epochs = entry.epochs is None or (type(entry.epochs) is int and entry.epochs > 0)
    sound = whole and epochs and isinstance(entry.candidate, dict) and isinstance(entry.reason, str)
    return entry if sound else None
