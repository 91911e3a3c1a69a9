"""The sampler's past: events that a study keeps, by which a sampler is rebuilt as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from detsearch_cli.search.refusals import Refusal, read_refusals
from detsearch_cli.search.samplers.base import Proposal, Sampler
from detsearch_cli.search.space import Candidate
from detsearch_cli.trials import baseline_scores

if TYPE_CHECKING:
    from detsearch_cli.search.study import Study, Trial


@dataclass(frozen=True)
class Happening:
    """One event of the sampler's past. value: of a `tell` or `again` the mean over so many seeds, of a `noise` the standard
    deviation. reason: of a `refused`.
    """

    kind: Literal["noise", "ask", "tell", "again", "fail", "refused"]
    candidate: Candidate
    epochs: int | None
    value: float = math.nan
    seeds: int = 1
    reason: str = ""


def outcome(trial: Trial, trials: Sequence[Trial]) -> Happening:
    """What the sampler hears at the end of a trial that has an event, given the trials so far.

    Of a candidate: its score, or that it failed; with a further seed the mean. Of the last seed of the baseline: the noise.
    """
    if trial.candidate is None:
        scores = baseline_scores(trials)
        return Happening("noise", {}, None, stdev(scores) if len(scores) > 1 else 0.0)
    if trial.value is None:
        return Happening("fail", trial.candidate, trial.epochs)
    first = trial.again_of if trial.again_of is not None else trial.repeat_of
    scores = [trial.value]
    if first is not None and trial.epochs is None:
        # of the baseline, which a candidate may be equal to, the sampler hears one score
        own = [t for t in trials if first in (t.number, t.again_of) and t.candidate is not None]
        told = [t for t in own if t.value is not None and t.told is not None and t.told <= (trial.told or 0)]
        scores = [t.value or 0.0 for t in told] or scores
    kind: Literal["tell", "again"] = "tell" if trial.again_of is None else "again"
    return Happening(kind, trial.candidate, trial.epochs, fmean(scores), len(scores))


def numbered(trials: Sequence[Trial], refusals: Sequence[Refusal]) -> dict[int, Happening]:
    """The sampler's past by number."""
    past: dict[int, Happening] = {}
    for trial in trials:
        if trial.asked is not None and trial.candidate is not None:
            past[trial.asked] = Happening("ask", trial.candidate, trial.epochs)
        if trial.told is not None:
            past[trial.told] = outcome(trial, trials)
    for refusal in refusals:
        past[refusal.asked] = Happening("ask", refusal.candidate, refusal.epochs)
        past[refusal.told] = Happening("refused", refusal.candidate, refusal.epochs, reason=refusal.reason)
    return past


def replay(sampler: Sampler, happening: Happening) -> None:
    """Let the sampler hear of an event."""
    proposal = Proposal(happening.candidate, happening.epochs)
    if happening.kind == "noise":
        sampler.measured(happening.value)
    elif happening.kind == "ask":
        sampler.restore(proposal)
    elif happening.kind == "tell":
        sampler.tell(proposal, happening.value, happening.seeds)
    elif happening.kind == "again":
        sampler.tell_again(proposal, happening.value, happening.seeds)
    elif happening.kind == "refused":
        sampler.refused(proposal, happening.reason)
    else:
        sampler.fail(proposal)


def sampler_of(study: Study) -> Sampler | None:
    """The sampler as the study's trials have left it, to look at; None for a space that only its method can read."""
    config = study.config
    if config.space is None:
        return None
    sampler = config.sampler.build(config.space, config.budget, config.seed, config.workers)
    for _, happening in sorted(numbered(study.trials, read_refusals(study.folder)).items()):
        replay(sampler, happening)
    return sampler
