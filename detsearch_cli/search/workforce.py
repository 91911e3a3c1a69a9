"""Which worker trains which trial: hands trials over, finds workers again, notices lost ones, reads their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detsearch_cli.files import signed_yaml, write_text
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.plan import Emit
from detsearch_cli.search.stages import length
from detsearch_cli.search.storage import guarded
from detsearch_cli.search.study import Score, Trial
from detsearch_cli.search.worker import Task, read_json
from detsearch_cli.trials import scores_in

WAITING_SECONDS = 15.0
SCORES = "scores.json"


class Workforce:
    """The workers of one search. epochs: the whole length of a training."""

    def __init__(self, executor: Executor, epochs: int, emit: Emit) -> None:
        self.executor, self.epochs, self.emit = executor, epochs, emit
        self.busy: dict[int, Trial] = {}  # worker -> trial it was handed
        self._handed_at: dict[int, float] = {}  # worker -> when, until it takes the trial
        self._scored_at: dict[int, int] = {}  # trial -> st_mtime_ns of the scores that were read

    def free(self) -> list[int]:
        return [worker for worker in range(self.executor.jobs) if worker not in self.busy]

    def find(self, trials: Sequence[Trial]) -> None:
        """After a restart: find the trials that living workers still train, forget what dead ones held."""
        for worker in self.executor.known():
            number, _ = self.executor.held(worker)
            trial = trials[number] if number is not None and number < len(trials) else None
            if trial is not None and trial.state == "running" and self.executor.alive(worker):
                self.busy[worker] = trial
            elif trial is None or not self.executor.alive(worker):
                self.executor.clear(worker)
            if worker >= self.executor.jobs:
                self.executor.retire(worker)  # fewer jobs than before

    def make_room(self, oldest: Trial) -> None:
        """With fewer jobs than before, done trials may hold every worker while the one they wait for has none."""
        workers = range(self.executor.jobs)
        done = [w for w in workers if w in self.busy and self.busy[w].result.exists()]
        if done and all(w in self.busy and self.busy[w].number > oldest.number for w in workers):
            del self.busy[done[0]]  # its result is found again when its turn comes

    def hand(self, worker: int, trial: Trial) -> None:
        """Give the worker the trial, unless its result is there already."""
        recipe = trial.folder / "recipe.yaml"
        with guarded(str(trial.folder)):
            # not the study's folder: where that was moved away, nothing is begun anew in its place
            trial.folder.parent.mkdir(exist_ok=True)
            trial.folder.mkdir(exist_ok=True)
            if not recipe.exists():
                # an existing one may be of half the batch, after running out of memory: with the first recipe
                # in its place the training would not go on from its checkpoint
                write_text(recipe, signed_yaml("run", trial.recipe_yaml))
        self.busy[worker] = trial
        if trial.result.exists():
            return  # it finished while no coordinator was there
        self._scored_at[trial.number] = _modified(trial)  # those of the stage before were told
        self.executor.hand(worker, self._task(trial))
        self._handed_at[worker] = time.monotonic()
        self.executor.start(worker)
        self.emit("started", trial)

    def _task(self, trial: Trial) -> Task:
        whole = length(trial.epochs, self.epochs) == self.epochs
        return Task(
            trial=trial.number,
            folder=str(trial.folder.absolute()),
            recipe=trial.recipe_yaml,
            epochs=None if whole else trial.epochs,
            result=trial.result.name,
        )

    def release(self, worker: int) -> None:
        """The worker's trial is over, or is to be handed out again."""
        del self.busy[worker]
        self._handed_at.pop(worker, None)

    def lost(self) -> list[Trial]:
        """Trials whose worker died in them; they have none afterwards."""
        lost: list[Trial] = []
        for worker, trial in list(self.busy.items()):
            if self.executor.alive(worker):
                self._notice_waiting(worker, trial)
                continue
            self.executor.check(worker)
            if trial.result.exists():
                continue  # written just before it died
            number, taken = self.executor.held(worker)
            if number == trial.number and taken:
                self.executor.clear(worker)
                self.release(worker)
                lost.append(trial)
            else:
                self._replace(worker, trial, number)
        return lost

    def _replace(self, worker: int, trial: Trial, held: int | None) -> None:
        """Start a new worker for a trial that the dead one had not taken: not the trial's fault."""
        if worker >= self.executor.jobs:  # fewer jobs than before
            self.executor.clear(worker)
            self.release(worker)
            return
        if held is None:
            self.executor.hand(worker, self._task(trial))
        self.executor.start(worker)

    def _notice_waiting(self, worker: int, trial: Trial) -> None:
        since = self._handed_at.get(worker)
        if since is not None and time.monotonic() - since > WAITING_SECONDS:
            del self._handed_at[worker]
            if not self.executor.held(worker)[1]:
                log = self.executor.log(worker)
                self.emit("waiting", trial, f"worker {worker} has not begun yet; its log: {log}")

    def read_scores(self) -> None:
        """Emit the scores that trials under way have written since the last look."""
        for trial in self.busy.values():
            modified = _modified(trial)
            if modified == self._scored_at.get(trial.number, 0):
                continue
            self._scored_at[trial.number] = modified
            scores = read_scores(trial.folder)
            if scores:
                self.emit("scored", replace(trial, scores=scores), f"epoch {scores[-1][0]}")


def _modified(trial: Trial) -> int:
    try:
        return (trial.folder / SCORES).stat().st_mtime_ns
    except OSError:
        return 0  # not scored yet


def read_scores(folder: Path) -> tuple[Score, ...]:
    """(epoch, value) of every evaluation in a trial's folder; those without a finite value are left out."""
    scores = scores_in(read_json(folder / SCORES))
    return tuple((epoch, value) for epoch, value in scores if value is not None)
