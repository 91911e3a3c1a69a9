"""Trainings that are known beforehand, several at a time, in an executor's workers; no sampler, no ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detsearch_cli.errors import CheckFailed, StorageError
from detsearch_cli.search.coordinator import MAX_ATTEMPTS, POLL_SECONDS, executor_class
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.signals import interruptible
from detsearch_cli.search.storage import locked
from detsearch_cli.search.worker import read_json

OnDone = Callable[[int, Mapping[str, Any]], None]


def run_batch(
    folders: Sequence[Path],
    place: Path,
    run_trial: str,
    jobs: int,
    executor: str = "local",
    on_done: OnDone = lambda number, metrics: None,
) -> None:
    """Run `run_trial` ("module:function") on the recipe.yaml in each of `folders`; workers live in `place`.

    `on_done` hears the number of a folder and its metrics. The same call goes on after Ctrl-C or a kill;
    trainings that are done are not repeated. Raises CheckFailed when one fails or loses its worker twice,
    StudyError when another process works in `place`, StorageError when the disk refuses, KeyboardInterrupt
    after Ctrl-C, when workers have saved and ended.
    """
    with locked(place), interruptible() as interrupted:
        workers = executor_class(executor)(place, jobs, run_trial, {})
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
        self.busy: dict[int, int] = {}  # slot -> number of the training it was handed
        self.deaths = [0] * len(folders)

    def run(self) -> None:
        self._find_under_way()
        while self.waiting or self.busy:
            if self.interrupted():
                raise KeyboardInterrupt
            self.executor.beat()
            for slot, number in list(self.busy.items()):
                if not self._collect(slot, number):
                    self._watch(slot, number)
            for slot in range(self.executor.jobs):
                if slot not in self.busy and self.waiting:
                    self._hand(slot, self.waiting.pop(0))
            time.sleep(POLL_SECONDS)

    def _find_under_way(self) -> None:
        """Workers outlive a killed coordinator; what they train must not be given to others."""
        for slot in self.executor.slots():
            number, _ = self.executor.held(slot)
            if number in self.waiting and self.executor.alive(slot):
                self.waiting.remove(number)
                self.busy[slot] = number
            elif not self.executor.alive(slot):
                self.executor.clear(slot)

    def _hand(self, slot: int, number: int) -> None:
        self.busy[slot] = number
        if not self._result(number).exists():
            self.executor.start(slot)
            self.executor.hand(slot, number, self.folders[number])

    def _result(self, number: int) -> Path:
        return self.folders[number] / "result.json"

    def _collect(self, slot: int, number: int) -> bool:
        """True when the training is done. Raises what it failed with."""
        result = read_json(self._result(number))
        if result is None:
            return False
        del self.busy[slot]
        if "metrics" not in result:
            self._result(number).unlink(missing_ok=True)
            kind = StorageError if result.get("disk") else CheckFailed
            raise kind(f"training {self.folders[number]} failed: {result['reason']}")
        self.on_done(number, result["metrics"])
        return True

    def _watch(self, slot: int, number: int) -> None:
        """A worker that died is replaced; the training goes on from its checkpoint."""
        if self.executor.alive(slot):
            return
        self.executor.check(slot)
        if self._result(number).exists():
            return  # written just before it died
        held, taken = self.executor.held(slot)
        if taken:
            self.deaths[number] += 1
            if self.deaths[number] >= MAX_ATTEMPTS:
                raise CheckFailed(
                    f"training {self.folders[number]} failed: its worker died {MAX_ATTEMPTS} times without a "
                    f"word, killed or out of memory; give fewer --jobs"
                )
            self.executor.clear(slot)
        if taken or held is None:
            self.executor.hand(slot, number, self.folders[number])
        self.executor.start(slot)
