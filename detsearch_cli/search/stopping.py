"""When a search may end early: nothing seen can overtake the best any more, and nothing new is expected to."""

from __future__ import annotations

from collections.abc import Sequence

from detsearch_cli.search.study import Trial
from detsearch_cli.trials import estimated

CHANCE = 0.05
"""That the best would be overtaken, by a candidate seen or by one of the trainings left; their sum, which is more."""
MARGIN = 0.25
"""Standard deviations of the noise that overtaking must amount to, to be worth a training."""
FEWEST = 8
"""Candidates, before anything is said of those to come."""


def unbeatable(trials: Sequence[Trial], new: int) -> Trial | None:
    """The recipe that none is expected to overtake; None where one may.

    new: trainings left for new candidates, which are taken for as good as those seen. The best of n of them is exceeded by
    one more with a probability of 1 / (n + 1), however they are distributed: no bell curve may say less, so a search ends
    early where the baseline is better than all, or nothing makes a difference, or the race is decided.
    """
    known = estimated(trials)
    if known is None or len(known[0]) - 1 < FEWEST:
        return None
    groups, estimates = known
    best = int(estimates.expected.argmax())
    *seen, another = estimates.better_than(best, MARGIN).tolist()
    if best > 0:
        another = max(another, 1 / len(groups))
    return groups[best][0] if sum(seen) + new * another < CHANCE else None
