"""What scores say of the recipes' true values: a normal model with shrinkage, so that luck is not taken for quality.

The score of recipe i with seed k is y[i, k] = v[i] + s[k] + e[i, k]. Its true value v[i] is its mean over all seeds; s[k] is
what a seed does to every recipe (the same order of images, the same first weights), so that differences of recipes trained
with the same seeds are sharper than their scores; e is the rest. s and e are normal, and so are the candidates' values
around their common mean. This is the one-way random effects model of empirical Bayes (Efron and Morris 1975) with blocks:
a candidate of few seeds is drawn towards the mean of all, the more the louder the noise, and the highest of many scores
is not taken for the highest value (winner's curse).

The baseline is what a user came with, not one of the drawn candidates, so its value has a flat prior of its own. The
candidates' mean is normal around it, as uncertain as one score of one candidate. With probability one half, beforehand,
nothing that is searched makes a difference at all (spike and slab): else the best of many equal candidates would seem
better than the baseline in every second search.

The three standard deviations are unknown, and a few scores say little of them: the posterior is a mixture over a grid of
them, which makes intervals as wide as they must be.

Candidates far below the rest (a training that learned nothing) say nothing of how far apart the good ones are, and would
make that seem so large that nothing is shrunken. What is learned from all is therefore learned from those that are at most
three times as far below their median as the best is above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import ndtr

LEAST_NOISE = 1e-4
"""Of a score, as a fraction: a hundredth of a point of AP matters to nobody, and the model divides by it."""
EQUAL = 0.01
"""Gains of less than so many standard deviations of the noise are none."""
FAR = 3.0
"""Times as far below the candidates' median as the best is above it: such a training has learned nothing."""
_NOISE = np.exp(np.linspace(-1.2, 2.4, 13))  # times the scores' own estimate, which is of a few only
_SPREAD = np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.45, 0.65, 0.9, 1.25, 1.7, 2.4])  # times that of the means
_SHARED = np.array([0.0, 0.3, 0.6, 0.9])  # part of the noise's variance that a seed gives to all recipes
_NOTHING = 0.5  # probability, beforehand, that no candidate differs from the baseline
_TINY = 1e-4  # standard deviation, in noises, of what is certain


@dataclass(frozen=True)
class Gain:
    """What is expected of one recipe's true value minus another's; fractions.

    low, high: the central 95% interval. better: probability that it is above 0.
    """

    expected: float
    low: float
    high: float
    better: float


