"""Which formulas of a population can be losses, and for each that cannot the stage, the reason and a counterexample.

Source: Liu et al. 2021, Sections 3.2.1 (validity), 3.2.2 (properties). Formulas that are one function up to an added
constant are one loss; a factor makes another, because it balances the branches.

`run` filters a population; `examine` says of one formula which properties hold.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detsearch_cli.formulas.formula import Formula, subtree
from detsearch_cli.formulas.graph import Graph, Inputs
from detsearch_cli.formulas.grids import Grid, Mask, grid
from detsearch_cli.formulas.language import Language
from detsearch_cli.formulas.operators import Array
from detsearch_cli.formulas.properties import Finding, Reason, Stage, shape, validity

STAGES = (Stage.VALIDITY, Stage.MONOTONICITY, Stage.DISTANCE, Stage.DUPLICATE)
_AT_A_TIME = 100_000
DIGITS = 20
"""Binary digits of a function's fingerprint, counted from its largest derivative."""


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


@dataclass(frozen=True)
class Filtered:
    """A population after its filters. kept: indices of the formulas that passed, in order, and fingerprints of their
    functions. distinct: formulas that differ as graphs. seconds: processor time of interning, evaluation, each stage.

    Verdicts are made when asked for: sentences about ten thousand formulas would take longer than the filters.
    """

    formulas: Sequence[Formula]
    language: Language
    kept: Mapping[int, str]
    distinct: int
    seconds: Mapping[str, float]
    _found: Sequence[Finding | None] = field(repr=False)
    _rows: NDArray[np.intp] = field(repr=False)
    _node_of: NDArray[np.intp] = field(repr=False)
    _before: Mapping[int, str] = field(repr=False)

    def removed(self) -> Counter[Stage]:
        """How many formulas each stage has removed."""
        found = (self._found[node] for node in self._node_of.tolist())
        counted = Counter(finding.stage for finding in found if finding is not None)
        counted[Stage.DUPLICATE] = len(self._before)
        return counted

    def verdict(self, index: int) -> Verdict:
        """Why a formula was removed, or that it was kept."""
        if index in self._before:
            return Verdict(False, Stage.DUPLICATE, Reason.DUPLICATE, culprit=self._before[index])
        node = int(self._node_of[index])
        finding = self._found[node]
        if finding is None:
            return Verdict(True)
        return _verdict(self.formulas[index], self.language, finding, int(self._rows[node]))


def check(formulas: Sequence[Formula], language: Language) -> list[Verdict]:
    """The verdict of stages 1 to 4 on each formula."""
    filtered = run(formulas, language)
    return [filtered.verdict(index) for index in range(len(formulas))]


def run(
    formulas: Sequence[Formula],
    language: Language,
    stages: Collection[Stage] = STAGES,
    seen: Mapping[str, str] = MappingProxyType({}),
) -> Filtered:
    """Filters a population. stages: which of the first four. seen: fingerprints of functions that are there already,
    and how they are written.

    Of formulas that are one function the first is kept.
    """
    clock = _Clock()
    graph = Graph(formulas, language)
    # formulas of one node share their verdict, so only distinct ones are looked at
    nodes, node_of = np.unique(graph.roots, return_inverse=True)
    clock.lap("interning")
    places = grid(language)
    values, slopes = graph.evaluate(places.inputs, places.directions, nodes)
    clock.lap("evaluation")
    found: list[Finding | None] = [None] * len(nodes)
    rows = np.zeros(len(nodes), np.intp)
    left = np.arange(len(nodes))
    for stage, look in _looks(places):
        if stage in stages:
            # a few hundred at a time, which the processor's cache holds
            parts = np.array_split(left, len(left) * places.rows // _AT_A_TIME + 1)
            passed = [_passed(look(values[part], _at(slopes, part)), part, found, rows) for part in parts]
            left = left[np.concatenate(passed)]
        clock.lap(stage)
    keys = dict(zip(left.tolist(), _fingerprints(values[left], _at(slopes, left)), strict=True))
    kept: dict[int, str] = {}
    before: dict[int, str] = {}
    written = dict(seen)
    for index, node in enumerate(node_of.tolist()):
        key = keys.get(node)
        if key is None:
            continue
        if Stage.DUPLICATE in stages and key in written:
            before[index] = written[key]
        else:
            kept[index] = key
            written[key] = f"formula {index} of this population"
    clock.lap(Stage.DUPLICATE)
    return Filtered(formulas, language, kept, len(nodes), clock.seconds, found, rows, node_of, before)


def examine(formula: Formula, language: Language) -> list[Verdict]:
    """Every property of stages 1 to 3 by itself, passed or not; those of later stages only of a valid formula."""
    places = grid(language)
    values, slopes = Graph([formula], language).evaluate(places.inputs, places.directions)
    verdicts: list[Verdict] = []
    for _, look in _looks(places):
        for finding in look(values, slopes):
            failed = _verdict(formula, language, finding, int(finding.row[0]))
            held = Verdict(True, finding.stage, finding.reason, finding.where)
            verdicts.append(failed if finding.failed[0] else held)
        if not all(verdict.passed for verdict in verdicts):
            break
    return verdicts


def _at(array: Array | None, rows: NDArray[np.intp]) -> Array | None:
    return None if array is None else array[rows]


class _Clock:
    """Processor time of what was done since the last lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self.seconds[name] = now - self._last
        self._last = now


_Look = Callable[[Array, Array | None], Iterable[Finding]]


def _looks(places: Grid) -> list[tuple[Stage, _Look]]:
    """Stages 1 to 3 of a language, in order: classification has no third, regression no second."""
    later = Stage.DISTANCE if places.directions is None else Stage.MONOTONICITY
    return [(Stage.VALIDITY, validity), (later, partial(shape, places))]


def _passed(
    findings: Iterable[Finding], nodes: NDArray[np.intp], found: list[Finding | None], rows: NDArray[np.intp]
) -> Mask:
    """Which formulas have every property; of the others the first that fails is noted for their node."""
    passed = np.ones(len(nodes), bool)
    for finding in findings:
        new = np.flatnonzero(finding.failed & passed)
        rows[nodes[new]] = finding.row[new]
        for node in nodes[new].tolist():
            found[node] = finding
        passed[new] = False
    return passed


def _fingerprints(values: Array, slopes: Array | None) -> list[str]:
    """Of each function up to an added constant, the same in every process: of derivatives (F, R), or of the differences
    from the first value where there are none, rounded to some binary digits of the largest.
    """
    curve = values - values[:, :1] if slopes is None else slopes
    largest = np.abs(curve).max(1, initial=0.0)
    # the factor moves the steps of the scale away from powers of 2, where CE's slope and many others end
    exponent = np.frexp(largest * 1.37)[1]
    rounded = np.rint(np.ldexp(curve, (DIGITS - exponent)[:, None])).astype(np.int32)
    return [
        blake2b(row.tobytes() + int(power).to_bytes(4, "little", signed=True), digest_size=12).hexdigest()
        for row, power in zip(rounded, exponent, strict=True)
    ]


def _verdict(formula: Formula, language: Language, finding: Finding, row: int) -> Verdict:
    """The finding of one formula, with the rows of the grid that show it."""
    places = grid(language)
    part = slice(row, row + finding.rows)
    inputs = {name: values[part] for name, values in places.inputs.items()}
    along = (
        None
        if places.directions is None
        else {name: values[part] for name, values in places.directions.items()}
    )
    values, slopes = Graph([formula], language).evaluate(inputs, along)
    points = tuple(
        Point(places.row(row + k), float(values[0, k]), None if slopes is None else float(slopes[0, k]))
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
