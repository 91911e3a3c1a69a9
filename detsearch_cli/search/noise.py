"""What the scores of one recipe trained with several seeds say: how much of a difference is luck.

Scores of one recipe are taken for normal over seeds, which a handful cannot refute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from detsearch_cli.search import settling
from detsearch_cli.search.racing import FINALISTS, starters_of
from detsearch_cli.search.settling import Course
from detsearch_cli.search.study import Trial
from detsearch_cli.trials import baseline_scores, percent, points

POWER = 0.8
"""Of a test that is worth running: it finds what is there in four cases of five."""
MOST_SEEDS = 1000
_GRID = np.linspace(-8, 8, 4001)  # standard deviations
_SIMULATED = 1000  # searches


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


def luck(candidates: int, sd: float) -> float:
    """By how much the best of so many candidates of one value scores above that value, on average."""
    density = candidates * stats.norm.pdf(_GRID) * stats.norm.cdf(_GRID) ** (candidates - 1)
    return sd * float(np.trapezoid(_GRID * density, _GRID))


def findable(candidates: int, again: int, sd: float) -> float:
    """How much better than all the others one candidate must be to come out first in four searches of five.

    again: trials that train the leaders again, as search/racing.py does. Simulated, with the same draws each time.
    """
    if candidates < 2 or sd == 0:
        return 0.0
    count, again = min(candidates, 1000), min(again, 300)  # for larger searches it is nearly the same
    starters = max(1, min(starters_of(again), count))
    others = np.sort(np.random.default_rng(0).normal(0, 1, (_SIMULATED, count - 1)), axis=1)[:, ::-1]

    def first(gain: float) -> float:
        rng = np.random.default_rng(1)
        shift = np.array([gain] + [0.0] * (starters - 1))
        own = rng.normal(gain, 1, _SIMULATED)
        started = own > others[:, starters - 1] if starters < count else np.ones(_SIMULATED, bool)
        sums = np.concatenate([own[:, None], others[:, : starters - 1]], 1)
        left, size = again, starters
        for _ in range(12 if starters > 1 else 0):  # further seeds of two finalists change nothing
            if left < size:
                break
            sums += rng.normal(shift, 1, sums.shape)  # of those that are out the sum stays at minus infinity
            left, size = left - size, max(min(FINALISTS, size), size // 2)
            out = (-sums).argsort(1)[:, size:]
            np.put_along_axis(sums, out, -np.inf, 1)
        return float((started & (sums.argmax(1) == 0)).mean()) - POWER

    return sd * _root(first)


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


def in_words(noise: Noise, candidates: int, again: int, course: Course | None, images: float | None) -> str:
    """What a person should know before candidates are compared. Values are fractions.

    candidates, again: see `racing.searched`. images: the part of the variance that the choice of held-out images explains.
    """
    scores = ", ".join(points(x) for x in noise.scores)
    told = [f"the recipe as given scores AP {scores} over {len(noise.scores)} seeds"]
    short = None if course is None else settling.in_words(course)
    if noise.sd == 0:
        told[0] += ": equal scores say nothing of the noise; train longer"
        return ". ".join(told + ([_sentence(short)] if short else []))
    told[0] += f", standard deviation {points(noise.sd)} (95%: {points(noise.low)} to {points(noise.high)})"
    if candidates > 1:
        told.append(
            f"By luck alone the best of {candidates} equal candidates seems {points(luck(candidates, noise.sd))} AP "
            f"better; this search finds one that is {points(findable(candidates, again, noise.sd))} better than the "
            "others, in four cases of five"
        )
    if images is not None:
        told.append(
            "The choice of the held-out images alone explains noise as large as that"
            if images >= 1
            else f"The choice of the held-out images explains {percent(images)} of that noise, the seeds the rest"
        )
    told.append(f"Where that is too coarse: {lever(course, images, short)}")
    return ". ".join(told)


def lever(course: Course | None, images: float | None, short: str | None) -> str:
    """Which of more epochs, more held-out images and more trainings makes the noise smaller, from what was seen."""
    if short is not None:
        return short
    if images is not None and images > 0.5:
        return "hold out more images (--val-fraction), since most of the noise is theirs"
    settled = "the trainings are long enough, so " if course is not None else ""
    return f"{settled}give more --trials, which train the leaders with more seeds"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def proof_in_words(seeds: int, gain: float, noise: Noise) -> str | None:
    """What a comparison over so many seeds can show, and how many would show the gain; None where nothing is known.

    gain: what the search expects. Values are fractions.
    """
    if noise.sd == 0:
        return None
    judging = f"judging by the noise of the search (standard deviation {points(noise.sd)})"
    if seeds < 2:
        told = "one seed a side shows no difference beyond the choice of images"
    else:
        least = points(provable(seeds, noise.sd))
        told = f"{seeds} seeds a side show a difference from {least} AP on, in four cases of five, {judging}"
    enough = seeds_to_prove(gain, noise.sd)
    if gain <= 0 or (enough is not None and enough <= seeds):
        return told
    wanted = f"--seeds {enough}" if enough is not None else f"more than {MOST_SEEDS} seeds"
    return f"{told}; {wanted} would show the gain of {points(gain)} that the search expects"


def _root(rising: Callable[[float], float]) -> float:
    """Where the function of a shift in standard deviations crosses 0."""
    return float(optimize.brentq(rising, 0.0, 1000.0, xtol=1e-6))
