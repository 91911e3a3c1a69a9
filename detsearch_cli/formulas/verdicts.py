"""What is said about one formula: passed, or the stage, the reason and a counterexample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detsearch_cli.formulas.formula import Formula, subtree
from detsearch_cli.formulas.graph import Graph, Inputs
from detsearch_cli.formulas.grids import grid
from detsearch_cli.formulas.language import Language
from detsearch_cli.formulas.properties import Finding, Reason, Stage


class Point(NamedTuple):
    """One row of the grid: inputs, the formula's value there and its derivative, None for regression."""

    inputs: dict[str, float | list[float]]
    value: float
    slope: float | None

    def __str__(self) -> str:
        said = ", ".join(f"{name} = {_short(value)}" for name, value in self.inputs.items())
        slope = "" if self.slope is None else f" and the slope {self.slope:.4g}"
        return f"at {said} the value is {self.value:.6g}{slope}"


def _short(value: float | list[float]) -> str:
    return f"({', '.join(f'{one:g}' for one in value)})" if isinstance(value, list) else f"{value:g}"


@dataclass(frozen=True)
class Verdict:
    """What was found about a formula. stage and reason: None where it passed all; where: the sweep that shows it.

    points: the counterexample, one row or two in a line. culprit: the subexpression that is no finite number, or the
    formula that was there before.
    """

    passed: bool
    stage: Stage | None = None
    reason: Reason | None = None
    where: str = ""
    points: tuple[Point, ...] = ()
    culprit: str = ""

    def __str__(self) -> str:
        """One sentence without its subject and its full stop."""
        if self.passed or self.reason is None:
            return "passes"
        where = f" ({self.where})" if self.where else ""
        culprit = f", because of {self.culprit}" if self.culprit else ""
        shown = f": {'; '.join(str(point) for point in self.points)}" if self.points else ""
        return f"{self.reason}{where}{culprit}{shown}"


def explain(formula: Formula, language: Language, finding: Finding, row: int) -> Verdict:
    """The finding of one formula, with the rows of the grid that show it."""
    places = grid(language)
    part = slice(row, row + finding.rows)
    inputs = {name: values[part] for name, values in places.inputs.items()}
    along = {name: values[part] for name, values in places.directions.items()}
    values, slopes = Graph([formula], language).evaluate(inputs, along)
    assert slopes is not None
    # of regression the slope along one edge says nothing, unless it is none
    told = language.branch == "cls" or finding.reason is Reason.GRADIENT_NOT_FINITE
    points = tuple(
        Point(places.row(row + k), float(values[0, k]), float(slopes[0, k]) if told else None)
        for k in range(finding.rows)
    )
    where = finding.where or next((s.name for s in places.sweeps if s.start <= row < s.stop), "")
    source = culprit(formula, language, inputs) if finding.reason is Reason.NOT_FINITE else None
    return Verdict(False, finding.stage, finding.reason, where, points, source.text if source else "")


def culprit(formula: Formula, language: Language, inputs: Inputs) -> Formula | None:
    """The smallest subexpression that is no finite number somewhere though what it is made of is; None: all are finite.

    inputs: as for `Graph.evaluate`, of at least one row.
    """
    # every subexpression is a formula; shorter ones first, so operands come before their operators
    parts = [Formula(formula.tokens[subtree(formula.tokens, start)]) for start in range(len(formula))]
    parts.sort(key=len)
    values, _ = Graph(parts, language).evaluate(inputs)
    bad = ~np.isfinite(values).all(1)
    return parts[int(bad.argmax())] if bad.any() else None
