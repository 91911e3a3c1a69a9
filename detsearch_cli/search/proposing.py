"""What to train next: asks the sampler, refuses, answers from the ledger what is known, and tells what came back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from detsearch_cli.errors import DetsearchError, StorageError, StudyError
from detsearch_cli.search.ledger import Ledger
from detsearch_cli.search.past import outcome, replay
from detsearch_cli.search.plan import Emit, Plan, Prepared, Refused
from detsearch_cli.search.racing import Again, next_step, seed_of
from detsearch_cli.search.samplers.base import Proposal, Sampler
from detsearch_cli.search.space import Candidate, key
from detsearch_cli.search.stages import answering, blocked, first_number, hang_on, length, value_at
from detsearch_cli.search.study import Trial
from detsearch_cli.search.worker import reason

MAX_KNOWN_IN_A_ROW = 50
MAX_REFUSED_IN_A_ROW = 10_000
REPORT_SECONDS = 1.0


class Proposer:
    """The sampler and everything between it and the ledger.

    elapsed: seconds of search so far. pulse: called in every round, which may be one of ten thousand; raises
    KeyboardInterrupt after Ctrl-C.
    """

    def __init__(
        self, plan: Plan, ledger: Ledger, emit: Emit, elapsed: Callable[[], float], pulse: Callable[[], None]
    ) -> None:
        self.plan, self.ledger = plan, ledger
        self.emit, self.elapsed, self.pulse = emit, elapsed, pulse
        self._sampler: Sampler | None = None
        self._stages: dict[str, list[int]] = {}  # recipe's hash -> trials that train it
        self._tried: set[str] = set()  # keys of candidates asked for at the whole length, or refused
        for trial in ledger.trials:
            self._note(trial)
        refusals = ledger.refusals.entries
        self._refused = {key(refusal.candidate): refusal.reason for refusal in refusals}
        self._tried.update(self._refused)
        self._reasons = Counter(refusal.reason for refusal in refusals)
        last_row = max((t.asked for t in ledger.trials if t.asked is not None), default=-1)
        self._in_a_row = [r.reason for r in refusals if r.asked > last_row]  # refused since the last row
        self._reported, self._reported_at = len(refusals), float("-inf")

    def _note(self, trial: Trial) -> None:
        if trial.repeat_of is None:
            self._stages.setdefault(trial.recipe_hash, []).append(trial.number)
        # at fewer epochs a candidate is not done with: the sampler may continue it
        if trial.candidate is not None and length(trial.epochs, self.plan.epochs) == self.plan.epochs:
            self._tried.add(key(trial.candidate))

    def next(self, jobs: int, busy: bool) -> Trial | str | None:
        """A new trial to train; or why there will be none; or None to wait for one under way (`busy`).

        A refusal or a repeat leads to the next proposal at once, without a look at what else has come back:
        so results are heard at the same places among the proposals, however long preparing took.
        """
        seeds = sum(trial.baseline for trial in self.ledger.trials)
        if seeds == 0:
            return self._baseline(0)
        if seeds < self.ledger.config.noise_seeds:
            return self._spent() or self._baseline(seeds)
        while True:
            self.pulse()
            why_not = self._spent()
            if why_not is not None:
                return why_not
            why_not = self._exhausted()
            step = self._step(why_not is not None)
            if step == "wait":
                return None
            settled = self._settled(isinstance(step, Again))
            if settled is not None:
                return settled
            if isinstance(step, Again):
                return self._again(step)
            if why_not is not None:
                return why_not
            if self._waiting() >= jobs:
                return None  # it keeps proposing what is being trained: let it hear of that first
            proposal = self.sampler().ask()
            if proposal is None:
                stuck = f"the {self._name} sampler has nothing more to propose"
                return None if busy else stuck + self._of_them_refused()
            trial = self._propose(proposal)
            if trial is not None:
                return trial

    def _baseline(self, number: int) -> Trial:
        """The baseline with its seed of this number; the first one's is that of every candidate."""
        prepared = self.plan.prepare(None)
        if isinstance(prepared, Refused):
            raise StudyError(f"the recipe itself cannot be trained: {prepared.reason}; change the recipe")
        if number == 0:
            return self._add(None, prepared)
        assert self.plan.with_seed is not None  # whoever plans several seeds gives it
        seed = seed_of(self.ledger.config.seed, number)
        return self._add(None, self.plan.with_seed(prepared, seed), seed=seed, again_of=0)

    def _step(self, explored: bool) -> Again | str:
        """A leader to train again; or to wait, or to explore."""
        config = self.ledger.config
        if not config.races:
            return "explore"
        from detsearch_cli.search.noise import noise_of  # scipy, which starting a search need not wait for

        noise = noise_of(self.ledger.trials)
        if noise is None:
            return "explore"
        return next_step(self.ledger.trials, self.plan.trials, config.seed, noise.sd, explored)

    def _again(self, step: Again) -> Trial:
        prepared = self._prepare(step.first.candidate)
        assert isinstance(prepared, Prepared) and self.plan.with_seed is not None  # it was trained before
        seed = seed_of(self.ledger.config.seed, step.offset)
        return self._add(
            step.first.candidate, self.plan.with_seed(prepared, seed), seed=seed, again_of=step.first.number
        )

    # why there will be no more

    def _spent(self) -> str | None:
        budget = self.plan.time_budget
        if budget is not None and self.elapsed() >= budget:
            return f"the time budget of {budget:g} s is spent{self._of_them_refused()}"
        if sum(trial.trained for trial in self.ledger.trials) >= self.plan.trials:
            return f"all {self.plan.trials} trials are done"
        return None

    def _settled(self, racing: bool) -> str | None:
        if not self.plan.stops:
            return None
        from detsearch_cli.search.stopping import CHANCE, unbeatable

        left = self.plan.trials - sum(trial.trained for trial in self.ledger.trials)
        best = unbeatable(self.ledger.trials, 0 if racing else left)
        if best is None:
            return None
        which = "the baseline" if best.baseline else f"trial {best.number}"
        return (
            f"the search ended early and saved {left} of {self.plan.trials} trainings: that another candidate, seen or "
            f"new, would still overtake {which} has a probability under {CHANCE:.0%}"
        )

    def _exhausted(self) -> str | None:
        size = self.plan.config.space.size
        if size is not None and len(self._tried) >= size:
            if len(self._refused) >= size:
                return f"every candidate of the space was refused ({size}), most often: {self._commonest()}"
            return f"every candidate of the space has been tried ({size}){self._of_them_refused()}"
        if self.sampler().exhausted:
            count = sum(trial.trained for trial in self.ledger.trials)
            return (
                f"the {self._name} sampler has proposed all its candidates ({count}){self._of_them_refused()}"
            )
        if len(self._in_a_row) >= MAX_REFUSED_IN_A_ROW:
            common = Counter(self._in_a_row).most_common(1)[0][0]
            return f"the last {len(self._in_a_row)} proposals were refused, most often: {common}"
        last = [trial.repeat_of is not None for trial in self.ledger.trials[-MAX_KNOWN_IN_A_ROW:]]
        if len(last) == MAX_KNOWN_IN_A_ROW and all(last):
            return f"the last {MAX_KNOWN_IN_A_ROW} proposals were all known already"
        return None

    def _of_them_refused(self) -> str:
        total = self._reasons.total()
        return f"; {total} proposals were refused, most often: {self._commonest()}" if total else ""

    def _commonest(self) -> str:
        return self._reasons.most_common(1)[0][0]

    def _waiting(self) -> int:
        """Trials without an outcome that no worker can be given: they wait for that of another one."""
        trials = self.ledger.trials
        return sum(t.state == "running" and (t.repeat_of is not None or blocked(t, trials)) for t in trials)

    # a proposal

    def _propose(self, proposal: Proposal) -> Trial | None:
        """Record the proposal; None when it is refused, answered by the ledger, or has to wait."""
        candidate, epochs = proposal.candidate, proposal.epochs
        self.plan.config.space.check(candidate)
        known_reason = self._refused.get(name := key(candidate))
        prepared = Refused(known_reason) if known_reason is not None else self._prepare(candidate)
        if isinstance(prepared, Refused):
            self._refuse(proposal, name, prepared.reason)
            return None
        self._in_a_row.clear()
        stages = [self.ledger.trials[n] for n in self._stages.get(prepared.recipe_hash, [])]
        answer = answering(stages, epochs, self.plan.epochs)
        if answer is not None:
            self._add(candidate, prepared, epochs, repeat_of=answer.number, continues=answer.continues)
            if answer.state != "running":
                self.answer(answer)
            return None
        continues = first_number(stages[0]) if stages else None
        trial = self._add(candidate, prepared, epochs, continues=continues)
        return None if blocked(trial, self.ledger.trials) else trial

    def _prepare(self, candidate: Candidate | None) -> Prepared | Refused:
        try:
            return self.plan.prepare(candidate)
        except StorageError:
            raise  # the disk's fault, not the candidate's
        except DetsearchError as error:
            return Refused(str(error))
        except Exception as error:  # a candidate without a valid recipe is not the search's end
            return Refused(f"no recipe: {reason(error)}")

    def _add(
        self,
        candidate: Candidate | None,
        prepared: Prepared,
        epochs: int | None = None,
        repeat_of: int | None = None,
        continues: int | None = None,
        again_of: int | None = None,
        seed: int | None = None,
    ) -> Trial:
        trial = self.ledger.add(
            candidate,
            prepared.recipe_yaml,
            prepared.recipe_hash,
            prepared.fragment,
            epochs=epochs,
            repeat_of=repeat_of,
            continues=continues,
            again_of=again_of,
            seed=seed,
        )
        self._note(trial)
        return trial

    def _refuse(self, proposal: Proposal, name: str, why: str) -> None:
        self.ledger.refuse(proposal.candidate, proposal.epochs, why)
        self.sampler().refused(proposal, why)
        self._refused[name] = why
        self._tried.add(name)
        self._reasons[why] += 1
        self._in_a_row.append(why)
        if time.monotonic() - self._reported_at >= REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Emit how many proposals were refused, where there are more than at the last report."""
        total = self._reasons.total()
        if total > self._reported:
            self._reported, self._reported_at = total, time.monotonic()
            self.emit("refused", None, f"{total} refused so far, most often: {self._commonest()}")

    # what came back

    def answer(self, ended: Trial) -> None:
        """Give the trials that hang on `ended` its outcome: repeats, and continuations of what failed."""
        for trial in [t for t in self.ledger.trials if hang_on(t, ended)]:
            if self.ledger.trials[trial.number].state != "running":
                continue  # answered by a continuation before it in this list
            answered = self._answered(trial, ended)
            self.tell(answered)
            if answered.repeat_of is None:
                self.emit("failed", answered, answered.reason or "")
                self.answer(answered)  # repeats may hang on a continuation, too
            else:
                self.emit("repeated", answered, f"same as trial {ended.number}")

    def _answered(self, trial: Trial, ended: Trial) -> Trial:
        value = ended.value if trial.epochs is None else value_at(ended, trial.epochs)
        if value is None:
            why = f"same as trial {ended.number}: {ended.reason}"
            return self.ledger.fail(trial, why, elapsed=self.elapsed())
        whole = length(trial.epochs, self.plan.epochs) == self.plan.epochs
        end = self.ledger.complete if whole else self.ledger.stop
        # a score on the way has no metrics of its own
        metrics = dict(ended.metrics) if value == ended.value else {}
        return end(trial, value, metrics=metrics, elapsed=self.elapsed())

    def answer_all(self) -> None:
        """After a restart: answer what a kill left unanswered."""
        if self._waiting():
            for trial in [t for t in self.ledger.trials if t.state in ("complete", "stopped", "failed")]:
                self.answer(trial)

    def tell(self, trial: Trial) -> None:
        """The sampler hears of a trial's outcome; one not built yet hears of it in the replay."""
        if trial.told is not None and self._sampler is not None:
            replay(self._sampler, outcome(trial, self.ledger.trials))

    # the sampler

    @property
    def _name(self) -> str:
        return self.ledger.config.sampler.name

    def sampler(self) -> Sampler:
        """Built when first needed: importing it runs beside the baseline's training."""
        if self._sampler is None:
            config = self.ledger.config
            sampler = config.sampler.build(config.space, config.budget, config.seed, config.workers)
            for happening in self.ledger.events():
                replay(sampler, happening)
            self._sampler = sampler
        return self._sampler
