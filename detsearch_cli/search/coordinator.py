"""One search: ask the sampler, hand trials to workers, write what comes back, until the budget is spent.

This process alone writes the ledger. It can be killed at any moment: whatever is not in the ledger is either
found again (trials under way and results waiting in their folders) or was never begun. The sampler is rebuilt
by replaying the ledger, and results are recorded in the order of the trials, so a resumed search proposes
what an uninterrupted one would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from detsearch_cli import parts
from detsearch_cli.errors import StorageError, StudyError
from detsearch_cli.search import ledger as ledgers
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.ledger import Frozen, Ledger
from detsearch_cli.search.plan import Event, Kind, Outcome, Plan, text_hash
from detsearch_cli.search.samplers.base import Sampler
from detsearch_cli.search.signals import interruptible
from detsearch_cli.search.space import Candidate
from detsearch_cli.search.storage import guarded, locked
from detsearch_cli.search.study import TrialRow
from detsearch_cli.search.worker import RunTrial, read_json, reason
from detsearch_cli.trials import best_of

POLL_SECONDS = 0.03
MAX_ATTEMPTS = 2
MAX_KNOWN_IN_A_ROW = 50
WAITING_SECONDS = 15.0


def run(
    plan: Plan, run_trial: RunTrial | str, on_event: Callable[[Event], None] = lambda event: None
) -> Outcome:
    """Run or resume the search until its trials or its time are spent, or its space is exhausted.

    run_trial(recipe_yaml, folder) -> metrics with a finite "AP", higher is better; a module-level function or
    "module:function", which saves importing it here. It runs in workers, must go on from a checkpoint in its
    folder, and let KeyboardInterrupt pass. Raises StudyError (ledger damaged, of another search, or in
    use), StorageError (disk full), and KeyboardInterrupt after Ctrl-C, when workers have saved and ended.
    """
    function = run_trial if isinstance(run_trial, str) else f"{run_trial.__module__}:{run_trial.__qualname__}"
    if plan.sampler not in parts.names("search.samplers"):
        parts.load("search.samplers", plan.sampler, StudyError)  # raises, naming the samplers there are
    kind = executor_class(plan.executor)
    with locked(plan.folder), interruptible() as interrupted:
        executor = kind(plan.folder, max(1, plan.jobs), function, plan.executor_options)
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
    own = {"space": plan.space.to_json(), "sampler": plan.sampler, "seed": plan.seed}
    identity = {**plan.identity, **own}
    frozen = Frozen(identity, plan.space, plan.sampler, plan.seed, plan.trials, executor.jobs, plan.notes)
    new = not ledgers.exists(plan.folder, plan.storage) and not (plan.folder / "trials").exists()
    try:
        for slot in range(min(executor.jobs, plan.trials + 1) if new else 0):
            executor.start(slot)
        return ledgers.open_ledger(plan.name, plan.folder, plan.storage, frozen)
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
        self.busy: dict[int, TrialRow] = {}  # slot -> trial it was handed
        self.handed: dict[int, float] = {}  # slot -> when, until its worker takes it
        self.known = {row.recipe_hash: row.number for row in ledger.rows if row.repeat_of is None}
        self.sampler: Sampler | None = None
        self.begun = time.monotonic()
        self.spent = max((row.elapsed for row in ledger.rows), default=0.0)

    def run(self) -> Outcome:
        """The whole search, in one loop."""
        if self.ledger.rows:
            self._resume()
        while True:
            if self.interrupted():
                raise KeyboardInterrupt
            self.executor.beat()
            why_not = self._hand_out()
            if why_not is not None and not self.busy:
                return Outcome(tuple(self.ledger.rows), why_not)
            self._collect()
            self._watch_workers()
            time.sleep(POLL_SECONDS)

    def _resume(self) -> None:
        """Find trials under way; those without a living worker are handed out again."""
        for slot in self.executor.slots():
            number, _ = self.executor.held(slot)
            row = self.ledger.rows[number] if number is not None and number < len(self.ledger.rows) else None
            if row is not None and row.state == "running" and self.executor.alive(slot):
                self.busy[slot] = row
            elif row is None or not self.executor.alive(slot):
                self.executor.clear(slot)
            if slot >= self.executor.jobs:
                self.executor.retire(slot)  # fewer jobs than before
        for row in self.ledger.rows:
            if row.state == "running" and row.repeat_of is not None:
                self._answer_repeats(row.repeat_of)
        done = sum(row.state != "running" for row in self.ledger.rows)
        self._emit("resumed", None, f"{done} trials recorded, {len(self.busy)} still running")

    def _emit(self, kind: Kind, row: TrialRow | None, message: str = "") -> None:
        self.on_event(Event(kind, row, best_of(self.ledger.rows), message))

    def _elapsed(self) -> float:
        return self.spent + time.monotonic() - self.begun

    # handing out

    def _hand_out(self) -> str | None:
        """Give every free slot a trial; the reason when there will be no more."""
        waiting = self._unhanded()
        if waiting:
            self._make_room(waiting[0])
        for slot in range(self.executor.jobs):
            if slot in self.busy:
                continue
            if not waiting:
                why_not = self._finished()
                if why_not is not None:
                    return why_not
                row, why_not = self._next()
                if why_not is not None:
                    return why_not
                if row is None:
                    return None
                waiting = [row]
            self._hand(slot, waiting.pop(0))
        return None

    def _make_room(self, oldest: TrialRow) -> None:
        """With fewer jobs than before, done trials may hold every slot while the one they wait for has none."""
        slots = range(self.executor.jobs)
        done = [s for s in slots if s in self.busy and (self.busy[s].folder / "result.json").exists()]
        if done and all(s in self.busy and self.busy[s].number > oldest.number for s in slots):
            del self.busy[done[0]]  # its result is found again when its turn comes

    def _unhanded(self) -> list[TrialRow]:
        """Recorded as running but with no worker: their worker or the coordinator died."""
        under_way = {row.number for row in self.busy.values()}
        return [row for row in self.ledger.rows if _trains(row) and row.number not in under_way]

    def _finished(self) -> str | None:
        if (
            self.plan.time_budget is not None
            and self._elapsed() >= self.plan.time_budget
            and self.ledger.rows
        ):
            return f"the time budget of {self.plan.time_budget:g} s is spent"
        if sum(row.trained for row in self.ledger.rows) >= self.plan.trials and self.ledger.rows:
            return f"all {self.plan.trials} trials are done"
        return None

    def _next(self) -> tuple[TrialRow | None, str | None]:
        """(a new trial, None), (None, why there is none), or (None, None) to wait for one under way."""
        if not self.ledger.rows:
            recipe = self.plan.make_recipe(None)
            return self._add(None, recipe, self.plan.recipe_hash(recipe), None), None
        while True:
            if self.interrupted():
                raise KeyboardInterrupt
            why_not = self._exhausted()
            if why_not is not None:
                return None, why_not
            if self._known_in_flight() >= self.executor.jobs:
                return None, None  # it keeps proposing what is being trained: let it hear of that first
            self.executor.beat()
            candidate = self._sampler().ask()
            if candidate is None:
                stuck = None if self.busy else f"the {self.plan.sampler} sampler has nothing more to propose"
                return None, stuck
            row = self._propose(candidate)
            if row is not None:
                return row, None

    def _exhausted(self) -> str | None:
        size = self.plan.space.size
        tried = sum(row.trained for row in self.ledger.rows)
        if size is not None and tried >= size:
            return f"every candidate of the space has been tried ({size})"
        if self._sampler().exhausted:
            return f"the {self.plan.sampler} sampler has proposed all its candidates ({tried})"
        last = [row.repeat_of is not None for row in self.ledger.rows[-MAX_KNOWN_IN_A_ROW:]]
        if len(last) == MAX_KNOWN_IN_A_ROW and all(last):
            return f"the last {MAX_KNOWN_IN_A_ROW} proposals were all known already"
        return None

    def _known_in_flight(self) -> int:
        return sum(row.state == "running" and row.repeat_of is not None for row in self.ledger.rows)

    def _propose(self, candidate: Candidate) -> TrialRow | None:
        """Record the candidate; None when the ledger already answers it or its recipe cannot be made."""
        self.plan.space.check(candidate)
        try:
            recipe = self.plan.make_recipe(candidate)
            name = self.plan.recipe_hash(recipe)
        except (
            Exception
        ) as error:  # a candidate without a valid recipe is a failed trial, not the search's end
            row = self._add(candidate, "", text_hash(repr(sorted(candidate.items()))), None)
            self._record(row, {"reason": f"no recipe: {reason(error)}", "seconds": 0.0})
            return None
        row = self._add(candidate, recipe, name, self.known.get(name))
        if row.repeat_of is None:
            return row
        self._answer_repeats(row.repeat_of)
        return None

    def _add(self, candidate: Candidate | None, recipe: str, name: str, repeat_of: int | None) -> TrialRow:
        row = self.ledger.add(candidate, recipe, name, repeat_of)
        self.known.setdefault(name, row.number)
        return row

    def _hand(self, slot: int, row: TrialRow) -> None:
        with guarded(str(row.folder)):
            row.folder.mkdir(parents=True, exist_ok=True)
            if not (row.folder / "result.json").exists():
                (row.folder / "recipe.yaml").write_text(row.recipe_yaml, encoding="utf-8")
        self.busy[slot] = row
        if (row.folder / "result.json").exists():
            return  # it finished while no coordinator was there
        self.executor.hand(slot, row.number, row.folder)
        self.handed[slot] = time.monotonic()
        self.executor.start(slot)
        self._emit("started", row)

    # what comes back

    def _collect(self) -> None:
        """Record the oldest trial under way, if it is done; later ones wait for it, even when done first.

        So the sampler hears the same results before each proposal however long each training took: the same
        seed and number of jobs propose the same trials. The price: a slot idles while an older trial runs.
        """
        oldest = min((r.number for r in self.ledger.rows if _trains(r)), default=None)
        slot, row = next(((s, r) for s, r in self.busy.items() if r.number == oldest), (None, None))
        if slot is None or row is None or not (path := row.folder / "result.json").exists():
            return  # nothing yet, or the oldest lost its worker and is about to be handed out again
        result = read_json(path)
        if result is None:  # only whole files are renamed into place: the disk lost this one in a power cut
            path.unlink(missing_ok=True)
            del self.busy[slot]
            return
        if result.get("disk"):
            path.unlink(missing_ok=True)
            raise StorageError(
                f"trial {row.number} could not write: {result['reason']}; free some space, then give the "
                "same command again: it goes on from the last checkpoint"
            )
        del self.busy[slot]
        self.handed.pop(slot, None)
        self._record(row, result)

    def _record(self, row: TrialRow, result: Mapping[str, Any]) -> None:
        """Write a trial's outcome, tell the sampler, answer those that waited for it."""
        facts = {"seconds": result["seconds"], "elapsed": self._elapsed(), "worker": result.get("worker")}
        metrics = result.get("metrics") or {}
        value, why = _value(metrics) if "metrics" in result else (math.nan, str(result["reason"]))
        if why is None:
            self._tell(self.ledger.tell(row, value, metrics=metrics, **facts))
        else:
            self._tell(self.ledger.fail(row, why, metrics=metrics, **facts))
            if "trace" in result:
                with guarded(str(row.folder)):
                    (row.folder / "error.txt").write_text(str(result["trace"]), encoding="utf-8")
        self._emit("finished" if why is None else "failed", self.ledger.rows[row.number], why or "")
        self._answer_repeats(row.number)

    def _answer_repeats(self, number: int) -> None:
        first = self.ledger.rows[number]
        if first.state == "running":
            return
        waiting = [row for row in self.ledger.rows if row.repeat_of == number and row.state == "running"]
        for row in waiting:
            if first.value is None:
                self._tell(
                    self.ledger.fail(row, f"same as trial {number}: {first.reason}", elapsed=self._elapsed())
                )
            else:
                self._tell(
                    self.ledger.tell(row, first.value, metrics=dict(first.metrics), elapsed=self._elapsed())
                )
            self._emit("repeated", self.ledger.rows[row.number], f"same as trial {number}")

    # workers

    def _watch_workers(self) -> None:
        for slot, row in list(self.busy.items()):
            if self.executor.alive(slot):
                self._notice_waiting(slot, row)
                continue
            self.executor.check(slot)
            if (row.folder / "result.json").exists():
                continue
            number, taken = self.executor.held(slot)
            if number == row.number and taken:
                self._died(slot, row)
            elif slot < self.executor.jobs:
                if number is None:
                    self.executor.hand(slot, row.number, row.folder)
                self.executor.start(slot)
            else:
                self.executor.clear(slot)
                del self.busy[slot]

    def _notice_waiting(self, slot: int, row: TrialRow) -> None:
        since = self.handed.get(slot)
        if since is not None and time.monotonic() - since > WAITING_SECONDS:
            del self.handed[slot]
            if not self.executor.held(slot)[1]:
                self._emit(
                    "waiting", row, f"worker {slot} has not begun yet; its log: {self.executor.log(slot)}"
                )

    def _died(self, slot: int, row: TrialRow) -> None:
        """The worker died with the trial: try once more from its checkpoint, then give it up."""
        self.executor.clear(slot)
        del self.busy[slot]
        if row.attempts >= MAX_ATTEMPTS:
            why = f"its worker died {row.attempts} times without a word: killed, or out of memory"
            self._record(row, {"reason": why, "seconds": None})
            return
        row = self.ledger.attempt(row, row.attempts + 1)
        self._emit("retried", row, "its worker died without a word")

    # the sampler

    def _tell(self, row: TrialRow) -> None:
        if row.candidate is None or self.sampler is None:
            return  # a sampler not built yet hears of it in the replay
        _replay(self.sampler, "fail" if row.value is None else "tell", row)

    def _sampler(self) -> Sampler:
        """Built when first needed: importing it runs beside the baseline's training."""
        if self.sampler is None:
            frozen = self.ledger.frozen
            kind = parts.find("search.samplers", frozen.sampler, Sampler, StudyError)  # type: ignore[type-abstract]
            sampler = kind(frozen.space, frozen.budget, frozen.seed, frozen.workers)
            for event, row in self.ledger.events():
                _replay(sampler, event, row)
            self.sampler = sampler
        return self.sampler


def _replay(sampler: Sampler, event: str, row: TrialRow) -> None:
    assert row.candidate is not None
    if event == "ask":
        sampler.restore(row.candidate)
    elif event == "tell" and row.value is not None:
        sampler.tell(row.candidate, row.value)
    else:
        sampler.fail(row.candidate)


def _trains(row: TrialRow) -> bool:
    """True while the trial has no outcome and does not wait for that of another."""
    return row.state == "running" and row.repeat_of is None


def _value(metrics: Mapping[str, Any]) -> tuple[float, str | None]:
    """(AP, None), or (NaN, why it is none)."""
    value = metrics.get("AP")
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value), None
    return math.nan, f"AP is {value}, not a number" if "AP" in metrics else "the trial returned no AP"


__all__ = ["Event", "Outcome", "Plan", "executor_class", "run", "text_hash"]
