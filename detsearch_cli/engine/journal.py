"""log.jsonl and TensorBoard: one entry a step, one an epoch; a resumed run goes on where it was saved.

Only the last line can be torn by a kill, and is left out. Damage further up has another reason and is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from detsearch_cli import reading
from detsearch_cli.document import checked
from detsearch_cli.engine.documents import EpochEntry, StepEntry
from detsearch_cli.errors import CheckpointError
from detsearch_cli.files import finite, storage_error, write_text


class Journal:
    """Entries of a run, oldest first; a file of None keeps nothing (ranks other than 0)."""

    def __init__(self, past: list[dict[str, Any]], file: TextIO | None = None, board: Any = None) -> None:
        self.past, self._file, self._board = past, file, board

    def write(self, step: int, entry: dict[str, Any]) -> None:
        """Append one entry. Raises StorageError when the disk refuses."""
        if self._file is None:
            return
        self.past.append(entry)
        try:
            self._file.write(json.dumps(finite(entry)) + "\n")
            # after every line: what was logged survives a kill, and others can read along
            self._file.flush()
        except OSError as error:
            raise storage_error(Path(self._file.name), error) from error
        if self._board is not None:
            for name, value in entry.items():
                # learned parts log lists, which are no curves
                if name not in ("step", "epoch") and isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def evaluated(self, epoch: int) -> bool:
        """Whether this epoch's score is in the log. A resumed run repeats its last evaluation, but not the entry."""
        return any("AP" in e and e["epoch"] == epoch for e in self.past)

    @property
    def best_ap(self) -> float:
        """The highest AP of all evaluations so far; -1 before the first."""
        # an AP that is undefined, on a split without objects, was logged as null
        return max((e["AP"] for e in self.past if e.get("AP") is not None), default=-1.0)


@contextmanager
def open_journal(path: Path, step: int, steps_per_epoch: int, tensorboard: bool) -> Iterator[Journal]:
    """Go on after `step`: later entries, of work that is done again, and a torn line are dropped first.

    Raises CheckpointError for a log that is damaged: dropping a score would let weaker weights be kept as the best.
    """
    # an entry without a step, a score or shapes, was made at the end of its epoch
    past = [e for e in read_entries(path) if e.get("step", e["epoch"] * steps_per_epoch) <= step]
    # replaces our own, the log of a claimed run folder. Not merely appended to: the first new entry would join a torn
    # line, and work that is done again would be logged twice
    write_text(path, "".join(json.dumps(e) + "\n" for e in past))
    board = _board(path.parent / "tensorboard", step) if tensorboard else None
    try:
        with path.open("a", encoding="utf-8") as file:
            yield Journal(past, file, board)
    finally:
        if board is not None:
            board.close()


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, oldest first, without a torn last line; none where there is no log.

    An entry holds `step`, `epoch`, `lr` and losses, or `epoch` and what was known at its end. Raises CheckpointError
    naming the line and the field that is damaged.
    """
    if not path.exists():
        return []
    with reading.open_regular(path, CheckpointError) as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    entries = []
    for place, (number, line) in enumerate(lines):
        name = f"{path}, line {number},"
        try:
            content = reading.parse_json(line.decode(), name, CheckpointError)
        except (UnicodeDecodeError, CheckpointError) as torn:
            if place == len(lines) - 1:
                break
            raise CheckpointError(
                f"{name} is damaged: it is not JSON in UTF-8, and more lines follow; {_REMEDY}"
            ) from torn
        kind = StepEntry if isinstance(content, dict) and "step" in content else EpochEntry
        checked(content, kind, name, CheckpointError, _REMEDY)
        entries.append(content)
    return entries


_REMEDY = "remove that line, or restore the file from a copy"


def _board(folder: Path, step: int) -> Any:
    # here: it takes a second to import, and few trainings want it
    from torch.utils.tensorboard import SummaryWriter

    # purge_step: events of work that is done again would be drawn twice. It adds a file of events, replacing none
    return SummaryWriter(str(folder), purge_step=step + 1)
