"""log.jsonl and TensorBoard: one entry a step, one an epoch; a resumed run goes on where it was saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

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
    """Go on after `step`: later entries, of work that is done again, and torn lines are dropped first."""
    # an entry without a step, a score or shapes, was made at the end of its epoch
    past = [e for e in _entries(path) if e.get("step", e["epoch"] * steps_per_epoch) <= step]
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


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a kill tore it
            continue
        if isinstance(entry, dict) and "epoch" in entry:
            yield entry


def _board(folder: Path, step: int) -> Any:
    # here: it takes a second to import, and few trainings want it
    from torch.utils.tensorboard import SummaryWriter

    # purge_step: events of work that is done again would be drawn twice. It adds a file of events, replacing none
    return SummaryWriter(str(folder), purge_step=step + 1)
