"""pySOT's strategies, made to run here: its imports, surrogates, initial design and inner search.

Importing pySOT takes a second, so this module is imported when a sampler is built, beside the baseline's training.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from detsearch_cli.search.samplers._box import Box


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
_STRATEGIES = {"dycors": DYCORSStrategy, "srbf": SRBFStrategy, "ei": EIStrategy, "lcb": LCBStrategy}


class _Genetic(GeneticAlgorithm):
    """Starts from random points: the default builds 1000 hypercubes of 100 points for every proposal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "start": "Random", "num_gen": GENERATIONS})


sys.modules["pySOT.auxiliary_problems.ei_ga"].GA = _Genetic  # type: ignore[attr-defined]
sys.modules["pySOT.auxiliary_problems.lcb_ga"].GA = _Genetic  # type: ignore[attr-defined]


class _Problem(OptimizationProblem):
    """The box in pySOT's words."""

    def __init__(self, box: Box) -> None:
        self.dim, self.lb, self.ub = box.dim, box.lower, box.upper
        self.int_var, self.cont_var = np.flatnonzero(box.whole), np.flatnonzero(~box.whole)

    def eval(self, x: np.ndarray) -> float:
        raise NotImplementedError("candidates are evaluated by the coordinator")


class _Gaussian(GPRegressor):
    """With the noise of each point, and of the shape that pySOT expects: scikit-learn predicts (N,) since 1.1, not (N, 1).

    noise: (N,) standard deviations of the values, in their units, or 0 for all.
    """

    noise: Any = 0.0

    def _fit(self) -> None:
        if (
            not self.updated
        ):  # pySOT fits standardised values; 1e-10 is scikit-learn's own, for the sake of rounding
            self.model.alpha = 1e-10 + (self.noise / max(np.std(self.fX), 1e-6)) ** 2
            super()._fit()

    def predict(self, xx: np.ndarray) -> np.ndarray:
        return np.asarray(super().predict(xx)).reshape(-1, 1)


class _Design(ExperimentalDesign):
    """Symmetric Latin hypercube where one exists, else points of the space drawn until they differ."""

    def __init__(self, box: Box, num_pts: int) -> None:
        self.box, self.dim, self.num_pts = box, box.dim, num_pts

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
            x = self.box.encode(self.box.space.sample(rng))
            points.setdefault(x.tobytes(), x)
            if len(points) == self.num_pts:
                break
        self.num_pts = len(points)
        return np.stack(list(points.values()))


def build(strategy: str, box: Box, budget: int, initial: int) -> tuple[Any, int]:
    """(pySOT's strategy of that name, the points its surrogate needs before it can propose)."""
    gaussian = strategy in ("ei", "lcb")
    needed = 2
    if gaussian:
        surrogate: Any = _Gaussian(box.dim, box.lower, box.upper, n_restarts_optimizer=GP_RESTARTS)
    elif initial > box.dim:
        surrogate = RBFInterpolant(
            box.dim, box.lower, box.upper, kernel=CubicKernel(), tail=LinearTail(box.dim)
        )
        needed = box.dim + 1
    else:
        surrogate = RBFInterpolant(
            box.dim, box.lower, box.upper, kernel=LinearKernel(), tail=ConstantTail(box.dim)
        )
    base = _STRATEGIES[strategy]
    endless = type(base.__name__, (base,), {"check_termination": lambda self: None})
    made = endless(
        # DYCORS divides by ln(budget - initial): leave at least two
        max_evals=max(budget, initial + 2),
        opt_prob=_Problem(box),
        exp_design=_Design(box, initial),
        surrogate=surrogate,
        asynchronous=True,
        # EI and LCB would throw the surrogate away; a random candidate explores as well and keeps it
        use_restarts=not gaussian,
    )
    return made, needed


def pending_record(x: np.ndarray) -> Any:
    """pySOT's record of a point that is being evaluated."""
    return EvalRecord((x,), status="pending")
