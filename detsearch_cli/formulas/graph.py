"""A whole population of formulas as one graph: a subexpression that thousands share exists, and is computed, once.

Nodes are hash-consed: an operator over the same operands is the same node, whatever the order of commuting operands.
Evaluation runs over nodes sorted by depth and operator, so that all nodes of one operator at one depth are one numpy
call; it runs in blocks of rows small enough for the processor's cache. Derivatives come in the same pass, in forward
mode: each row has one direction in which its inputs move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.language import ARITY, COMMUTATIVE, Language
from detsearch_cli.formulas.operators import OPERATORS, Array
from detsearch_cli.formulas.writing import Token

Inputs = Mapping[str, Array]
"""Values of the inputs: (R,), or (R, C + 1) where the language has columns; in a graph with `own_inputs` (F, R)."""

_BLOCK_BYTES = 12_000_000
_LEAST_ROWS = 8
"""Blocks of less would pay more for the calls than for the arithmetic."""
_CODES = {name: code for code, name in enumerate(OPERATORS)}
_OVER_COLUMNS = (_CODES["softmax"], _CODES["dot"])
_FUNCTIONS = tuple(OPERATORS.values())


class _Operand(NamedTuple):
    """One operand of a group's nodes: places among the nodes of its shape, and whether it moves with the inputs."""

    places: NDArray[np.intp]
    columns: bool
    moves: bool


@dataclass(frozen=True)
class _Group:
    """Nodes of one operator at one depth, start to stop among the nodes of their shape."""

    operator: int
    start: int
    stop: int
    columns: bool
    operands: tuple[_Operand, ...]


