"""One search: ask the sampler, hand trials to workers, write what comes back, until the budget is spent.

This process alone writes the ledger. It can be killed at any moment: whatever is not in the ledger is either
found again (trials under way and results waiting in their folders) or was never begun. The sampler is rebuilt
by replaying its events, and results are recorded in the order of the trials, so a resumed search proposes what
an uninterrupted one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from detsearch_cli import parts
from detsearch_cli.errors import DataLost, DetsearchError, StorageError, StudyError
from detsearch_cli.files import write_text
from detsearch_cli.search import ledger as ledgers
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.ledger import Ledger
from detsearch_cli.search.plan import Event, Kind, Outcome, Plan
from detsearch_cli.search.proposing import Proposer
from detsearch_cli.search.signals import interruptible
from detsearch_cli.search.stages import blocked, length, trains
from detsearch_cli.search.storage import guarded, sole_writer
from detsearch_cli.search.study import Trial
from detsearch_cli.search.worker import RunTrial, read_result
from detsearch_cli.search.workforce import Workforce, read_scores
from detsearch_cli.trials import best_of, leader_of

POLL_SECONDS = 0.03
MAX_ATTEMPTS = 2


def run(
    plan: Plan,
    run_trial: RunTrial | str,
    on_event: Callable[[Event], None] = lambda event: None,
    on_locked: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run or resume the search until its trials or its time are spent, or its space is exhausted.

    run_trial(recipe_yaml, folder, epochs) -> metrics with a finite "AP", higher is better; a module-level
    function or "module:function", which saves importing it here. epochs: train up to that one, None for the
    whole. It runs in workers, must go on from a checkpoint in its folder, and let KeyboardInterrupt pass.
    on_locked: called once this process is the folder's only writer, before anything else is written there.
    Raises StudyError (ledger damaged, of another search, or in use; a sampler that does not fit the space),
    StorageError (disk full, folder moved away), DataLost (the data went), and KeyboardInterrupt after Ctrl-C, when
    workers have saved and ended.
    """
    function = run_trial if isinstance(run_trial, str) else f"{run_trial.__module__}:{run_trial.__qualname__}"
    plan.config.sampler.check_space(plan.config.space)
    kind = executor_class(plan.executor)
    with sole_writer(plan.folder), interruptible() as interrupted:
        on_locked()
        executor = kind(plan.folder, max(1, plan.jobs), function)
        ledger = _open(plan, executor)
        try:
            outcome = _Search(plan, ledger, executor, on_event, interrupted).run()
        except BaseException:
            executor.abort()
            raise
        finally:
            ledger.close()
        executor.stop()
    return outcome


def executor_class(name: str) -> type[Executor]:
    """The executor of that name. Raises StudyError naming those there are."""
    return parts.find("search.executors", name, Executor, StudyError)  # type: ignore[type-abstract]


def _open(plan: Plan, executor: Executor) -> Ledger:
    """The plan's ledger. A new search surely needs workers, so they import while this process creates it."""
    new = not ledgers.exists(plan.folder, plan.storage) and not (plan.folder / "trials").exists()
    try:
        for worker in range(min(executor.jobs, plan.trials + 1) if new else 0):
            executor.start(worker)
        return ledgers.open_ledger(plan.name, plan.folder, plan.storage, plan.config)
    except BaseException:
        if new:
            executor.abort()
        raise