@dataclass(frozen=True)
class Estimates:
    """Of n recipes, number 0 the baseline, and as number n a candidate that is not drawn yet.

    At each of g points of the grid the values are normal, linear in what the recipes share: value = constant (g, n + 1)
    + linear (g, n + 1, d) @ mean (g, d), and uncertain by own (g, n + 1), variances, and by the inverse of chol @ chol.T
    (g, d, d). weights (g,): of the mixture. unit: a fraction; the arrays are in units of it.
    """

    unit: float
    weights: np.ndarray
    constant: np.ndarray
    linear: np.ndarray
    own: np.ndarray
    mean: np.ndarray
    chol: np.ndarray

    @cached_property
    def expected(self) -> np.ndarray:
        """(n,) expected gain over the baseline; 0 for the baseline itself. A fraction."""
        mean, _ = self._over_baseline
        return np.asarray(self.unit * (self.weights @ mean))[:-1]

    @cached_property
    def _over_baseline(self) -> tuple[np.ndarray, np.ndarray]:
        return self._gains(0)

    @property
    def leader(self) -> int:
        """The candidate of highest expected value. There must be one."""
        return 1 + int(self.expected[1:].argmax())

    def gain(self, recipe: int) -> Gain:
        """Of a candidate over the baseline."""
        mean, sd = (part[:, recipe] for part in self._over_baseline)
        low, high = (self._quantile(mean, sd, part) for part in (0.025, 0.975))
        better = float(self.weights @ ndtr((mean - EQUAL) / sd))
        return Gain(float(self.expected[recipe]), self.unit * low, self.unit * high, better)

    def better_than(self, recipe: int, margin: float) -> np.ndarray:
        """(n + 1,) probability that each other value is so much above this recipe's; 0 for itself.

        margin: in standard deviations of the noise.
        """
        mean, sd = self._gains(recipe)
        chances = np.asarray(self.weights @ ndtr((mean - margin) / sd))
        chances[recipe] = 0.0
        return chances

    def _gains(self, reference: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (g, n + 1) of every value minus the reference's, in units."""
        linear = self.linear - self.linear[:, [reference]]
        constant = self.constant - self.constant[:, [reference]]
        shared = np.linalg.solve(self.chol, linear.transpose(0, 2, 1))
        own = self.own + self.own[:, [reference]]
        mean = constant + np.einsum("gnd,gd->gn", linear, self.mean)
        mean[:, reference] = 0.0
        sd = np.sqrt(own + (shared**2).sum(1))
        return mean, np.maximum(sd, _TINY)

    def _quantile(self, mean: np.ndarray, sd: np.ndarray, part: float) -> float:
        low, high = float((mean - 9 * sd).min()), float((mean + 9 * sd).max())
        for _ in range(50):
            middle = (low + high) / 2
            below = float(self.weights @ ndtr((middle - mean) / sd)) < part
            low, high = (middle, high) if below else (low, middle)
        return (low + high) / 2


def estimate(scores: Sequence[Mapping[int, float]]) -> Estimates:
    """scores: of each recipe, the baseline first, its scores by seed; at least one each, and two of some recipe.

    The noise is what recipes of several seeds show. Raises ValueError where no recipe has two seeds.
    """
    return _estimate(tuple(tuple(sorted(own.items())) for own in scores))


@lru_cache(maxsize=8)  # a search asks several times between two scores
def _estimate(scores: tuple[tuple[tuple[int, float], ...], ...]) -> Estimates:
    if not any(len(own) > 1 for own in scores):
        raise ValueError("no recipe was trained with two seeds, so nothing tells the noise")
    seeds = {seed: column for column, seed in enumerate(sorted({k for own in scores for k, _ in own}))}
    table = np.full((len(scores), len(seeds)), np.nan)
    for row, own in enumerate(scores):
        for seed, score in own:
            table[row, seeds[seed]] = score
    unit = max(_pooled(table), LEAST_NOISE)
    # relative to one score, and in units: squares of large numbers would lose the digits that tell recipes apart
    table = (table - table[0][~np.isnan(table[0])][0]) / unit
    means = np.nanmean(table, axis=1)
    told = _telling(means)
    # from each other and from the baseline: one candidate, or several equal ones, may lie far above it
    own = means[1:][told[1:]]
    apart = max(float(own.std()), abs(float(own.mean() - means[0])), 0.25)
    slab = np.stack(np.meshgrid(_NOISE, apart * _SPREAD, _SHARED, indexing="ij"), -1).reshape(-1, 3)
    spike = np.stack(np.meshgrid(_NOISE, [0.0], _SHARED, indexing="ij"), -1).reshape(-1, 3)
    noise, spread, shared = np.concatenate([slab, spike]).T
    wide = np.where(spread > 0, np.hypot(noise, spread), _TINY)
    model = _Model(noise * np.sqrt(1 - shared), noise * np.sqrt(shared), spread, wide)
    evidence, mean, chol = model.posterior(table, told)
    # of the spread half-Cauchy in units of the noise, of the noise uniform in its logarithm
    ratio = slab[:, 1] / slab[:, 0]
    within = np.concatenate([ratio / (1 + ratio**2), np.ones(len(spike))])
    parts = np.where(spread > 0, (1 - _NOTHING) / within[: len(slab)].sum(), _NOTHING / len(spike))
    log = evidence + np.log(within * parts)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    # a ten-thousandth of the posterior may be left out: most points of the grid have no part in it
    order = np.argsort(-weights)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(weights[order]), 0.9999))]
    constant, linear, own_variance = model.at(kept).values(table)
    return Estimates(
        unit=unit,
        weights=weights[kept] / weights[kept].sum(),
        constant=constant,
        linear=linear,
        own=own_variance,
        mean=mean[kept],
        chol=chol[kept],
    )


def _pooled(table: np.ndarray) -> float:
    """Standard deviation within recipes."""
    several = table[(~np.isnan(table)).sum(1) > 1]
    squares = float(np.nansum((several - np.nanmean(several, axis=1, keepdims=True)) ** 2))
    return math.sqrt(squares / ((~np.isnan(several)).sum(1) - 1).sum())


def _telling(means: np.ndarray) -> np.ndarray:
    """(n,) which recipes tell what all share: the baseline, and candidates that are not far below the rest."""
    candidates = means[1:]
    if len(candidates) < 3:
        return np.ones(len(means), bool)
    middle = np.median(candidates)
    return np.concatenate([[True], candidates >= middle - FAR * (candidates.max() - middle)])


