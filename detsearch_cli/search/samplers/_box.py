"""The free parameters of a product as a box of numbers: integers and choices by number, logarithms where `log`."""

from __future__ import annotations

import numpy as np

from detsearch_cli.search.space import Candidate, Choice, Integer, Parameter, Product, Real


class Box:
    """Candidates as points x (dim,) between lower and upper (dim,)."""

    def __init__(self, space: Product) -> None:
        self.space, self.parameters = space, space.free
        self.dim = len(self.parameters)
        bounds = np.array([_bounds(p) for p in self.parameters], dtype=float).reshape(-1, 2)
        self.lower, self.upper = bounds[:, 0], bounds[:, 1]
        self.whole = np.array([not isinstance(p, Real) for p in self.parameters], dtype=bool)

    def encode(self, candidate: Candidate) -> np.ndarray:
        """The candidate as a point."""
        return np.array([_number(p, candidate[p.name]) for p in self.parameters])

    def decode(self, x: np.ndarray) -> Candidate:
        """The nearest candidate; parameters that are not free have their only value."""
        free = {p.name: _value(p, float(v)) for p, v in zip(self.parameters, x, strict=True)}
        return {p.name: free.get(p.name, p.level(0, 1)) for p in self.space.parameters}


def _bounds(parameter: Parameter) -> tuple[float, float]:
    if isinstance(parameter, Choice):
        return 0.0, float(parameter.size - 1)
    if isinstance(parameter, Real) and parameter.log:
        return float(np.log(parameter.low)), float(np.log(parameter.high))
    return float(parameter.low), float(parameter.high)


def _number(parameter: Parameter, value: int | float | str) -> float:
    if isinstance(parameter, Choice):
        return float(parameter.options.index(str(value)))
    return float(np.log(value)) if isinstance(parameter, Real) and parameter.log else float(value)


def _value(parameter: Parameter, x: float) -> int | float | str:
    if isinstance(parameter, Choice):
        return parameter.options[min(max(round(x), 0), parameter.size - 1)]
    if isinstance(parameter, Integer):
        return min(max(round(x), parameter.low), parameter.high)
    value = float(np.exp(x)) if parameter.log else x
    return min(max(value, parameter.low), parameter.high)
