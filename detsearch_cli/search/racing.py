"""Which candidates are trained again with further seeds: sequential halving among the leaders.

A candidate is scored by one training, so that the highest score of many is mostly luck where seeds differ as much as
candidates do. The last quarter of a search's trials therefore trains the leaders again: each gets a second seed, the better
half a third one, and so on, until two are left, which share the rest (Karnin, Koren and Somekh 2013). All candidates and
the baseline have the same seeds in the same order, so that what a seed does to every recipe cancels. Rounds are played
in parallel, and nothing but the scores recorded so far decides, so that a killed search goes on as it would have.

Why not a bandit that asks after every training: it saves some, but needs the noise, which a search knows badly, and
trains one candidate at a time. A candidate farther below the leader than the noise could explain is not trained again;
where no other is near, the trials go on exploring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detsearch_cli.option import LARGEST_SEED
from detsearch_cli.search.study import Trial

PART = 4
"""One in four trials trains a leader again. benchmarks/noisy_search.py: a third chooses no better and sees fewer candidates,
with a fifth loud searches choose worse."""
FINALISTS = 2
MOST_SEEDS = 32
"""Of a finalist: its mean is then known to a sixth of the noise, and the trials left find more by exploring."""
NEAR = 2 * math.sqrt(2)
"""Standard deviations of one score below the leader: 2 of the difference of two scores."""


def searched(trials: int, noise_seeds: int, races: bool) -> tuple[int, int]:
    """Of a search's trials: how many are for candidates, and how many train the leaders again."""
    again = trials // PART if races else 0
    return max(1, trials - (noise_seeds - 1) - again), again


@dataclass(frozen=True)
class Again:
    """Train the candidate of trial `first` with the study's seed plus `offset`."""

    first: Trial
    offset: int


def seed_of(seed: int, offset: int) -> int:
    """The seed so many after the study's, from 0 again beyond the largest."""
    return (seed + offset) % (LARGEST_SEED + 1)


def offset_of(other: int, seed: int) -> int:
    """How many seeds after the study's it is."""
    return (other - seed) % (LARGEST_SEED + 1)


def next_step(
    trials: Sequence[Trial], total: int, seed: int, sd: float, explored: bool
) -> Again | Literal["explore", "wait"]:
    """What the next training is. Pure: the same trials lead to the same step.

    total: trials of the search. seed: the study's. sd: standard deviation of one recipe's scores over seeds. explored:
    there are no more candidates to propose, whatever trials are left.
    """
    again = total // PART
    if not explored and sum(trial.trained for trial in trials) < total - again:
        return "explore"
    firsts = [t for t in trials if t.candidate is not None and t.repeat_of is None and t.again_of is None]
    if any(trial.state == "running" for trial in firsts):
        return "wait"
    scored = sorted((t for t in firsts if t.state == "complete"), key=lambda t: (-(t.value or 0.0), t.number))
    rivals = [t for t in scored if (t.value or 0.0) >= (scored[0].value or 0.0) - NEAR * sd]
    racing = rivals[: starters_of(again)]
    if len(racing) < 2:
        return "explore"
    rows = {(t.again_of, offset_of(t.seed or 0, seed)): t for t in trials if t.again_of is not None}
    values = {first.number: [first.value or 0.0] for first in racing}
    for offset in range(1, min(MOST_SEEDS, total + 1)):
        for first in racing:
            if (first.number, offset) not in rows:
                return Again(first, offset)
        round_ = {first.number: rows[first.number, offset] for first in racing}
        if any(row.state == "running" for row in round_.values()):
            return "wait"
        racing = [first for first in racing if round_[first.number].state == "complete"]
        for first in racing:
            values[first.number].append(round_[first.number].value or 0.0)
        # a stable sort: of equal means the one that led before
        racing.sort(key=lambda first: -sum(values[first.number]))
        racing = racing[: max(FINALISTS, len(racing) // 2)]
    return "explore"  # every one has failed with a further seed, or has enough of them


def starters_of(trials: int) -> int:
    """The most candidates that so many trainings take down to the finalists."""

    def needed(count: int) -> int:
        return count if count <= FINALISTS else count + needed(max(FINALISTS, count // 2))

    return max((n for n in range(trials + 1) if needed(n) <= trials), default=0)
