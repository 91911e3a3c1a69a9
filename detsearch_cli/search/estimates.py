"""What scores with several seeds say of the candidates' true values: a normal model with shrinkage.

A score is value + seed + noise: y[i, k] = v[i] + s[k] + e[i, k]. The value v[i] is the mean over all seeds that candidate
i would have; s[k] is what a seed does to every recipe trained with it (the same first weights, the same order of images);
e is the rest. Values of candidates are normal around their common mean with standard deviation `spread`; s and e are
normal, too. The baseline is what a user came with, none of the drawn candidates, so its value has a flat prior of its own.

The candidates' mean is normal around the baseline's value, as uncertain as one score of one candidate; and with
probability one half nothing that is searched makes a difference at all (spike and slab): else the best of many equal
candidates would seem better than the baseline in every second search.

This is the one-way random effects model of empirical Bayes (Efron and Morris 1975) with blocks. The three standard
deviations are not known either, and few scores say little of them: the posterior is a mixture over a grid of them, so that
intervals are as wide as they must be. A candidate of few seeds is drawn towards the mean of all, the more the larger the
noise beside the spread. So the highest of many noisy scores is not taken for the highest value (winner's curse).

Candidates much worse than the rest (a training that learns nothing) say nothing of the spread among the good ones, and
would make it seem so large that nothing is shrunken. The spread is learned from those as far below the median as the
best is above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

FLOOR = 1e-4  # of the noise, as AP: a hundredth of a point matters to nobody, and the model divides by it
_NOISE = np.exp(
    np.linspace(-1.2, 1.6, 13)
)  # times the pooled estimate; few degrees of freedom leave it this open
_SPREAD = np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.25, 1.6, 2.2])  # times the scores' own
_SHARED = np.array([0.0, 0.25, 0.5, 0.75])  # part of the noise's variance that a seed gives to all recipes
_NOTHING = 0.5  # probability, beforehand, that no candidate differs from the baseline


@dataclass(frozen=True)
class Estimates:
    """Of n candidates, the first of which is the baseline. Values are in the unit of the scores.

    value, sd (n,): expected true value, and how uncertain it is. noise: standard deviation of one recipe's scores over
    seeds; residual: the part of it that differs between recipes trained with the same seed. spread: standard deviation of
    the candidates' true values; center: their mean. weights (g,), gain_mean and gain_sd (g, n): the mixture that is the
    posterior of each value minus the baseline's.
    """

    value: np.ndarray
    sd: np.ndarray
    noise: float
    residual: float
    spread: float
    center: float
    weights: np.ndarray
    gain_mean: np.ndarray
    gain_sd: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """(n,) expected value minus the baseline's; 0 for the baseline."""
        return np.asarray(self.weights @ self.gain_mean)

    def better(self) -> np.ndarray:
        """(n,) probability that the value is above the baseline's; 0 for the baseline."""
        above = ndtr(self.gain_mean / np.maximum(self.gain_sd, 1e-300))
        return np.asarray(self.weights @ np.where(self.gain_sd > 0, above, 0.0))

    def interval(self, i: int, level: float = 0.95) -> tuple[float, float]:
        """Central interval of candidate i's gain over the baseline."""
        mean, sd = self.gain_mean[:, i], self.gain_sd[:, i]
        if not sd.any():
            return 0.0, 0.0
        low, high = (
            _quantile(self.weights, mean, sd, (1 - level) / 2),
            _quantile(self.weights, mean, sd, (1 + level) / 2),
        )
        return low, high


