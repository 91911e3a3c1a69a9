"""pySOT behind our ask/tell: DYCORS, SRBF (radial basis functions), EI and LCB (Gaussian process).

pySOT minimises, uses numpy's global random state and raises in corners that small spaces and budgets reach.
All of that stays in this file:

- each proposal draws from its own seed (search seed, proposal number) inside a fence around numpy's global
  state, so a replay need not compute past proposals again: it puts the recorded ones in their place;
- a failed trial is told as a finite penalty, at least a tenth of the spread worse than the worst value seen
  (NaN would poison the surrogate); failures before the first value wait for it;
- whenever pySOT cannot propose (singular system, no improvement expected, fewer points than the surrogate
  needs), the proposal is a uniform draw of a candidate not yet proposed.

Initial design: a symmetric Latin hypercube of 2(d+1) points, at most half the budget. Below the d+1 points
that a linear tail needs (10 trials over 15 counts) the surrogate is a linear kernel with a constant tail.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from detsearch_cli.search.samplers.base import Sampler, stream
from detsearch_cli.search.space import Candidate, Choice, Integer, Parameter, Real, Space, key


@contextmanager
def _imp_module() -> Iterator[None]:
    """pyDOE2 imports `imp`, gone since Python 3.12, and never uses it: an empty one while importing."""
    missing = sys.version_info >= (3, 12) and "imp" not in sys.modules
    if missing:
        sys.modules["imp"] = types.ModuleType("imp")
    try:
        yield
    finally:
        if missing:
            del sys.modules["imp"]


with _imp_module(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from poap.strategy import EvalRecord
    from pySOT.experimental_design import SymmetricLatinHypercube
    from pySOT.experimental_design.experimental_design import ExperimentalDesign
    from pySOT.optimization_problems import OptimizationProblem
    from pySOT.strategy import DYCORSStrategy, EIStrategy, LCBStrategy, SRBFStrategy
    from pySOT.surrogate import (
        ConstantTail,
        CubicKernel,
        GPRegressor,
        LinearKernel,
        LinearTail,
        RBFInterpolant,
    )
    from pySOT.utils import GeneticAlgorithm

GENERATIONS, GP_RESTARTS = 100, 5  # pySOT's own
STRATEGIES = {"dycors": DYCORSStrategy, "srbf": SRBFStrategy, "ei": EIStrategy, "lcb": LCBStrategy}


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the libraries takes 6 ms, so look once


class _Genetic(GeneticAlgorithm):
    """Starts from random points: the default builds 1000 hypercubes of 100 points for every proposal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "start": "Random", "num_gen": GENERATIONS})


sys.modules["pySOT.auxiliary_problems.ei_ga"].GA = _Genetic  # type: ignore[attr-defined]
sys.modules["pySOT.auxiliary_problems.lcb_ga"].GA = _Genetic  # type: ignore[attr-defined]


class _Problem(OptimizationProblem):
    """The free parameters as a box: integers and choices by number, logarithmic reals by their logarithm."""

    def __init__(self, space: Space) -> None:
        self.parameters = space.free
        self.dim = len(self.parameters)
        bounds = np.array([_bounds(p) for p in self.parameters], dtype=float).reshape(-1, 2)
        self.lb, self.ub = bounds[:, 0], bounds[:, 1]
        whole = np.array([not isinstance(p, Real) for p in self.parameters], dtype=bool)
        self.int_var, self.cont_var = np.flatnonzero(whole), np.flatnonzero(~whole)

    def eval(self, x: np.ndarray) -> float:
        raise NotImplementedError("candidates are evaluated by the coordinator")


class _Gaussian(GPRegressor):
    """scikit-learn predicts (N,) since 1.1 where pySOT expects (N, 1)."""

    def predict(self, xx: np.ndarray) -> np.ndarray:
        return np.asarray(super().predict(xx)).reshape(-1, 1)


class _Design(ExperimentalDesign):
    """Symmetric Latin hypercube where one exists, else points of the space drawn until they differ."""

    def __init__(self, space: Space, problem: _Problem, num_pts: int) -> None:
        self.space, self.problem = space, problem
        self.dim, self.num_pts = problem.dim, num_pts

    def generate_points(self, lb: Any = None, ub: Any = None, int_var: Any = None) -> np.ndarray:
        """(num_pts, dim) in the problem's box."""
        if self.num_pts > self.dim:
            try:
                design = SymmetricLatinHypercube(self.dim, self.num_pts, iterations=200)
                return np.asarray(design.generate_points(lb, ub, int_var))
            except ValueError:
                pass  # no design of distinct points found: the space is too small for this many levels
        rng = np.random.default_rng(np.random.randint(0, 2**31, size=4))
        points: dict[bytes, np.ndarray] = {}
        for _ in range(1000 * self.num_pts):
            x = _encode(self.problem.parameters, self.space.sample(rng))
            points.setdefault(x.tobytes(), x)
            if len(points) == self.num_pts:
                break
        self.num_pts = len(points)
        return np.stack(list(points.values()))


