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

import numpy as np
from numpy.typing import NDArray

from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.graph import Graph
from detsearch_cli.formulas.grids import Grid, Mask, grid
from detsearch_cli.formulas.language import Language
from detsearch_cli.formulas.library import initial
from detsearch_cli.formulas.operators import Array
from detsearch_cli.formulas.properties import Finding, Reason, Stage, gradient, shape, validity
from detsearch_cli.formulas.simulation import simulate
from detsearch_cli.formulas.verdicts import Verdict, explain

STAGES = (Stage.VALIDITY, Stage.MONOTONICITY, Stage.DISTANCE, Stage.DUPLICATE)
_AT_A_TIME = 100_000
LEARNS = 0.5
"""Of the initial loss's score in the simulation."""
DIGITS = 20
"""Binary digits of a function's fingerprint, counted from its largest derivative."""


@dataclass(frozen=True)
class Filtered:
    """A population after its filters. kept: indices of the formulas that passed, in order, and fingerprints of their
    functions. scores: of those that were simulated. distinct: formulas that differ as graphs. seconds: processor time
    of interning, evaluation and each stage.

    Verdicts are made when asked for: sentences about ten thousand formulas would take longer than the filters.
    """

    formulas: Sequence[Formula]
    language: Language
    kept: Mapping[int, str]
    scores: Mapping[int, float]
    distinct: int
    seconds: Mapping[str, float]
    _found: Sequence[Finding | None] = field(repr=False)
    _rows: NDArray[np.intp] = field(repr=False)
    _node_of: NDArray[np.intp] = field(repr=False)
    _before: Mapping[int, str | int] = field(repr=False)

    def removed(self) -> Counter[Stage]:
        """How many formulas each stage has removed."""
        found = (self._found[node] for node in self._node_of.tolist())
        counted = Counter(finding.stage for finding in found if finding is not None)
        counted[Stage.DUPLICATE] = len(self._before)
        counted[Stage.SIMULATION] = len(self.formulas) - counted.total() - len(self.kept)
        return counted

    def verdict(self, index: int) -> Verdict:
        """Why a formula was removed, or that it was kept."""
        if index in self._before:
            other = self._before[index]
            text = other if isinstance(other, str) else self.formulas[other].text
            return Verdict(False, Stage.DUPLICATE, Reason.DUPLICATE, culprit=text)
        node = int(self._node_of[index])
        finding = self._found[node]
        if finding is None:
            learnt = index in self.kept
            return Verdict(True) if learnt else Verdict(False, Stage.SIMULATION, Reason.DOES_NOT_LEARN)
        return explain(self.formulas[index], self.language, finding, int(self._rows[node]))


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
    """Filters a population. stages: which run; the first always does. seen: fingerprints of functions that are there
    already, and how they are written.

    Of formulas that are one function the first is kept. The simulation drops what scores less than a part of the loss
    that searches begin with.
    """
    clock = _Clock()
    graph = Graph(formulas, language)
    # formulas of one node share their verdict, so only distinct ones are looked at
    nodes, first, node_of = np.unique(graph.roots, return_index=True, return_inverse=True)
    clock.lap("interning")
    places = grid(language)
    values, slopes = _evaluated(graph, places, nodes)
    clock.lap("evaluation")
    found: list[Finding | None] = [None] * len(nodes)
    rows = np.zeros(len(nodes), np.intp)
    left = np.arange(len(nodes))
    for stage, look in _looks(places):
        if stage in stages or stage is Stage.VALIDITY:
            # a few hundred at a time, which the processor's cache holds
            parts = np.array_split(left, len(left) * places.rows // _AT_A_TIME + 1)
            passed = [_passed(look(values[part], _at(slopes, part)), part, found, rows) for part in parts]
            left = left[np.concatenate(passed)]
        clock.lap(stage)
    if language.branch == "reg" and len(left):
        # derivatives double the work, so they wait until few are left
        alive = [formulas[index] for index in first[left]]
        left = left[_passed([_gradient(alive, places)], left, found, rows)]
        clock.lap("gradients")
    keys = dict(zip(left.tolist(), _fingerprints(values[left], _at(slopes, left)), strict=True))
    kept, before = _without_duplicates(node_of, keys, seen if Stage.DUPLICATE in stages else None)
    clock.lap(Stage.DUPLICATE)
    scores: dict[int, float] = {}
    if Stage.SIMULATION in stages:
        wanted = simulate([*(formulas[index] for index in kept), initial(language)], language).tolist()
        scores = dict(zip(kept, wanted, strict=False))
        kept = {index: key for index, key in kept.items() if scores[index] >= LEARNS * wanted[-1]}
        clock.lap(Stage.SIMULATION)
    return Filtered(formulas, language, kept, scores, len(nodes), clock.seconds, found, rows, node_of, before)


def examine(formula: Formula, language: Language) -> list[Verdict]:
    """Every property of stages 1 to 3 by itself, passed or not; those of later stages only of a valid formula."""
    places = grid(language)
    values, slopes = _evaluated(Graph([formula], language), places)
    valid = [*validity(values, slopes)]
    if language.branch == "reg":
        valid.append(_gradient([formula], places))
    later = [] if any(finding.failed[0] for finding in valid) else [*shape(places, values, slopes)]
    return [
        explain(formula, language, finding, int(finding.row[0]))
        if finding.failed[0]
        else Verdict(True, finding.stage, finding.reason, finding.where)
        for finding in (*valid, *later)
    ]


def _evaluated(
    graph: Graph, places: Grid, nodes: NDArray[np.intp] | None = None
) -> tuple[Array, Array | None]:
    """Values and, where properties need them, derivatives: those of regression look at values only."""
    return graph.evaluate(places.inputs, places.directions if graph.language.branch == "cls" else None, nodes)


def _gradient(formulas: Sequence[Formula], places: Grid) -> Finding:
    slopes = Graph(formulas, places.language).evaluate(places.inputs, places.directions)[1]
    assert slopes is not None
    return gradient(slopes)


def _without_duplicates(
    node_of: NDArray[np.intp], keys: Mapping[int, str], seen: Mapping[str, str] | None
) -> tuple[dict[int, str], dict[int, str | int]]:
    """Formulas whose nodes have a fingerprint: those to keep, and for the others the text or index of the one before.

    seen: None keeps all.
    """
    kept: dict[int, str] = {}
    before: dict[int, str | int] = {}
    there: dict[str, str | int] = dict(seen or {})
    for index, node in enumerate(node_of.tolist()):
        key = keys.get(node)
        if key is None:
            continue
        if seen is not None and key in there:
            before[index] = there[key]
        else:
            kept[index] = key
            there[key] = index
    return kept, before


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
    later = Stage.DISTANCE if places.language.branch == "reg" else Stage.MONOTONICITY
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
