"""What the scores of one recipe trained with several seeds say: how much of a difference is luck.

Scores of one recipe are taken for normal over seeds, which a handful cannot refute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import optimize, stats

from detsearch_cli.search.study import Trial
from detsearch_cli.trials import baseline_of, baseline_scores, best_of, by_candidate, points
from detsearch_cli.trials import candidates as candidates_of

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
    # equal scores have no deviation; the sum of their squares would leave 1e-17
    sd = float(np.std(scores, ddof=1)) if len(set(scores)) > 1 else 0.0
    low, high = (sd * math.sqrt(free / float(stats.chi2.ppf(part, free))) for part in (0.975, 0.025))
    return Noise(tuple(scores), sd, low, high)


def noise_of(trials: Sequence[Trial]) -> Noise | None:
    """How much the baseline's scores differ by seed alone; None where it has fewer than two."""
    return measured(baseline_scores(trials))


def lead_of(trials: Sequence[Trial]) -> tuple[float, int] | None:
    """By how much the best candidate lies above the baseline, means over seeds, and among how many; None without either."""
    baseline, best = baseline_of(trials), best_of([trial for trial in trials if not trial.baseline])
    if baseline is None or best is None:
        return None
    return (best.value or 0.0) - (baseline.value or 0.0), len(candidates_of(trials))


def fresh_leads(trials: Sequence[Trial]) -> list[float]:
    """The best candidate's lead with each seed by which it was not chosen: nothing in it is the luck of the first score.

    Where the baseline has the same seed the two are a pair, else the baseline's mean stands in. [] without such seeds.
    """
    baseline, best = baseline_of(trials), best_of([trial for trial in trials if not trial.baseline])
    if baseline is None or best is None:
        return []
    groups = {group[0].number: group for group in by_candidate(trials)}
    pairs = {row.seed: row.value or 0.0 for row in groups[baseline.number]}
    return [
        (row.value or 0.0) - pairs.get(row.seed, baseline.value or 0.0) for row in groups[best.number][1:]
    ]


def luck(candidates: int, sd: float) -> float:
    """By how much the best of so many candidates of one value scores above that value, on average."""
    density = candidates * stats.norm.pdf(_GRID) * stats.norm.cdf(_GRID) ** (candidates - 1)
    return sd * float(np.trapezoid(_GRID * density, _GRID))


def most_luck(candidates: int, noise: Noise) -> float:
    """The lead over the baseline's mean that luck alone exceeds in one search of twenty.

    Counts that the mean and the standard deviation are known from the baseline's few seeds only: the studentized maximum of
    so many candidates of the baseline's value, as t is for one.
    """
    seeds = len(noise.scores)
    free = seeds - 1
    parts = (np.arange(200) + 0.5) / 200
    known_sd = np.sqrt(stats.chi2.ppf(parts, free) / free)  # the estimate over the truth, as likely each
    mean = stats.norm.ppf(parts) / math.sqrt(seeds)

    def within(limit: float) -> float:
        below = stats.norm.cdf(limit * known_sd[:, None] + mean[None]) ** candidates
        return float(below.mean()) - 0.95

    return noise.sd * _root(within)


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
    scores = ", ".join(points(x) for x in noise.scores)
    told = f"the recipe as given scores AP {scores} over {len(noise.scores)} seeds"
    if noise.sd == 0:
        return f"{told}: equal scores say nothing of the noise; train longer"
    told += f", standard deviation {points(noise.sd)} (95%: {points(noise.low)} to {points(noise.high)})"
    if candidates < 2:
        return told
    return (
        f"{told}. By luck alone the best of {candidates} equal candidates seems {points(luck(candidates, noise.sd))} AP "
        f"better; one that is less than {points(findable(candidates, noise.sd))} better than the others is missed in one "
        "search of five. Where that is more than you hope to gain, train longer or hold out more images first"
    )


def lead_in_words(lead: float, candidates: int, noise: Noise) -> str:
    """Whether the best candidate's lead over the baseline's mean is more than luck gives. Values are fractions."""
    best = "the only candidate" if candidates == 1 else f"the best of {candidates} candidates"
    if lead <= 0:
        return f"{best} stays {points(-lead)} AP below the baseline"
    told = f"{best} leads by {points(lead)} AP"
    if noise.sd == 0:
        return f"{told}; how much of it is luck the baseline's equal scores do not tell"
    limit = most_luck(candidates, noise)
    judged = "more than" if lead > limit else "no more than"
    return f"{told}: {judged} luck alone may give (up to {points(limit)} in 19 searches of 20)"


def fresh_in_words(leads: Sequence[float]) -> str:
    """The lead with seeds that had no part in the choice. Values are fractions."""
    mean = points(fmean(leads), signed=True)
    if len(leads) == 1:
        return f"with the seed that did not choose it, its lead is {mean} AP"
    each = ", ".join(points(lead, signed=True) for lead in leads)
    return f"with the {len(leads)} seeds that did not choose it, its lead is {mean} AP on average ({each})"


def proof_in_words(seeds: int, lead: float, noise: Noise) -> str | None:
    """What a comparison over so many seeds can show, and how many would show the lead; None where nothing is known.

    Values are fractions.
    """
    if noise.sd == 0:
        return None
    judging = f"judging by the noise of the search (standard deviation {points(noise.sd)})"
    if seeds < 2:
        told = "one seed a side shows no difference beyond the choice of images"
    else:
        least = points(provable(seeds, noise.sd))
        told = f"{seeds} seeds a side show a difference from {least} AP on, in four cases of five, {judging}"
    enough = seeds_to_prove(lead, noise.sd)
    if lead <= 0 or (enough is not None and enough <= seeds):
        return told
    wanted = f"--seeds {enough}" if enough is not None else f"more than {MOST_SEEDS} seeds"
    return f"{told}; {wanted} would show the lead of {points(lead)} that the search saw, were it true"


def _root(rising: Callable[[float], float]) -> float:
    """Where the function of a shift in standard deviations crosses 0."""
    return float(optimize.brentq(rising, 0.0, 1000.0, xtol=1e-6))
