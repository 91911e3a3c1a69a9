"""The numbers that are searched, and the curves that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detsearch_cli.search.space import Candidate, Product, Real

FUNCTIONS = ("f1", "f2", "f3", "f4", "f5")
"""In the order of Eq. 6."""
SHARED = "f"
SCALE = "scale"
LOW, HIGH = 1e-3, 1 - 1e-3
"""Of each part of Eq. 8. At 0 two knots would coincide, at 1 all the later ones."""
DIGITS = 6
LEAST = 10**-DIGITS
SCALES = 0.1, 10.0
"""Source: section 3.2, theta_lambda in (0, 1)."""


def space(segments: int, shared: bool, scale: bool, places: Sequence[str]) -> Product:
    """Eq. 8's two numbers for each inner knot of each curve, from f(x) = x on, and the scale, from 1 on.

    The scale is searched in its logarithm, as theta_lambda is: (log10 of it + 1) / 2. places: what the names of each
    loss begin with.
    """
    numbers: list[Real] = []
    for place in places:
        numbers += [
            Real(f"{place}{name}.{axis}{k}", LOW, HIGH, start=1 / (segments - k + 1))
            for name in ((SHARED,) if shared else FUNCTIONS)
            for k in range(1, segments)
            for axis in "xy"
        ]
        if scale:
            numbers.append(Real(f"{place}{SCALE}", *SCALES, log=True, start=1.0))
    return Product(tuple(numbers))


def curves(candidate: Candidate, segments: int, place: str) -> list[list[list[float]]]:
    """The five curves of a candidate's loss, each its points (x, y) from (0, 0) to (1, 1), with six digits."""
    found = {
        name: _curve(candidate, f"{place}{name}", segments)
        for name in (*FUNCTIONS, SHARED)
        if f"{place}{name}.x1" in candidate
    }
    return [found.get(name, found.get(SHARED, [])) for name in FUNCTIONS]


def _curve(candidate: Mapping[str, Any], name: str, segments: int) -> list[list[float]]:
    """Eq. 8, solved for the knots."""
    points, x, y = [[0.0, 0.0]], 0.0, 0.0
    for k in range(1, segments):
        x += float(candidate[f"{name}.x{k}"]) * (1 - x)
        y += float(candidate[f"{name}.y{k}"]) * (1 - y)
        # rounding must not make two knots one
        x = min(max(round(x, DIGITS), points[-1][0] + LEAST), 1 - (segments - k) * LEAST)
        points.append([round(x, DIGITS), min(round(y, DIGITS), 1.0)])
    return [*points, [1.0, 1.0]]