class _Search:
    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        executor: Executor,
        on_event: Callable[[Event], None],
        interrupted: Callable[[], bool],
    ) -> None:
        self.plan, self.ledger, self.executor = plan, ledger, executor
        self.on_event, self.interrupted = on_event, interrupted
        self.begun = time.monotonic()
        self.spent = max((trial.elapsed for trial in ledger.trials), default=0.0)
        self.proposer = Proposer(plan, ledger, self._emit, self._elapsed, self._pulse)
        self.workforce = Workforce(executor, plan.epochs, self._emit)

    def run(self) -> Outcome:
        """The whole search, in one loop."""
        if self.ledger.trials:
            self._resume()
        while True:
            self._pulse()
            why_not = self._hand_out()
            if why_not is not None and not self.workforce.busy:
                self.proposer.report()
                return Outcome(tuple(self.ledger.trials), why_not, len(self.ledger.refusals.entries))
            self.workforce.read_scores()
            self._collect()
            for trial in self.workforce.lost():
                self._try_again(trial)
            time.sleep(POLL_SECONDS)

    def _resume(self) -> None:
        for trial in self.ledger.trials:
            # other workers met the same outage, which is over: their trials are trained again, too
            if trial.state == "running" and "outage" in (read_result(trial.result) or {}):
                trial.result.unlink(missing_ok=True)  # ours, as in `_collect`
        self.workforce.find(self.ledger.trials)
        self.proposer.answer_all()
        done = sum(trial.state != "running" for trial in self.ledger.trials)
        running = len(self.workforce.busy)
        self._emit("resumed", None, f"{done} trials recorded, {running} still running")
        self._tell_noise()

    def _pulse(self) -> None:
        """Ctrl-C is acted on here only, between two writes; workers hear that this process lives."""
        if self.interrupted():
            raise KeyboardInterrupt
        self.executor.beat()

    def _emit(self, kind: Kind, trial: Trial | None, message: str = "") -> None:
        trials = self.ledger.trials
        self.on_event(Event(kind, trial, best_of(trials), leader_of(trials), message))

    def _elapsed(self) -> float:
        return self.spent + time.monotonic() - self.begun

    # handing out

    def _hand_out(self) -> str | None:
        """Give every free worker a trial; the reason when there will be no more."""
        waiting = self._unhanded()
        if waiting:
            self.workforce.make_room(waiting[0])
        for worker in self.workforce.free():
            # what is recorded goes first: a resumed search must not ask before it has caught up
            trial = waiting.pop(0) if waiting else self._next()
            if not isinstance(trial, Trial):
                return trial
            self.workforce.hand(worker, trial)
        return None

    def _next(self) -> Trial | str | None:
        return self.proposer.next(self.executor.jobs, bool(self.workforce.busy))

    def _unhanded(self) -> list[Trial]:
        """Recorded as running but with no worker: theirs or the coordinator died, or a stage was waited for."""
        under_way = {trial.number for trial in self.workforce.busy.values()}
        trials = self.ledger.trials
        return [t for t in trials if trains(t) and t.number not in under_way and not blocked(t, trials)]

    # what comes back

    def _collect(self) -> None:
        """Record the oldest trial under way, if it is done; later ones wait for it, even when done first.

        So the sampler hears the same results before each proposal however long each training took: the same
        seed and number of jobs propose the same trials. The price: a worker idles while an older trial runs.
        """
        oldest = min((t.number for t in self.ledger.trials if trains(t)), default=None)
        busy = self.workforce.busy.items()
        worker, trial = next(((w, t) for w, t in busy if t.number == oldest), (None, None))
        if worker is None or trial is None or not trial.result.exists():
            return  # nothing yet, or the oldest lost its worker and is about to be handed out again
        result = read_result(trial.result)
        if result is None or "outage" in result:
            # ours: the worker's report, of a name that only this program gives in a trial's folder
            trial.result.unlink(missing_ok=True)
        if result is not None and "outage" in result:
            raise _stopped_by(trial, result)
        self.workforce.release(worker)
        # only whole files are renamed into place: the disk lost one that cannot be read in a power cut, so the
        # trial is handed out again
        if result is not None:
            self._record(trial, result)

    def _record(self, trial: Trial, result: Mapping[str, Any]) -> None:
        """Write a trial's outcome, tell the sampler, answer those that waited for it."""
        metrics = result.get("metrics") or {}
        facts = {
            "seconds": result["seconds"],
            "elapsed": self._elapsed(),
            "worker": result.get("worker"),
            "metrics": metrics,
        }
        scores = read_scores(trial.folder)
        if scores:
            facts["scores"] = scores
        value, why = _value(metrics) if "metrics" in result else (math.nan, str(result["reason"]))
        if why is not None:
            ended = self.ledger.fail(trial, why, **facts)
        elif length(trial.epochs, self.plan.epochs) < self.plan.epochs:
            ended = self.ledger.stop(trial, value, **facts)
        else:
            ended = self.ledger.complete(trial, value, **facts)
        if "trace" in result:
            with guarded(str(trial.folder)):
                # ours: the trace of an earlier failure of the same trial, in the trial's own folder
                write_text(trial.folder / "error.txt", str(result["trace"]))
        self.proposer.tell(ended)
        self._emit("finished" if why is None else "failed", ended, why or "")
        if ended.baseline:
            self._tell_noise()
        self.proposer.answer(ended)

    def _tell_noise(self) -> None:
        """Once the last seed of the baseline has its outcome."""
        from detsearch_cli.search.noise import in_words, noise_of
        from detsearch_cli.search.racing import searched
        from detsearch_cli.search.settling import course_of

        rows = [trial for trial in self.ledger.trials if trial.baseline]
        config, size = self.ledger.config, self.plan.config.space.size
        if len(rows) < config.noise_seeds or any(map(trains, rows)):
            return
        noise = noise_of(rows)
        if noise is not None:
            candidates, again = searched(self.plan.trials, config.noise_seeds, config.races)
            candidates = candidates if size is None else min(candidates, size)
            told = in_words(noise, candidates, again, course_of(rows), self.plan.images(rows))
            self._emit("noise", None, told)

    def _try_again(self, trial: Trial) -> None:
        """The worker died in the trial: try once more from its checkpoint, then give it up."""
        if trial.attempts >= MAX_ATTEMPTS:
            why = f"its worker died {trial.attempts} times without a word: killed, or out of memory"
            self._record(trial, {"reason": why, "seconds": None})
            return
        trial = self.ledger.attempt(trial, trial.attempts + 1)
        self._emit("retried", trial, "its worker died without a word")


def _stopped_by(trial: Trial, result: Mapping[str, Any]) -> DetsearchError:
    """Why the search stops at a trial that failed through no fault of its own. It stays open, to be trained again."""
    if result["outage"] == "disk":
        return StorageError(
            f"trial {trial.number} could not write: {result['reason']}; free some space, then give the "
            "same command again: it goes on from the last checkpoint"
        )
    said = result["reason"].removeprefix("DataLost: ")
    return DataLost(
        f"trial {trial.number} could not read what every trial needs ({said}), so the search stops and nothing is "
        "recorded for it; bring the files back, then give the same command again"
    )


def _value(metrics: Mapping[str, Any]) -> tuple[float, str | None]:
    """(AP, None), or (NaN, why it is none)."""
    value = metrics.get("AP")
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value), None
    return math.nan, f"AP is {value}, not a number" if "AP" in metrics else "the trial returned no AP"