class Graph:
    """Formulas interned together. roots (F,): the node of each formula; equal formulas have one root.

    own_inputs: every formula has inputs of its own, so only what is computed from constants is shared.
    """

    def __init__(self, formulas: Sequence[Formula], language: Language, own_inputs: bool = False) -> None:
        self.language = language
        self._known: dict[tuple[Token | int, ...], int] = {}
        if own_inputs:
            self._roots = [self._intern(f.tokens, owner) for owner, f in enumerate(formulas)]
        else:
            self._roots = [self._intern(f.tokens, -1) for f in formulas]
        self.roots = np.array(self._roots, dtype=np.intp)
        self._arrange()

    def __len__(self) -> int:
        """Nodes: distinct subexpressions."""
        return len(self._known)

    def _intern(self, tokens: tuple[Token, ...], owner: int) -> int:
        # the hottest loop of the filters: one dictionary of tuples, and nothing stored beside it
        known, arity, commutative = self._known, ARITY.get, COMMUTATIVE
        stack: list[int] = []
        key: tuple[Token | int, ...]
        for token in reversed(tokens):
            operands = arity(token, 0)  # type: ignore[arg-type]
            if operands == 2:
                a, b = stack.pop(), stack.pop()
                key = (token, b, a) if a > b and token in commutative else (token, a, b)
            elif operands == 1:
                key = (token, stack.pop())
            else:
                # a constant is everybody's; 2.0 and "x" never meet because their types differ
                key = (token, owner, owner, owner) if type(token) is str else (token, -1, -1, -1)
            stack.append(known.setdefault(key, len(known)))
        return stack[0]

    def _arrange(self) -> None:
        """Sorts nodes by depth, operator and shape, and gives each its place among the nodes of its shape."""
        keys = list(self._known)
        count = len(keys)
        leaf = np.fromiter((len(key) == 4 for key in keys), bool, count)
        code = np.fromiter((_CODES.get(key[0], 0) for key in keys), np.intp, count)  # type: ignore[arg-type]
        first = np.fromiter((key[1] if len(key) < 4 else 0 for key in keys), np.intp, count)
        second = np.fromiter(
            (key[2] if len(key) == 3 else key[1] if len(key) == 2 else 0 for key in keys), np.intp, count
        )
        depth, columns, moves = self._propagate(keys, leaf, code, first, second)
        kind = (
            (((depth * 32 + code) * 2 + columns[first]) * 2 + columns[second]) * 4
            + moves[first] * 2
            + moves[second]
        )
        order = np.lexsort((np.arange(count), kind))
        place = np.empty(count, np.intp)
        for shape in (False, True):
            own = order[columns[order] == shape]
            place[own] = np.arange(len(own))
        self._place, self._columns, self._moves = place, columns, moves
        self._leaves = [(key[0], int(key[1]), node) for node, key in enumerate(keys) if len(key) == 4]
        inner = order[~leaf[order]]
        edges = np.flatnonzero(np.diff(kind[inner], prepend=-1, append=-1))
        self._groups = []
        for begin, end in pairwise(edges):
            nodes = inner[begin:end]
            one = nodes[0]
            sides = (first, second)[: len(keys[one]) - 1]
            operands = tuple(
                _Operand(place[side[nodes]], bool(columns[side[one]]), bool(moves[side[one]]))
                for side in sides
            )
            start = int(place[one])
            self._groups.append(
                _Group(int(code[one]), start, start + len(nodes), bool(columns[one]), operands)
            )

    def _propagate(
        self,
        keys: list[tuple[Token | int, ...]],
        leaf: NDArray[np.bool_],
        code: NDArray[np.intp],
        first: NDArray[np.intp],
        second: NDArray[np.intp],
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.bool_]]:
        """Depth of every node, whether it has columns, and whether it moves with some input."""
        depth = np.zeros(len(keys), np.intp)
        known_as_input = np.fromiter((type(key[0]) is str for key in keys), bool, len(keys)) & leaf
        columns = known_as_input & self.language.columns
        movers = ("x",) if self.language.branch == "cls" else self.language.inputs
        moves = np.fromiter((key[0] in movers for key in keys), bool, len(keys)) & leaf
        joins = code == _CODES["dot"]
        # one pass a level of depth: operands stand before their operators, but not by level
        while True:
            deeper = np.where(leaf, 0, np.maximum(depth[first], depth[second]) + 1)
            columns = np.where(leaf, columns, (columns[first] | columns[second]) & ~joins)
            moves = np.where(leaf, moves, moves[first] | moves[second])
            if np.array_equal(deeper, depth):
                return depth, columns, moves
            depth = deeper

    def evaluate(
        self, inputs: Inputs, directions: Inputs | None = None, nodes: NDArray[np.intp] | None = None
    ) -> tuple[Array, Array | None]:
        """Values (F, R) of all formulas, or of the given nodes, and derivatives (F, R) where directions are given.

        directions: by how much each input moves in each row, of the inputs' shapes; an input without one rests. A
        formula of columns gives the sum over them. In a graph of classification only x may move. What is no number or
        infinite stays so, without a warning.
        """
        nodes = self.roots if nodes is None else nodes
        rows = next(iter(inputs.values())).shape[-1 - self.language.columns]
        values = np.empty((len(nodes), rows))
        slopes = None if directions is None else np.empty((len(nodes), rows))
        width = next(iter(inputs.values())).shape[-1] if self.language.columns else 1
        counts = [int((self._columns == shape).sum()) for shape in (False, True)]
        per_row = 8 * (counts[0] + counts[1] * width) * (1 if directions is None else 2)
        block = int(min(rows, max(_BLOCK_BYTES // max(per_row, 1), _LEAST_ROWS)))
        # one allocation for all blocks: fresh pages would cost as much as the arithmetic
        room = [np.empty(counts[0] * block), np.empty(counts[1] * block * width)]
        room_of_slopes = None if directions is None else [np.empty_like(flat) for flat in room]
        with np.errstate(all="ignore"):
            for begin in range(0, rows, block):
                part = slice(begin, min(begin + block, rows))
                size = part.stop - part.start
                # views without gaps: `take` would copy a whole array that has some
                shapes = ((counts[0], size), (counts[1], size, width))
                now = [flat[: prod(own)].reshape(own) for flat, own in zip(room, shapes, strict=True)]
                moved = None
                if room_of_slopes is not None:
                    moved = [
                        flat[: prod(own)].reshape(own)
                        for flat, own in zip(room_of_slopes, shapes, strict=True)
                    ]
                self._fill(now, moved, inputs, directions, part)
                self._collect(nodes, now, values[:, part])
                if moved is not None and slopes is not None:
                    self._collect(nodes, moved, slopes[:, part])
                    slopes[~self._moves[nodes], part] = 0
        return values, slopes

    def _fill(
        self,
        now: list[Array],
        moved: list[Array] | None,
        inputs: Inputs,
        directions: Inputs | None,
        part: slice,
    ) -> None:
        """Computes all nodes for the rows of a block."""
        for token, owner, node in self._leaves:
            place, shape = self._place[node], int(self._columns[node])
            if not isinstance(token, str):
                now[shape][place] = token
                continue
            now[shape][place] = inputs[token][part] if owner == -1 else inputs[token][owner, part]
            if moved is not None and directions is not None and self._moves[node]:
                along = directions.get(token)
                # a block before may have left something else here
                moved[shape][place] = (
                    0 if along is None else along[part] if owner == -1 else along[owner, part]
                )
        for group in self._groups:
            given: list[Array | None] = []
            mixed = len({operand.columns for operand in group.operands}) > 1
            for operand in group.operands:
                a = now[operand.columns].take(operand.places, 0)
                da = moved[operand.columns].take(operand.places, 0) if moved and operand.moves else None
                if mixed and not operand.columns:
                    a, da = a[..., None], None if da is None else da[..., None]
                given += [a, da]
            single = group.operator in _OVER_COLUMNS and not any(
                operand.columns for operand in group.operands
            )
            if single:  # one value a row is a single column
                given = [None if array is None else array[..., None] for array in given]
            value, slope = _FUNCTIONS[group.operator](*given)
            if single and value.ndim == 3:  # dot has joined the columns itself
                value, slope = value[..., 0], None if slope is None else slope[..., 0]
            now[group.columns][group.start : group.stop] = value
            if moved is not None and slope is not None:
                moved[group.columns][group.start : group.stop] = slope

    def _collect(self, nodes: NDArray[np.intp], computed: list[Array], into: Array) -> None:
        """Copies nodes out of a block; columns are summed."""
        place, columns = self._place[nodes], self._columns[nodes]
        into[~columns] = computed[0].take(place[~columns], 0)
        if columns.any():
            into[columns] = computed[1].take(place[columns], 0).sum(-1)


def evaluate(
    formulas: Sequence[Formula], language: Language, inputs: Inputs, directions: Inputs | None = None
) -> tuple[Array, Array | None]:
    """Values (F, R) and derivatives (F, R) of a few formulas; `Graph.evaluate` has the details."""
    return Graph(formulas, language).evaluate(inputs, directions)
