"""Rounds of draws around a mean that PPO2 moves towards the better ones (Tao et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from pydantic import Field
from scipy.stats import truncnorm

from detsearch_cli.parts import Part
from detsearch_cli.search.samplers._box import Box
from detsearch_cli.search.samplers.base import ProductSampler, Proposal, stream
from detsearch_cli.search.space import Candidate, Product, Real, Space, key

FIRST, LAST = 1e-3, 1 - 1e-3  # of the mean: its logit must stay finite


@dataclass
class Round:
    """One round. mean (d,) and sd: what its candidates were drawn from, in parts of each range. draws: by candidate.

    rewards: of those that were told. open: asked and without an outcome.
    """

    mean: np.ndarray
    sd: float
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    asked: int = 0


class PPO2(ProductSampler):
    """Each round draws `samples` candidates from a normal distribution truncated to the ranges, waits for their values,
    and moves its mean: the maximum over the mean of Eq. 11's clipped gains, by Adam from where it was (Eq. 10).

    The first mean is each parameter's `start`, the middle of its range without one. The standard deviation falls linearly
    with the round, from `sigma` to a T-th of it in the last of the T = budget / samples rounds, where the paper says that
    it falls to 0: from a deviation of 0 nothing could be drawn. A longer search keeps the last one.

    Where the paper is silent: Eq. 11's ratio of densities is the product over parameters, and its clipped form the
    product of each parameter's clipped ratio ("the clip operation is applied on each component"); the same deviation
    stands above and below. A failed trial has the worst reward of its round, a refused one is drawn again, and a round
    without any value leaves the mean.
    """

    class Options(Part):
        """samples: candidates of a round. sigma: first standard deviation, as a part of each range. epsilon: how far a
        ratio of densities counts. Of Adam on the logit of the mean, lr: highest rate. steps: how many. warmup: the rate
        goes up over so many of them, then down to 0."""

        samples: int = Field(8, ge=2, le=10_000)
        sigma: float = Field(0.2, gt=0, le=10)
        epsilon: float = Field(0.1, gt=0, lt=1)
        lr: float = Field(0.01, gt=0, le=10)
        steps: int = Field(100, ge=1, le=1_000_000)
        warmup: int = Field(30, ge=0, le=1_000_000)

    options: Options

    def __init__(
        self, space: Product, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        self._box = Box(space)
        starts = [_start(p) for p in self._box.parameters if isinstance(p, Real)]
        self.rounds = [Round(np.clip(starts, FIRST, LAST), self.options.sigma)]

    @classmethod
    def accepts(cls, space: Space) -> bool:
        """True for real parameters alone: a normal distribution over counts or choices means nothing."""
        return isinstance(space, Product) and all(isinstance(p, Real) for p in space.parameters)

    def propose(self) -> Proposal | None:
        now = self.rounds[-1]
        if now.asked == self.options.samples:
            if now.open:
                return None
            now = self._next_round()
        rng, low, high = stream(self.seed, self.asked), (0 - now.mean) / now.sd, (1 - now.mean) / now.sd
        # by the inverse of the distribution function: one uniform number each, whatever was drawn before
        drawn = truncnorm.ppf(rng.random(len(now.mean)), low, high, loc=now.mean, scale=now.sd)
        candidate = self._decoded(np.clip(drawn, 0, 1))
        name = key(candidate)
        now.draws[name] = self._parts(candidate)
        now.open.append(name)
        now.asked += 1
        return Proposal(candidate)

    def _next_round(self) -> Round:
        rounds = max(1, self.budget // self.options.samples)
        left = max(1, rounds - len(self.rounds))
        last = self.rounds[-1]
        self.rounds.append(Round(self._moved(last), self.options.sigma * left / rounds))
        return self.rounds[-1]

    def _moved(self, last: Round) -> np.ndarray:
        """The mean of the round after this one."""
        if not last.rewards:
            return last.mean
        worst = min(last.rewards.values())
        names = [*last.rewards, *last.failed]
        rewards = np.array([last.rewards.get(name, worst) for name in names])
        options = self.options
        return maximised(
            last.mean,
            np.stack([last.draws[name] for name in names]),
            rewards - rewards.mean(),
            last.sd,
            options.epsilon,
            options.lr,
            options.steps,
            options.warmup,
        )

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        self._close(proposal).rewards[key(proposal.candidate)] = value

    def tell_again(self, proposal: Proposal, value: float, seeds: int) -> None:
        # a round that has moved the mean already has done so for good: the next one was drawn from where it went
        for one in self.rounds:
            if key(proposal.candidate) in one.rewards:
                one.rewards[key(proposal.candidate)] = value

    def fail(self, proposal: Proposal) -> None:
        self._close(proposal).failed.append(key(proposal.candidate))

    def refused(self, proposal: Proposal, reason: str) -> None:
        self._close(proposal).asked -= 1

    def _close(self, proposal: Proposal) -> Round:
        """The round of a proposal that has its outcome."""
        name = key(proposal.candidate)
        found = next(one for one in self.rounds if name in one.open)
        found.open.remove(name)
        return found

    def means(self) -> list[Candidate]:
        """What each round so far was drawn around."""
        return [self._decoded(one.mean) for one in self.rounds]

    # between candidates and parts of the ranges

    def _decoded(self, parts: np.ndarray) -> Candidate:
        box = self._box
        return box.decode(box.lower + parts * (box.upper - box.lower))

    def _parts(self, candidate: Candidate) -> np.ndarray:
        box = self._box
        return np.asarray((box.encode(candidate) - box.lower) / (box.upper - box.lower))


def _start(parameter: Real) -> float:
    """Where a parameter begins, as a part of its range."""
    if parameter.start is None:
        return 0.5
    ends = [parameter.low, parameter.high, parameter.start]
    low, high, at = np.log(ends) if parameter.log else ends
    return float((at - low) / (high - low))


def maximised(
    mean: np.ndarray,
    draws: np.ndarray,
    rewards: np.ndarray,
    sd: float,
    epsilon: float,
    lr: float,
    steps: int,
    warmup: int,
) -> np.ndarray:
    """Eq. 10: the mean that maximises `clipped_gain`, by Adam (Kingma and Ba 2015) on its logit from `mean` (d,)."""
    x = np.log(mean / (1 - mean))
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step in range(1, steps + 1):
        at = 1 / (1 + np.exp(-x))
        _, slope = clipped_gain(at, mean, draws, rewards, sd, epsilon)
        slope = slope * at * (1 - at)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        along = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        rate = step / warmup if step < warmup else (steps - step + 1) / max(1, steps - warmup + 1)
        x = x + lr * min(rate, 1.0) * along
    return np.clip(1 / (1 + np.exp(-x)), FIRST, LAST)


def clipped_gain(
    at: np.ndarray, mean: np.ndarray, draws: np.ndarray, rewards: np.ndarray, sd: float, epsilon: float
) -> tuple[float, np.ndarray]:
    """What Eq. 10 maximises, the mean of Eq. 11 over the draws, and its gradient by `at` (d,).

    mean (d,): what the draws (S, d) came from. rewards (S,): minus their mean.
    """
    ratios = np.exp(_log_density(draws, at, sd) - _log_density(draws, mean, sd))
    clipped = np.clip(ratios, 1 - epsilon, 1 + epsilon)
    whole, kept = ratios.prod(1), clipped.prod(1)
    slope = _slope(draws, at, sd)
    moves = (ratios > 1 - epsilon) & (ratios < 1 + epsilon)
    as_it_is = whole * rewards <= kept * rewards
    by_at = np.where(as_it_is[:, None], whole[:, None] * slope, kept[:, None] * slope * moves)
    value = np.minimum(whole * rewards, kept * rewards)
    return float(value.mean()), (rewards[:, None] * by_at).mean(0)


def _log_density(draws: np.ndarray, mean: np.ndarray, sd: float) -> np.ndarray:
    return np.asarray(truncnorm.logpdf(draws, (0 - mean) / sd, (1 - mean) / sd, loc=mean, scale=sd))


def _slope(draws: np.ndarray, mean: np.ndarray, sd: float) -> np.ndarray:
    """Derivative of the logarithm of the density by the mean."""
    low, high = (0 - mean) / sd, (1 - mean) / sd
    ends = truncnorm.pdf(0, low, high, loc=mean, scale=sd) - truncnorm.pdf(1, low, high, loc=mean, scale=sd)
    return np.asarray((draws - mean) / sd**2 - ends)