@dataclass(frozen=True)
class _Model:
    """The model at g points of a grid. What recipes share are d numbers: the candidates' mean, the baseline's value, and
    the effect of each seed in units of `common`.

    noise, common, spread, wide (g,): standard deviations of e, of s, of the candidates' values, and of their mean around
    the baseline's value.
    """

    noise: np.ndarray
    common: np.ndarray
    spread: np.ndarray
    wide: np.ndarray

    def at(self, points: np.ndarray) -> _Model:
        """The model at some of its points."""
        return _Model(self.noise[points], self.common[points], self.spread[points], self.wide[points])

    def posterior(self, table: np.ndarray, told: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log evidence (g,), mean (g, d) and Cholesky factor of the precision (g, d, d) of what recipes share.

        table (n, seeds): scores, NaN where there is none; told (n,): the recipes that count.
        """
        g, d = len(self.noise), 2 + table.shape[1]
        precision, right = np.zeros((g, d, d)), np.zeros((g, d))
        precision[:, range(2, d), range(2, d)] = (
            1.0  # before any score: seeds' effects are of standard deviation 1
        )
        precision[:, [0, 1], [0, 1]] = (1 / self.wide**2)[:, None]
        precision[:, [0, 1], [1, 0]] = (-1 / self.wide**2)[:, None]
        quadratic, logdet = np.zeros(g), 2 * np.log(self.wide)
        noise2 = self.noise**2
        for rows, columns in _patterns(table, told):
            y, r = table[np.ix_(rows, columns)], len(columns)
            baseline = rows[0] == 0
            # V = noise2 I + spread2 J of one recipe's scores; its inverse is (I - shrunk J) / noise2
            spread2 = np.zeros(g) if baseline else self.spread**2
            shrunk = spread2 / (noise2 + r * spread2)
            inverse = (np.eye(r) - shrunk[:, None, None]) / noise2[:, None, None]
            design = np.zeros((g, r, d))
            design[:, :, 1 if baseline else 0] = 1.0
            design[:, range(r), 2 + columns] = self.common[:, None]
            half = design.transpose(0, 2, 1) @ inverse
            precision += len(rows) * (half @ design)
            right += half @ y.sum(0)
            quadratic += ((y**2).sum() - shrunk * (y.sum(1) ** 2).sum()) / noise2
            logdet += len(rows) * (r * np.log(noise2) + np.log1p(r * spread2 / noise2))
        chol = np.linalg.cholesky(precision)
        mean = np.linalg.solve(precision, right[..., None])[..., 0]
        evidence = -0.5 * (quadratic - (right * mean).sum(1) + logdet)
        evidence -= np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(1)
        return evidence, mean, chol

    def values(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`constant`, `linear` and `own` of Estimates, given what recipes share."""
        g, (n, most) = len(self.noise), table.shape
        there = ~np.isnan(table)
        seeds = there.sum(1)
        # v[i] = (1 - w) of the candidates' mean + w of (mean of its scores - mean effect of its seeds)
        weight = self.spread[:, None] ** 2 / (self.spread[:, None] ** 2 + self.noise[:, None] ** 2 / seeds)
        constant, own = np.zeros((g, n + 1)), np.zeros((g, n + 1))
        linear = np.zeros((g, n + 1, 2 + most))
        constant[:, :-1] = weight * np.nanmean(table, axis=1)
        linear[:, :-1, 0] = 1 - weight
        linear[:, :-1, 2:] = -(weight * self.common[:, None])[:, :, None] * (there / seeds[:, None])
        own[:, :-1] = self.spread[:, None] ** 2 * (1 - weight)
        constant[:, 0], own[:, 0], linear[:, 0] = 0.0, 0.0, 0.0
        linear[:, 0, 1] = 1.0
        linear[:, n, 0], own[:, n] = 1.0, self.spread**2
        return constant, linear, own


def _patterns(table: np.ndarray, told: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of the recipes that count and have the same seeds; the baseline apart from the others."""
    groups: dict[tuple[bool, bytes], list[int]] = {}
    for row in np.flatnonzero(told):
        groups.setdefault((row == 0, (~np.isnan(table[row])).tobytes()), []).append(int(row))
    return [(np.array(rows), np.flatnonzero(~np.isnan(table[rows[0]]))) for rows in groups.values()]
