"""The hyper-parameters s[level][bin]: how ground truths are grouped, and the numbers searched for the groups.

Source: Liu et al., HPS-Det, Eq. 1, section 4.2 and Table 5. "3,3,3,3,3" is one row of counts a pyramid level
with three aspect-ratio bins each; a single number is that many bins shared by all levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from detsearch_cli.errors import SpaceError
from detsearch_cli.search.space import Candidate, Integer, Product
from detsearch_cli.slots.assigners._dynamic_defaults import PAPER_EDGES

_NAMES: dict[int, tuple[str, ...]] = {
    3: ("wide", "square", "tall"),
    5: ("widest", "wide", "square", "tall", "tallest"),
}


@dataclass(frozen=True)
class Bins:
    """Groups of ground truths. edges: aspect-ratio (height / width) edges of every row, one fewer than bins.

    levels: the pyramid level of every row (3 for P3, stride 8); None: one row for all levels.
    """

    edges: tuple[tuple[float, ...], ...]
    levels: tuple[int, ...] | None

    @property
    def rows(self) -> tuple[int, ...]:
        """Number of bins of every row."""
        return tuple(len(edge) + 1 for edge in self.edges)

    @property
    def row_names(self) -> tuple[str, ...]:
        return ("all",) if self.levels is None else tuple(f"P{level}" for level in self.levels)

    def names(self) -> tuple[tuple[str, ...], ...]:
        """Names by row and bin: `P3.wide`, `P3`, `all.tall`; `P4.bin2` for other edges than the paper's."""
        return tuple(
            tuple(row + suffix for suffix in _suffixes(edge))
            for row, edge in zip(self.row_names, self.edges, strict=True)
        )

    def counts(self, candidate: Mapping[str, Any]) -> list[list[int]]:
        """The candidate's counts by row and bin. Raises SpaceError when it is no candidate of these bins."""
        wanted = {name for row in self.names() for name in row}
        if set(candidate) != wanted:
            odd = sorted(wanted ^ set(candidate))
            raise SpaceError(
                f"a candidate of bins {self} must set {len(wanted)} counts, differs in {odd[0]!r}"
            )
        return [[int(candidate[name]) for name in row] for row in self.names()]

    def candidate(self, counts: list[list[int]]) -> Candidate:
        """Candidate of these counts, inverse of `counts`. Raises SpaceError when the shape differs."""
        if tuple(len(row) for row in counts) != self.rows:
            raise SpaceError(f"counts of bins {self} must have that shape, got {counts}")
        return {
            name: int(count)
            for names, row in zip(self.names(), counts, strict=True)
            for name, count in zip(names, row, strict=True)
        }

    def __str__(self) -> str:
        return ",".join(map(str, self.rows))


def _suffixes(edges: tuple[float, ...]) -> tuple[str, ...]:
    if not edges:
        return ("",)
    bins = len(edges) + 1
    known = _NAMES.get(bins) if PAPER_EDGES.get(bins) == edges else None
    return tuple(f".{name}" for name in known or [f"bin{j + 1}" for j in range(bins)])


def parse_bins(text: str | None, levels: tuple[int, int], edges: tuple[float, ...] | None = None) -> Bins:
    """Read `--bins` for a detector with pyramid levels first..last.

    None: three bins a level, the paper's default, or what `edges` makes. A single number: bins shared by all
    levels. Rows of 1, 3 and 5 bins have the paper's edges unless `edges` is given, which then holds for every
    row of more than one bin. Raises SpaceError.
    """
    numbers = tuple(range(levels[0], levels[1] + 1))
    default = 3 if edges is None else len(edges) + 1
    rows = _read(text) if text is not None else (default,) * len(numbers)
    shared = text is not None and len(rows) == 1
    if not shared and len(rows) != len(numbers):
        raise SpaceError(
            f"bins must be one number, or one for each of the detector's {len(numbers)} levels "
            f"P{levels[0]} to P{levels[1]}, got {text!r}; "
            f"try {','.join([str(default)] * len(numbers))!r}"
        )
    return Bins(tuple(_edges(row, edges) for row in rows), None if shared else numbers)


def _read(text: str) -> tuple[int, ...]:
    try:
        rows = tuple(int(part) for part in text.split(","))
    except ValueError:
        rows = ()
    if not rows or min(rows) < 1:
        raise SpaceError(f"bins must be whole numbers of at least 1 such as '3,3,3,3,3' or '3', got {text!r}")
    return rows


def _edges(bins: int, edges: tuple[float, ...] | None) -> tuple[float, ...]:
    if bins == 1:
        return ()
    if edges is None:
        if bins not in PAPER_EDGES:
            raise SpaceError(
                f"{bins} bins need {bins - 1} aspect-ratio edges, only 1, 3 and 5 bins have the paper's; "
                f"give --edges"
            )
        return PAPER_EDGES[bins]
    if len(edges) != bins - 1:
        raise SpaceError(f"{bins} bins need {bins - 1} edges, got {len(edges)}: {_listed(edges)}")
    return edges


def parse_edges(text: str) -> tuple[float, ...]:
    """Read `--edges`: ascending aspect ratios such as `1/2,2` or `0.5,1,2`. Raises SpaceError."""
    try:
        edges = tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):  # 1e400
        edges = ()
    if not edges or edges[0] <= 0 or list(edges) != sorted(set(edges)):
        raise SpaceError(
            f"edges must be ascending positive ratios (height / width) such as '1/2,2', got {text!r}"
        )
    return edges


def bin_labels(edges: tuple[float, ...]) -> tuple[str, ...]:
    """What each bin holds, in height / width: `≤ 1/2`, `1/2 – 2`, `> 2`; `any` for a single bin."""
    if not edges:
        return ("any",)
    shown = [_ratio(edge) for edge in edges]
    between = [f"{low} – {high}" for low, high in pairwise(shown)]
    return (f"≤ {shown[0]}", *between, f"> {shown[-1]}")


def _ratio(edge: float) -> str:
    fraction = Fraction(edge).limit_denominator(10)
    return str(fraction) if abs(float(fraction) - edge) < 1e-9 else f"{edge:g}"


def _listed(edges: tuple[float, ...]) -> str:
    return ", ".join(map(_ratio, edges))


def build(bins: Bins, max_count: int) -> Product:
    """Whole numbers 1..max_count for every group. Raises SpaceError when max_count is below 1."""
    if max_count < 1:
        raise SpaceError(f"the largest count must be at least 1, got {max_count}; see --max-count")
    return Product(tuple(Integer(name, 1, max_count) for row in bins.names() for name in row))