def _quantile(weights: np.ndarray, mean: np.ndarray, sd: np.ndarray, part: float) -> float:
    low, high = float((mean - 9 * sd).min()), float((mean + 9 * sd).max())
    for _ in range(60):
        middle = (low + high) / 2
        # where nothing makes a difference the gain is 0: a step instead of a curve
        below = np.where(sd > 0, ndtr((middle - mean) / np.maximum(sd, 1e-300)), middle >= 0)
        if float(weights @ below) < part:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def estimate(scores: Sequence[Sequence[float]]) -> Estimates:
    """scores: by candidate, the baseline first; of each its scores with seed 0, 1, ..., at least one.

    Raises ValueError without a baseline, or where no candidate has two scores: then nothing tells the noise.
    """
    if not scores or not all(len(s) for s in scores):
        raise ValueError("the baseline and every candidate need a score")
    seeds = np.array([len(s) for s in scores])
    if seeds.max() < 2:
        raise ValueError("some candidate needs two scores, which tell the noise")
    n, most = len(scores), int(seeds.max())
    table = np.full((n, most), np.nan)
    for i, s in enumerate(scores):
        table[i, : len(s)] = s
    pooled = max(_pooled(table, seeds), FLOOR)
    means = np.nanmean(table, axis=1)
    near = _near(means)  # candidates that tell the spread
    own = means[1:][near]
    around = max(float(own.std()) if len(own) > 1 else 0.0, pooled / 4)
    grid = np.stack(np.meshgrid(pooled * _NOISE, around * _SPREAD, _SHARED, indexing="ij"), -1).reshape(-1, 3)
    total, spread, shared = grid.T
    residual, common = total * np.sqrt(1 - shared), total * np.sqrt(shared)
    wide = np.hypot(total, spread)  # of the center around the baseline
    evidence, theta, chol = _joint(table, seeds, near, residual, spread, common, wide)
    # uniform in the logarithm of the noise, half-Cauchy for the spread beside it: there need be none
    prior = -np.log1p((spread / total) ** 2) + np.log(spread / total)
    # where nothing makes a difference, all scores are the baseline's: of one value, without a spread
    plain = np.stack(np.meshgrid(pooled * _NOISE, _SHARED, indexing="ij"), -1).reshape(-1, 2)
    own_noise, common0 = plain[:, 0] * np.sqrt(1 - plain[:, 1]), plain[:, 0] * np.sqrt(plain[:, 1])
    evidence0, theta0, _ = _joint(table, seeds, near, own_noise, None, common0, None)
    prior = np.log(1 - _NOTHING) + prior - np.log(np.exp(prior).sum())
    prior0 = np.full(len(plain), np.log(_NOTHING / len(plain)))
    log = np.concatenate([evidence + prior, evidence0 + prior0])
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    gain_mean, gain_sd, value = _values(table, seeds, residual, spread, common, theta, chol)
    nothing = np.zeros((len(plain), n))
    gain_mean, gain_sd = np.concatenate([gain_mean, nothing]), np.concatenate([gain_sd, nothing])
    value = np.concatenate([value, np.repeat(theta0[:, 1:2], n, 1)])
    total, residual = np.concatenate([total, plain[:, 0]]), np.concatenate([residual, own_noise])
    spread, center = np.concatenate([spread, nothing[:, 0]]), np.concatenate([theta[:, 0], theta0[:, 1]])
    mean = np.asarray(weights @ value)
    base_sd = np.sqrt(np.maximum(weights @ (gain_sd**2 + gain_mean**2) - (weights @ gain_mean) ** 2, 0))
    return Estimates(
        value=mean,
        sd=base_sd,
        noise=float(np.sqrt(weights @ total**2)),
        residual=float(np.sqrt(weights @ residual**2)),
        spread=float(np.sqrt(weights @ spread**2)),
        center=float(weights @ center),
        weights=weights,
        gain_mean=gain_mean,
        gain_sd=gain_sd,
    )


def _pooled(table: np.ndarray, seeds: np.ndarray) -> float:
    """Standard deviation within candidates."""
    several = table[seeds > 1]
    squares = float(np.nansum((several - np.nanmean(several, axis=1, keepdims=True)) ** 2))
    return float(np.sqrt(squares / (seeds[seeds > 1] - 1).sum()))


def _near(means: np.ndarray) -> np.ndarray:
    """(n - 1,) which candidates are no farther below their median than the best of them is above it."""
    rest = means[1:]
    if len(rest) < 3:
        return np.ones(len(rest), bool)
    middle = np.median(rest)
    return np.asarray(rest >= middle - (rest.max() - middle))


