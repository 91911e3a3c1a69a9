"""What the scores of one recipe trained with several seeds say: how much of a difference is luck.

Scores of one recipe are taken for normal over seeds, which a handful cannot refute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

POWER = 0.8
"""Of a test that is worth running: it finds what is there in four cases of five."""
MOST_SEEDS = 1000
_GRID = np.linspace(-8, 8, 4001)  # standard deviations


@dataclass(frozen=True)
class Noise:
    """Scores of one recipe, one a seed, at least two. sd: their standard deviation; low, high: its 95% interval."""

    scores: tuple[float, ...]
    sd: float
    low: float
    high: float


def measured(scores: Sequence[float]) -> Noise | None:
    """The noise in the scores of one recipe; None for fewer than two."""
    if len(scores) < 2:
        return None
    free = len(scores) - 1
    sd = float(np.std(scores, ddof=1))
    low, high = (sd * math.sqrt(free / float(stats.chi2.ppf(part, free))) for part in (0.975, 0.025))
    return Noise(tuple(scores), sd, low, high)


def luck(candidates: int, sd: float) -> float:
    """By how much the best of so many candidates of one value scores above that value, on average."""
    density = candidates * stats.norm.pdf(_GRID) * stats.norm.cdf(_GRID) ** (candidates - 1)
    return sd * float(np.trapezoid(_GRID * density, _GRID))


def findable(candidates: int, sd: float) -> float:
    """How much better than all the others one candidate must be to score highest in four searches of five."""
    if candidates < 2 or sd == 0:
        return 0.0
    density, others = stats.norm.pdf(_GRID), stats.norm.cdf

    def highest(gain: float) -> float:
        return float(np.trapezoid(density * others(_GRID + gain) ** (candidates - 1), _GRID))

    return sd * _root(lambda gain: highest(gain) - POWER)


def provable(seeds: int, sd: float) -> float:
    """The smallest difference that a test over so many seeds finds in four cases of five.

    The test is `engine.compare.seed_interval`: a paired t interval of 95%. The two recipes' scores are taken for
    independent; what a seed does to both alike makes the test sharper than this. Infinite for one seed.
    """
    if seeds < 2:
        return math.inf
    if sd == 0:
        return 0.0
    free, limit = seeds - 1, float(stats.t.ppf(0.975, seeds - 1))

    def power(shift: float) -> float:
        return float(stats.nct.sf(limit, free, shift)) - POWER

    return sd * math.sqrt(2 / seeds) * _root(power)


def seeds_to_prove(difference: float, sd: float) -> int | None:
    """The fewest seeds with which such a difference is provable; None where a thousand do not suffice."""
    if difference <= 0 or provable(MOST_SEEDS, sd) > difference:
        return None
    low, high = 1, MOST_SEEDS  # too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if provable(middle, sd) <= difference else (middle, high)
    return high


def in_words(noise: Noise, candidates: int) -> str:
    """What a person should know before candidates are compared by one training each. Values are fractions."""
    scores = ", ".join(f"{100 * x:.1f}" for x in noise.scores)
    told = (
        f"the recipe as given scores AP {scores} over {len(noise.scores)} seeds, standard deviation "
        f"{100 * noise.sd:.1f} (95%: {100 * noise.low:.1f} to {100 * noise.high:.1f})"
    )
    if candidates < 2:
        return told
    return (
        f"{told}. By luck alone the best of {candidates} equal candidates seems {100 * luck(candidates, noise.sd):.1f} AP "
        f"better; one that is less than {100 * findable(candidates, noise.sd):.1f} better than the others may not be found"
    )


def lead_in_words(lead: float, candidates: int, noise: Noise) -> str:
    """Whether the best candidate's lead over the baseline's mean is more than luck gives. Values are fractions."""
    by_luck = luck(candidates, noise.sd)
    judged = "more than luck alone gives" if lead > by_luck else "no more than luck alone gives"
    best = "the only candidate" if candidates == 1 else f"the best of {candidates} candidates"
    return f"{best} leads by {100 * lead:.1f} AP: {judged} on average ({100 * by_luck:.1f})"


def fresh_in_words(leads: Sequence[float]) -> str:
    """The lead with seeds that had no part in the choice. Values are fractions."""
    mean = 100 * sum(leads) / len(leads)
    if len(leads) == 1:
        return f"with the seed that did not choose it, it leads by {mean:+.1f} AP"
    each = ", ".join(f"{100 * lead:+.1f}" for lead in leads)
    return (
        f"with the {len(leads)} seeds that did not choose it, it leads by {mean:+.1f} AP on average ({each})"
    )


def proof_in_words(seeds: int, lead: float, noise: Noise) -> str:
    """What a comparison over so many seeds can show, and how many would show the lead. Values are fractions."""
    if seeds < 2:
        shown = "one seed a side shows no difference beyond the choice of images"
    else:
        shown = f"{seeds} seeds a side show a difference from {100 * provable(seeds, noise.sd):.1f} AP on"
    told = f"{shown}, in four cases of five, judging by the noise of the search (standard deviation {100 * noise.sd:.1f})"
    enough = seeds_to_prove(lead, noise.sd)
    if lead <= 0 or (enough is not None and enough <= seeds):
        return told
    wanted = f"--seeds {enough}" if enough is not None else "no number of seeds"
    return f"{told}; {wanted} would show the lead of {100 * lead:.1f} that the search saw, were it true"


def _root(rising: Callable[[float], float]) -> float:
    """Where the function of a shift in standard deviations crosses 0."""
    return float(optimize.brentq(rising, 0.0, 60.0, xtol=1e-6))