class PySOT(Sampler):
    """One of pySOT's strategies. The public subclasses only name it."""

    strategy: str

    def __init__(self, space: Space, budget: int, seed: int, workers: int = 1) -> None:
        super().__init__(space, budget, seed, workers)
        self._problem = _Problem(space)
        self._records: dict[str, list[Any]] = {}
        self._failed: list[Any] = []
        self._values: list[float] = []
        self._seen: set[str] = set()
        self._method: Any = None
        if self._problem.dim > 0:
            with self._fence(-1):
                self._method = self._build()

    def _build(self) -> Any:
        dim = self._problem.dim
        gaussian = self.strategy in ("ei", "lcb")
        initial = initial_points(dim, self.budget, self.workers, self.space.size)
        lb, ub = self._problem.lb, self._problem.ub
        self._needed = 2
        if gaussian:
            surrogate: Any = _Gaussian(dim, lb, ub, n_restarts_optimizer=GP_RESTARTS)
        elif initial > dim:
            surrogate = RBFInterpolant(dim, lb, ub, kernel=CubicKernel(), tail=LinearTail(dim))
            self._needed = dim + 1
        else:
            surrogate = RBFInterpolant(dim, lb, ub, kernel=LinearKernel(), tail=ConstantTail(dim))
        base = STRATEGIES[self.strategy]
        endless = type(base.__name__, (base,), {"check_termination": lambda self: None})
        return endless(
            # DYCORS divides by ln(budget - initial): leave at least two
            max_evals=max(self.budget, initial + 2),
            opt_prob=self._problem,
            exp_design=_Design(self.space, self._problem, initial),
            surrogate=surrogate,
            asynchronous=True,
            # EI and LCB would throw the surrogate away; a random candidate explores as well and keeps it
            use_restarts=not gaussian,
        )

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

    def propose(self) -> Candidate | None:
        if self._method is None:
            return self.space.sample(stream(self.seed, self.asked))
        with self._fence(self.asked):
            if self._adaptive() and self._method.surrogate.num_pts < self._needed:
                if self._waiting():
                    return None
                return self._accept(None)
            try:
                proposal = self._method.propose_action()
            except Exception:  # whatever pySOT raises, a search goes on with a random candidate
                proposal = None
            self._method.converged = False
            return self._accept(proposal)

    def restore(self, candidate: Candidate) -> None:
        """Adaptive proposals are taken from the ledger instead of being computed again (EI: seconds each)."""
        method = self._method
        if method is None or not self._adaptive():
            super().restore(candidate)
            return
        if method.surrogate.num_pts >= self._needed:
            method.phase = 2
            if hasattr(method, "next_weight"):
                method.next_weight = (method.next_weight + 1) % len(method.weights)
        method.batch_queue.append(_encode(self._problem.parameters, candidate))
        with self._fence(self.asked):
            self._accept(method.adapt_proposal(), candidate)
        self.asked += 1

    def _adaptive(self) -> bool:
        """True when the next proposal comes from the surrogate, not from an initial design or a restart."""
        return not self._method.batch_queue and not self._method.converged

    def _waiting(self) -> bool:
        return any(self._records.values())

    def _accept(self, proposal: Any, candidate: Candidate | None = None) -> Candidate:
        if proposal is None or proposal.action != "eval":
            fallback = self._unseen()
            self._method.batch_queue.append(_encode(self._problem.parameters, fallback))
            proposal = self._method.adapt_proposal()
        if candidate is None:
            candidate = self._decode(np.ravel(proposal.args[0]))
        # the surrogate learns the candidate as the ledger holds it: rounding in exp and log must not matter
        x = _encode(self._problem.parameters, candidate)
        self._method.Xpend[-1] = x
        record = proposal.record = EvalRecord((x,), status="pending")
        proposal.accept()
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

    def tell(self, candidate: Candidate, value: float) -> None:
        if self._method is None:
            return
        record = self._take(candidate)
        self._values.append(-value)
        with self._fence(-2):
            record.complete(-value)
            while self._failed:
                self._failed.pop(0).complete(self._penalty())

    def fail(self, candidate: Candidate) -> None:
        if self._method is None:
            return
        record = self._take(candidate)
        if not self._values:
            self._failed.append(record)
            return
        with self._fence(-2):
            record.complete(self._penalty())

    def _take(self, candidate: Candidate) -> Any:
        return self._records[key(candidate)].pop(0)

    def _penalty(self) -> float:
        worst, best = max(self._values), min(self._values)
        # with few values known the worst may be a good one, so keep further away
        return worst + max(0.1 * (worst - best), abs(worst) / (1 + len(self._values)), 1e-6)

    def _decode(self, x: np.ndarray) -> Candidate:
        free = {p.name: _value(p, float(v)) for p, v in zip(self._problem.parameters, x, strict=True)}
        return {p.name: free.get(p.name, p.level(0, 1)) for p in self.space.parameters}


def initial_points(dim: int, budget: int, workers: int, size: int | None) -> int:
    """Points of the initial design: 2(d+1), at most half the budget, never more than the space holds.

    With several workers the design must keep them busy until the surrogate has its points: d + workers for a
    linear tail (d+1 points), 1 + workers for a constant one.
    """
    points = min(2 * (dim + 1), max(2, budget // 2))
    points = max(points, dim + workers if points > dim else 1 + workers)
    return points if size is None else min(points, size)


def _bounds(parameter: Parameter) -> tuple[float, float]:
    if isinstance(parameter, Choice):
        return 0.0, float(parameter.size - 1)
    if isinstance(parameter, Real) and parameter.log:
        return float(np.log(parameter.low)), float(np.log(parameter.high))
    return float(parameter.low), float(parameter.high)


def _encode(parameters: tuple[Parameter, ...], candidate: Candidate) -> np.ndarray:
    def number(p: Parameter) -> float:
        value = candidate[p.name]
        if isinstance(p, Choice):
            return float(p.options.index(str(value)))
        return float(np.log(value)) if isinstance(p, Real) and p.log else float(value)

    return np.array([number(p) for p in parameters])


def _value(parameter: Parameter, x: float) -> int | float | str:
    if isinstance(parameter, Choice):
        return parameter.options[min(max(round(x), 0), parameter.size - 1)]
    if isinstance(parameter, Integer):
        return min(max(round(x), parameter.low), parameter.high)
    value = float(np.exp(x)) if parameter.log else x
    return min(max(value, parameter.low), parameter.high)
