"""Trainings that are known beforehand, several at a time, in an executor's workers; no sampler, no ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detsearch_cli.errors import CheckFailed, CheckpointError, StorageError
from detsearch_cli.reading import read_text
from detsearch_cli.search.coordinator import MAX_ATTEMPTS, POLL_SECONDS, executor_class
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.signals import interruptible
from detsearch_cli.search.storage import sole_writer
from detsearch_cli.search.worker import Task, read_result

OnDone = Callable[[int, Mapping[str, Any]], None]


def run_batch(
    folders: Sequence[Path],
    folder: Path,
    run_trial: str,
    jobs: int,
    executor: str = "local",
    on_done: OnDone = lambda number, metrics: None,
) -> None:
    """Run `run_trial` ("module:function") on the recipe.yaml in each of `folders`; workers live in `folder`/workers.

    `on_done` hears the number of a folder and its metrics. The same call goes on after Ctrl-C or a kill;
    trainings that are done are not repeated. Raises CheckFailed when one fails or loses its worker twice,
    StudyError when another process works in `folder`, StorageError when the disk refuses, KeyboardInterrupt
    after Ctrl-C, when workers have saved and ended.
    """
    with sole_writer(folder), interruptible() as interrupted:
        workers = executor_class(executor)(folder, jobs, run_trial)
        try:
            _Batch(folders, workers, on_done, interrupted).run()
        except BaseException:
            workers.abort()
            raise
        workers.stop()


class _Batch:
    def __init__(
        self, folders: Sequence[Path], executor: Executor, on_done: OnDone, interrupted: Callable[[], bool]
    ) -> None:
        self.folders, self.executor, self.on_done, self.interrupted = folders, executor, on_done, interrupted
        self.waiting = list(range(len(folders)))
        self.busy: dict[int, int] = {}  # worker -> number of the training it was handed
        self.deaths = [0] * len(folders)

    def run(self) -> None:
        self._find_under_way()
        while self.waiting or self.busy:
            if self.interrupted():
                raise KeyboardInterrupt
            self.executor.beat()
            for worker, number in list(self.busy.items()):
                if not self._collect(worker, number):
                    self._watch(worker, number)
            for worker in range(self.executor.jobs):
                if worker not in self.busy and self.waiting:
                    self._hand(worker, self.waiting.pop(0))
            time.sleep(POLL_SECONDS)

    def _find_under_way(self) -> None:
        """Workers outlive a killed coordinator; what they train must not be given to others."""
        for worker in self.executor.known():
            number, _ = self.executor.held(worker)
            if number in self.waiting and self.executor.alive(worker):
                self.waiting.remove(number)
                self.busy[worker] = number
            elif not self.executor.alive(worker):
                self.executor.clear(worker)

    def _hand(self, worker: int, number: int) -> None:
        self.busy[worker] = number
        if not self._result(number).exists():
            self.executor.start(worker)
            self.executor.hand(worker, self._task(number))

    def _task(self, number: int) -> Task:
        folder = self.folders[number]
        recipe = read_text(folder / "recipe.yaml", CheckpointError)
        return Task(number, str(folder.absolute()), recipe)

    def _result(self, number: int) -> Path:
        return self.folders[number] / "result.json"

    def _collect(self, worker: int, number: int) -> bool:
        """True when the training is done. Raises what it failed with."""
        result = read_result(self._result(number))
        if result is None:
            return False
        del self.busy[worker]
        if "metrics" not in result:
            # ours: what the worker reported, in a run folder that the caller has claimed
            self._result(number).unlink(missing_ok=True)
            kind = StorageError if result.get("outage") == "disk" else CheckFailed
            raise kind(f"training {self.folders[number]} failed: {result['reason']}")
        self.on_done(number, result["metrics"])
        return True

    def _watch(self, worker: int, number: int) -> None:
        """A worker that died is replaced; the training goes on from its checkpoint."""
        if self.executor.alive(worker):
            return
        self.executor.check(worker)
        if self._result(number).exists():
            return  # written just before it died
        held, taken = self.executor.held(worker)
        if taken:
            self.deaths[number] += 1
            if self.deaths[number] >= MAX_ATTEMPTS:
                raise CheckFailed(
                    f"training {self.folders[number]} failed: its worker died {MAX_ATTEMPTS} times without a "
                    f"word, killed or out of memory; give fewer --jobs"
                )
            self.executor.clear(worker)
        if taken or held is None:
            self.executor.hand(worker, self._task(number))
        self.executor.start(worker)