def _joint(
    table: np.ndarray,
    seeds: np.ndarray,
    near: np.ndarray,
    residual: np.ndarray,
    spread: np.ndarray | None,
    common: np.ndarray,
    wide: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log evidence (g,), mean (g, d) and Cholesky factor of the precision (g, d, d) of what all candidates share.

    That is: the candidates' center, the baseline's value, and the effect of each seed in units of `common`. wide: standard
    deviation of the center around the baseline's value. spread and wide None: every candidate has the baseline's value.
    """
    g, most = len(residual), table.shape[1]
    d = 2 + most
    precision = np.zeros((g, d, d))
    precision[:, range(2, d), range(2, d)] = 1.0  # the prior of the seeds' effects
    right, quadratic, logdet = np.zeros((g, d)), np.zeros(g), np.zeros(g)
    if wide is None:
        precision[:, 0, 0] = 1.0  # there is no center: an unknown of its own that nothing depends on
    else:
        precision[:, [0, 1], [0, 1]] = (1 / wide**2)[:, None]
        precision[:, [0, 1], [1, 0]] = (-1 / wide**2)[:, None]
        logdet += 2 * np.log(wide)
    chosen = np.concatenate([[True], near])
    for first in (False, True):  # the candidates, then the baseline, whose value is a column of its own
        rows = np.flatnonzero(chosen & ((np.arange(len(seeds)) == 0) == first))
        column = int(first or spread is None)
        for r in np.unique(seeds[rows]):
            y = table[rows[seeds[rows] == r], :r]
            tau2 = np.zeros(g) if first or spread is None else spread**2
            s2 = residual**2
            c = tau2 / (s2 + r * tau2)  # V^-1 = (I - c J) / s2
            one = 1 / (s2 + r * tau2)  # of a column sum of V^-1
            count, at = len(y), slice(2, 2 + r)
            precision[:, column, column] += count * r * one
            cross = count * one * common
            precision[:, column, at] += cross[:, None]
            precision[:, at, column] += cross[:, None]
            block = (np.eye(r)[None] - c[:, None, None]) * (count * common**2 / s2)[:, None, None]
            precision[:, at, at] += block
            total = y.sum(0)
            right[:, column] += one * total.sum()
            right[:, at] += (common / s2)[:, None] * (total[None] - c[:, None] * total.sum())
            quadratic += ((y**2).sum() - c * (y.sum(1) ** 2).sum()) / s2
            logdet += count * (r * np.log(s2) + np.log1p(r * tau2 / s2))
    chol = np.linalg.cholesky(precision)
    theta = np.linalg.solve(precision, right[..., None])[..., 0]
    evidence = -0.5 * (quadratic - (right * theta).sum(1) + logdet)
    evidence -= np.log(np.diagonal(chol, axis1=1, axis2=2)).sum(1)
    return evidence, theta, chol


def _values(
    table: np.ndarray,
    seeds: np.ndarray,
    residual: np.ndarray,
    spread: np.ndarray,
    common: np.ndarray,
    theta: np.ndarray,
    chol: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of each gain, and mean of each value, (g, n), at every point of the grid."""
    g, n, d = len(residual), len(seeds), theta.shape[1]
    weight = spread[:, None] ** 2 / (spread[:, None] ** 2 + residual[:, None] ** 2 / seeds[None])
    mean = np.nanmean(table, axis=1)
    # v[i] = (1 - w) center + w (mean of its scores - mean effect of its seeds): linear in theta, plus own uncertainty
    linear = np.zeros((g, n, d))
    linear[:, 1:, 0] = 1 - weight[:, 1:]
    for i in range(1, n):
        linear[:, i, 2 : 2 + seeds[i]] = -(weight[:, i] * common / seeds[i])[:, None]
    constant = weight * mean
    own = spread[:, None] ** 2 * (1 - weight)
    linear[:, 0], constant[:, 0], own[:, 0] = 0.0, 0.0, 0.0
    linear[:, 0, 1] = 1.0
    value = constant + np.einsum("gnd,gd->gn", linear, theta)
    difference = linear - linear[:, :1]
    half = np.linalg.solve(chol, difference.transpose(0, 2, 1))
    sd = np.sqrt(own + (half**2).sum(1))
    sd[:, 0] = 0.0
    return value - value[:, :1], sd, value
