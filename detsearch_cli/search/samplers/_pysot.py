"""pySOT behind our ask/tell: DYCORS, SRBF (radial basis functions), EI and LCB (Gaussian process).

pySOT minimises, uses numpy's global random state and raises in corners that small spaces and budgets reach.
All of that stays in this file and `_strategies.py`:

- each proposal draws from its own seed (search seed, proposal number) inside a fence around numpy's global
  state, so a replay need not compute past proposals again: it puts the recorded ones in their place;
- a failed trial is told as a finite penalty, at least a tenth of the spread worse than the worst value seen
  (NaN would poison the surrogate); failures before the first value wait for it;
- a refused proposal is forgotten, since ten thousand penalties would drown the surrogate; where the surrogate
  proposes it again, a candidate not yet proposed is drawn instead;
- whenever pySOT cannot propose (singular system, no improvement expected, fewer points than the surrogate
  needs), the proposal is a uniform draw of a candidate not yet proposed.

Initial design: a symmetric Latin hypercube of 2(d+1) points, at most half the budget. Below the d+1 points
that a linear tail needs (10 trials over 15 counts) the surrogate is a linear kernel with a constant tail.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from threadpoolctl import ThreadpoolController

from detsearch_cli.option import MOST_TRIALS
from detsearch_cli.parts import Part
from detsearch_cli.search.samplers._box import Box
from detsearch_cli.search.samplers.base import ProductSampler, Proposal, stream, trusted
from detsearch_cli.search.space import Candidate, Product, key


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes 6 ms, so look once


class PySOT(ProductSampler):
    """One of pySOT's strategies. The public subclasses only name it."""

    class Options(Part):
        """initial: points of the initial design; None for 2(d+1), at most half the budget."""

        initial: int | None = Field(None, ge=2, le=MOST_TRIALS)

    options: Options
    strategy: ClassVar[str]

    def __init__(
        self, space: Product, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        self._box = Box(space)
        self._records: dict[str, list[Any]] = {}
        self._failed: list[Any] = []
        self._values: list[float] = []
        self._told: dict[bytes, tuple[float, int]] = {}  # point -> mean, over so many seeds
        self._trained_again = False
        self._seen: set[str] = set()
        self._refused: set[str] = set()
        self._method: Any = None  # stays None for a space of one candidate
        if self._box.dim > 0:
            from detsearch_cli.search.samplers._strategies import build

            initial = initial_points(
                self._box.dim, self.budget, self.workers, space.size, self.options.initial
            )
            with self._fence(-1):
                self._method, self._needed = build(self.strategy, self._box, self.budget, initial)

    @contextmanager
    def _fence(self, index: int) -> Iterator[None]:
        """numpy's global state belongs to this proposal inside, and is what it was afterwards.

        One BLAS thread: on a busy machine more are slower, and their sums differ in the last bit.
        """
        state = np.random.get_state()
        np.random.seed(np.random.SeedSequence([self.seed, index + 2]).generate_state(4))
        try:
            with _threads().limit(limits=1), warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                yield
        finally:
            np.random.set_state(state)

    def propose(self) -> Proposal | None:
        if self._method is None:
            return Proposal(self.space.sample(stream(self.seed, self.asked)))
        with self._fence(self.asked):
            if self._adaptive() and self._method.surrogate.num_pts < self._needed:
                if self._waiting():
                    return None
                return Proposal(self._accept(None))
            self._learn_anew()
            try:
                if self.noise > 0 and hasattr(self._method.surrogate, "noise"):
                    # the lowest of noisy values is no measure of improvement, the lowest expected one is
                    self._method._fX = self._method.surrogate.predict(self._method.surrogate.X)
                action = self._method.propose_action()
            except Exception:  # whatever pySOT raises, a search goes on with a random candidate
                action = None
                # half a solution of a singular system stays in pySOT's RBF and makes every later fit fail, while
                # a replay, which fits once, would not meet it
                self._method.surrogate.c = None
            self._method.converged = False
            return Proposal(self._accept(self._without_refused(action)))

    def _learn_anew(self) -> None:
        """Give the surrogate what is known of its points by now: further seeds change a mean, and how far it is trusted.

        A Gaussian process is given the noise of each. Radial basis functions go through every point, so they are given
        shrunken means.
        """
        surrogate = self._method.surrogate
        if self.noise == 0 or not self._adaptive() or not self._told:
            return
        rows = [self._told.get(x.tobytes()) for x in surrogate.X]  # None for failed ones
        known = np.array([row is not None for row in rows])
        means, seeds = np.array([row or (0.0, 1) for row in rows]).T
        if hasattr(surrogate, "noise"):
            surrogate.noise = self.noise / np.sqrt(seeds)
        elif self._trained_again:
            means[known] = trusted(means[known], seeds[known], self.noise)
            surrogate.c = None  # else it would only learn what new points add
        else:
            return
        surrogate.fX = np.where(known[:, None], -means[:, None], surrogate.fX)
        surrogate.updated = False
        self._method._fX = surrogate.fX.copy()

    def _without_refused(self, action: Any) -> Any:
        """None in place of a point that was refused: the surrogate has not learned that and insists on it.

        Not in the initial design (phase 1), which proposes each point once and is computed again in a replay.
        """
        if not self._refused or action is None or action.action != "eval" or self._method.phase == 1:
            return action
        if key(self._box.decode(np.ravel(action.args[0]))) not in self._refused:
            return action
        action.reject()  # pySOT counts it as pending until then
        return None

    def restore(self, proposal: Proposal) -> None:
        """Adaptive proposals are taken from the ledger instead of being computed again (EI: seconds each)."""
        method, candidate = self._method, proposal.candidate
        if method is None or not self._adaptive():
            super().restore(proposal)
            return
        if method.surrogate.num_pts >= self._needed:
            method.phase = 2
            if hasattr(method, "next_weight"):
                method.next_weight = (method.next_weight + 1) % len(method.weights)
        method.batch_queue.append(self._box.encode(candidate))
        with self._fence(self.asked):
            self._accept(method.adapt_proposal(), candidate)
        self.asked += 1

    def _adaptive(self) -> bool:
        """True when the next proposal comes from the surrogate, not from an initial design or a restart."""
        return not self._method.batch_queue and not self._method.converged

    def _waiting(self) -> bool:
        return any(self._records.values())

    def _accept(self, action: Any, candidate: Candidate | None = None) -> Candidate:
        from detsearch_cli.search.samplers._strategies import pending_record

        if action is None or action.action != "eval":
            self._method.batch_queue.append(self._box.encode(self._unseen()))
            action = self._method.adapt_proposal()
        if candidate is None:
            candidate = self._box.decode(np.ravel(action.args[0]))
        # the surrogate learns the candidate as the ledger holds it: rounding in exp and log must not matter
        x = self._box.encode(candidate)
        self._method.Xpend[-1] = x
        record = action.record = pending_record(x)
        action.accept()
        record.running()
        self._records.setdefault(key(candidate), []).append(record)
        self._seen.add(key(candidate))
        return candidate

    def _unseen(self) -> Candidate:
        rng = stream(self.seed, self.asked)
        for _ in range(200):
            candidate = self.space.sample(rng)
            if key(candidate) not in self._seen:
                break
        return candidate

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        if self._method is None:
            return
        record = self._take(proposal)
        self._values.append(-value)
        self._told[self._box.encode(proposal.candidate).tobytes()] = value, seeds
        with self._fence(-2):
            record.complete(-value)
            while self._failed:
                self._failed.pop(0).complete(self._penalty())

    def tell_again(self, proposal: Proposal, value: float, seeds: int) -> None:
        if self._method is not None:
            self._told[self._box.encode(proposal.candidate).tobytes()] = value, seeds
            self._trained_again = True

    def fail(self, proposal: Proposal) -> None:
        if self._method is None:
            return
        record = self._take(proposal)
        if not self._values:
            self._failed.append(record)
            return
        with self._fence(-2):
            record.complete(self._penalty())

    def refused(self, proposal: Proposal, reason: str) -> None:
        if self._method is None:
            return
        self._refused.add(key(proposal.candidate))
        method, queued = self._method, len(self._method.batch_queue)
        self._take(proposal).kill()
        if len(method.batch_queue) > queued:
            # pySOT queues a lost point of the initial design again: it would be refused for ever
            method.batch_queue.pop()
            if hasattr(method, "num_exp"):
                method.num_exp -= 1  # DYCORS takes the logarithm of the points beyond the initial design
        method.fevals.pop()  # pySOT's own list of what was evaluated, which nothing here reads

    def _take(self, proposal: Proposal) -> Any:
        return self._records[key(proposal.candidate)].pop(0)

    def _penalty(self) -> float:
        worst, best = max(self._values), min(self._values)
        # with few values known the worst may be a good one, so keep further away
        return worst + max(0.1 * (worst - best), abs(worst) / (1 + len(self._values)), 1e-6)


def initial_points(dim: int, budget: int, workers: int, size: int | None, wanted: int | None = None) -> int:
    """Points of the initial design: `wanted`, else 2(d+1), at most half the budget.

    Never more than the space holds. With several workers the design must keep them busy until the surrogate
    has its points: d + workers for a linear tail (d+1 points), 1 + workers for a constant one.
    """
    points = wanted if wanted is not None else min(2 * (dim + 1), max(2, budget // 2))
    points = max(points, dim + workers if points > dim else 1 + workers)
    return points if size is None else min(points, size)
