"""What every executor shares: workers by number, a folder for each, and the files that pass through it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import ClassVar

from detsearch_cli.errors import StorageError, StudyError
from detsearch_cli.files import LOCK
from detsearch_cli.search.signals import uninterrupted
from detsearch_cli.search.storage import guarded
from detsearch_cli.search.worker import Task, WorkerSpec, read_json, read_task, write_message

_HEARTBEAT_SECONDS = 2.0
_FUTILE_STARTS = 3


class Executor(ABC):
    """Runs workers. folder: the study's; jobs: workers at once; run_trial: "module:function".

    Subclasses say how a worker is launched, whether it lives and how it is interrupted. Everything that a
    restarted coordinator needs to find workers again is in `folder/workers`. Every file there has a name that
    only this program gives, and the folder was claimed before: what is replaced or removed below is ours.
    """

    idle_seconds: ClassVar[float] = 180.0
    """A worker without work ends itself that long after the coordinator has gone."""

    def __init__(self, folder: Path, jobs: int, run_trial: str) -> None:
        self.root = folder.absolute() / "workers"
        if re.search(
            "%[jtAa]", str(self.root)
        ):  # submitit would put numbers in their place, and write elsewhere
            raise StudyError(
                f"%j, %t, %A and %a cannot be part of a folder in which workers run, got {folder}"
            )
        self.jobs, self.run_trial = jobs, run_trial
        self._futile: dict[int, int] = {}
        self._beat = 0.0
        self._held = False  # whether the lock of the folder's only writer was seen

    @abstractmethod
    def launch(self, worker: int, spec: WorkerSpec) -> None:
        """Start the worker's process; returns without waiting for it."""

    @abstractmethod
    def alive(self, worker: int) -> bool:
        """True while the worker starts or runs, whoever launched it."""

    @abstractmethod
    def interrupt(self, worker: int, kill: bool = False) -> None:
        """Ask the worker to stop its trial now (it keeps its checkpoint), or kill it."""

    def spec(self, worker: int) -> WorkerSpec:
        """What the worker is told at its start."""
        return WorkerSpec(
            str(self.folder(worker)),
            self.run_trial,
            tuple(p for p in sys.path if p),
            idle_seconds=self.idle_seconds,
        )

    def folder(self, worker: int) -> Path:
        return self.root / str(worker)

    def known(self) -> list[int]:
        """Workers that have a folder, from this or an earlier coordinator."""
        return sorted(int(p.name) for p in self.root.glob("*") if p.name.isdigit())

    def start(self, worker: int) -> None:
        """Make sure the worker lives. Raises StudyError when it keeps dying before it begins."""
        folder = self.folder(worker)
        with guarded(str(folder)):
            self.root.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
            (folder / "stop").unlink(missing_ok=True)
            self.beat()
            if self.alive(worker) or (folder / "running.json").exists():
                return  # a worker that died with its trial must be noticed before another takes its place
            self._count_start(worker)
            for name in ("ready.json", "error.json"):
                (folder / name).unlink(missing_ok=True)
            self.launch(worker, self.spec(worker))

    def _count_start(self, worker: int) -> None:
        if (self.folder(worker) / "ready.json").exists():
            self._futile[worker] = 0
        self._futile[worker] = self._futile.get(worker, 0) + 1
        if self._futile[worker] > _FUTILE_STARTS:
            raise StudyError(
                f"a worker ended {_FUTILE_STARTS} times before it began; its log is in {self.log(worker)}"
            )

    def log(self, worker: int) -> Path:
        """Folder of the worker's output."""
        return self.folder(worker) / "log"

    def check(self, worker: int) -> None:
        """Raises StudyError when the worker said that it cannot begin."""
        error = read_json(self.folder(worker) / "error.json")
        if error is not None:
            raise StudyError(
                f"workers cannot import {self.run_trial}: {error.get('reason')}; see {self.log(worker)}"
            )

    def ready(self, worker: int) -> bool:
        return (self.folder(worker) / "ready.json").exists()

    def hand(self, worker: int, task: Task) -> None:
        """Give the worker a trial to run."""
        with guarded(str(self.folder(worker))):
            # left when a worker died between writing its result and forgetting the trial
            (self.folder(worker) / "running.json").unlink(missing_ok=True)
            write_message(self.folder(worker) / "task.json", asdict(task))

    def held(self, worker: int) -> tuple[int | None, bool]:
        """(trial that the worker has been handed, whether it has taken it)."""
        for name, taken in (("task.json", False), ("running.json", True), ("task.json", False)):
            # task.json twice: it may have been renamed, or put back, between the looks
            task = read_task(self.folder(worker) / name)
            if task is not None:
                return task.trial, taken
        return None, False

    def clear(self, worker: int) -> None:
        """Forget what a dead worker was handed."""
        for name in ("task.json", "running.json"):
            (self.folder(worker) / name).unlink(missing_ok=True)

    def beat(self) -> None:
        """Tell workers that a coordinator lives. Raises StorageError where the folder was moved or removed.

        Nothing would come back from it any more: the workers write where it was.
        """
        if self.gone:
            raise StorageError(
                f"{self.root.parent} was moved or removed while it was written, so its workers were ended; put it "
                "back, then give the same command again: it goes on from what was recorded"
            )
        if time.monotonic() - self._beat > _HEARTBEAT_SECONDS:
            self._beat = time.monotonic()
            with guarded(str(self.root)):
                # without parents: they would be made anew in the place of a folder that was moved away
                self.root.mkdir(exist_ok=True)
                (self.root / "heartbeat").touch()

    @property
    def gone(self) -> bool:
        """Whether the folder has been moved or removed: its lock was seen, and is not there any more."""
        there = (self.root.parent / LOCK).exists()
        self._held = self._held or there
        return self._held and not there

    def retire(self, worker: int) -> None:
        """The worker is to end after its trial."""
        with contextlib.suppress(OSError):
            (self.folder(worker) / "stop").touch()

    def stop(self, wait: float = 2.0) -> None:
        """End idle workers and wait for them a moment."""
        self._end(lambda worker: None, wait)
        self.close()

    def abort(self, wait: float = 20.0) -> None:
        """Interrupt all workers, wait for their checkpoints, kill those that do not end."""
        if self.gone:
            self.kill_launched()  # a checkpoint would be written into a new folder in the old one's place
            self.close()
            return
        try:
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C again: do not wait for checkpoints
                self._end(self.interrupt, wait)
        finally:
            with uninterrupted():
                for worker in self.known():
                    if self.alive(worker):
                        self.interrupt(worker, kill=True)
                for worker in self.known():
                    if not self.alive(worker):
                        self.clear(worker)
                self.close()

    def kill_launched(self) -> None:  # noqa: B027 (an executor may know of none)
        """Kill the workers that this process knows, without a look into their folders."""

    def close(self) -> None:  # noqa: B027 (most executors hold nothing)
        """Let go of what was launched; workers go on."""

    def _end(self, notify: Callable[[int], None], wait: float) -> None:
        for worker in self.known():
            self.retire(worker)
        workers = [worker for worker in self.known() if self.alive(worker)]
        for worker in workers:
            notify(worker)
        until = time.monotonic() + wait
        while any(self.alive(worker) for worker in workers) and time.monotonic() < until:
            time.sleep(0.02)


@contextlib.contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
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
    """An empty folder for a worker's log; earlier logs are kept beside it as log.1, log.2, ..."""
    if folder.exists():
        # nothing is removed to make room for it: a log is a few kB, and log.1 might hold a user's notes
        number = next(n for n in count(1) if not folder.with_suffix(f".{n}").exists())
        folder.rename(folder.with_suffix(f".{number}"))
    folder.mkdir(parents=True)
    return folder
