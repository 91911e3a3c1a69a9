"""What every executor shares: slots, each the folder of one worker, and the files that pass through them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detsearch_cli.errors import StudyError
from detsearch_cli.search.storage import guarded
from detsearch_cli.search.worker import WorkerSpec, read_json, write_json

_HEARTBEAT_SECONDS = 2.0
_FUTILE_STARTS = 3


class Executor(ABC):
    """Runs workers. folder: the study's; jobs: workers at once; run_trial: "module:function".

    Subclasses say how a worker is launched, whether it lives and how it is interrupted. Everything that a
    restarted coordinator needs to find workers again is in `folder/workers`.
    """

    def __init__(self, folder: Path, jobs: int, run_trial: str, options: Mapping[str, Any]) -> None:
        self.workers = folder.absolute() / "workers"
        self.jobs, self.run_trial, self.options = jobs, run_trial, dict(options)
        self.idle_seconds = float(self.options.pop("idle_seconds", 180.0))
        self._futile: dict[int, int] = {}
        self._beat = 0.0

    @abstractmethod
    def launch(self, slot: int, spec: WorkerSpec) -> None:
        """Start a worker for the slot; returns without waiting for it."""

    @abstractmethod
    def alive(self, slot: int) -> bool:
        """True while the slot's worker starts or runs, whoever launched it."""

    @abstractmethod
    def interrupt(self, slot: int, kill: bool = False) -> None:
        """Ask the slot's worker to stop its trial now (it keeps its checkpoint), or kill it."""

    def spec(self, slot: int) -> WorkerSpec:
        """What the slot's worker is told at its start."""
        return WorkerSpec(
            str(self.folder(slot)),
            self.run_trial,
            tuple(p for p in sys.path if p),
            idle_seconds=self.idle_seconds,
        )

    def folder(self, slot: int) -> Path:
        return self.workers / str(slot)

    def slots(self) -> list[int]:
        """Slots that have a folder, from this or an earlier coordinator."""
        return sorted(int(p.name) for p in self.workers.glob("*") if p.name.isdigit())

    def start(self, slot: int) -> None:
        """Make sure the slot has a worker. Raises StudyError when workers keep dying before they begin."""
        folder = self.folder(slot)
        with guarded(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "stop").unlink(missing_ok=True)
            self.beat()
            if self.alive(slot) or (folder / "running.json").exists():
                return  # a worker that died with its trial must be noticed before another takes its place
            self._count_start(slot)
            for name in ("ready.json", "error.json"):
                (folder / name).unlink(missing_ok=True)
            self.launch(slot, self.spec(slot))

    def _count_start(self, slot: int) -> None:
        if (self.folder(slot) / "ready.json").exists():
            self._futile[slot] = 0
        self._futile[slot] = self._futile.get(slot, 0) + 1
        if self._futile[slot] > _FUTILE_STARTS:
            raise StudyError(
                f"a worker ended {_FUTILE_STARTS} times before it began; its log is in {self.log(slot)}"
            )

    def log(self, slot: int) -> Path:
        """Folder of the worker's output."""
        return self.folder(slot) / "log"

    def check(self, slot: int) -> None:
        """Raises StudyError when the worker said that it cannot begin."""
        error = read_json(self.folder(slot) / "error.json")
        if error is not None:
            raise StudyError(
                f"workers cannot import {self.run_trial}: {error['reason']}; see {self.log(slot)}"
            )

    def ready(self, slot: int) -> bool:
        return (self.folder(slot) / "ready.json").exists()

    def hand(self, slot: int, trial: int, folder: Path) -> None:
        """Give the slot's worker a trial to run in `folder`."""
        with guarded(str(self.folder(slot))):
            # left when a worker died between writing its result and forgetting the trial
            (self.folder(slot) / "running.json").unlink(missing_ok=True)
            write_json(self.folder(slot) / "task.json", {"trial": trial, "folder": str(folder.absolute())})

    def held(self, slot: int) -> tuple[int | None, bool]:
        """(trial that the slot has been handed, whether its worker has taken it)."""
        for name, taken in (("task.json", False), ("running.json", True), ("task.json", False)):
            # task.json twice: it may have been renamed, or put back, between the looks
            task = read_json(self.folder(slot) / name)
            if task is not None:
                return int(task["trial"]), taken
        return None, False

    def clear(self, slot: int) -> None:
        """Forget what a dead worker was handed."""
        for name in ("task.json", "running.json"):
            (self.folder(slot) / name).unlink(missing_ok=True)

    def beat(self) -> None:
        """Tell workers that a coordinator lives."""
        if time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            with guarded(str(self.workers)):
                self.workers.mkdir(parents=True, exist_ok=True)
                (self.workers / "heartbeat").touch()

    def retire(self, slot: int) -> None:
        """The slot's worker is to end after its trial."""
        with contextlib.suppress(OSError):
            (self.folder(slot) / "stop").touch()

    def stop(self, wait: float = 2.0) -> None:
        """End idle workers and wait for them a moment."""
        self._end(lambda slot: None, wait)
        self.close()

    def abort(self, wait: float = 20.0) -> None:
        """Interrupt all workers, wait for their checkpoints, kill those that do not end."""
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C again: do not wait for checkpoints
            self._end(self.interrupt, wait)
        for slot in self.slots():
            if self.alive(slot):
                self.interrupt(slot, kill=True)
        for slot in self.slots():
            if not self.alive(slot):
                self.clear(slot)
        self.close()

    def close(self) -> None:  # noqa: B027 (most executors hold nothing)
        """Let go of what was launched; workers go on."""

    def _end(self, notify: Any, wait: float) -> None:
        for slot in self.slots():
            self.retire(slot)
        slots = [slot for slot in self.slots() if self.alive(slot)]
        for slot in slots:
            notify(slot)
        until = time.monotonic() + wait
        while any(self.alive(slot) for slot in slots) and time.monotonic() < until:
            time.sleep(0.02)


@contextlib.contextmanager
def environment(changes: Mapping[str, str]) -> Any:
    """Environment variables for processes started inside."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def fresh(folder: Path) -> Path:
    """An empty folder for a worker's log; earlier logs are kept as log.1."""
    if folder.exists():
        shutil.rmtree(folder.with_suffix(".1"), ignore_errors=True)
        folder.rename(folder.with_suffix(".1"))
    folder.mkdir(parents=True)
    return folder
