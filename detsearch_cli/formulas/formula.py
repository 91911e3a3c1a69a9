"""One loss formula: an immutable tree in prefix order, with its printed forms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from detsearch_cli.formulas.language import ARITY
from detsearch_cli.formulas.writing import Dag, Token, dag, latex, text

MAX_NODES = 256
"""Operators, inputs and constants together; CSE-Autoloss-B's regression has 45."""
MAX_DEPTH = 64
"""Operators above each other. The longest path of CSE-Autoloss-B's regression has 8."""


@dataclass(frozen=True)
class Formula:
    """A loss formula. tokens: prefix order, as DEAP keeps its trees: operators and inputs are words, constants floats.

    A constant is finite and not negative: -2 is `neg` of 2. Two formulas are equal where their tokens are; those that
    differ in the order of commuting operands have the same `text` and the same node in a `Graph`.
    """

    tokens: tuple[Token, ...]

    @cached_property
    def text(self) -> str:
        """Canonical: `reading.parse` reads it back to the same graph, and formulas of one graph have one text."""
        return text(self.tokens)

    def latex(self) -> str:
        return latex(self.tokens)

    def dag(self) -> Dag:
        """Nodes and edges of the computation graph (Figure 1), shared subexpressions once."""
        return dag(self.tokens)

    @property
    def words(self) -> frozenset[str]:
        """Operators and inputs that occur."""
        return frozenset(token for token in self.tokens if isinstance(token, str))

    @property
    def depth(self) -> int:
        """Operators on the longest path from an input to the result; 0 for a single input."""
        stack: list[int] = []
        for token in reversed(self.tokens):
            below = [stack.pop() for _ in range(arity(token))]
            stack.append(1 + max(below) if below else 0)
        return stack[0]

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return self.text


def arity(token: Token) -> int:
    """Operands that a token takes: 0 for inputs and constants."""
    return ARITY.get(token, 0) if isinstance(token, str) else 0


def subtree(tokens: tuple[Token, ...], start: int) -> slice:
    """Where the subexpression that begins at `start` ends."""
    open_operands, end = 1, start
    while open_operands:
        open_operands += ARITY.get(tokens[end], 0) - 1  # type: ignore[arg-type]
        end += 1
    return slice(start, end)


def branch(*parts: Token | Iterable[Token]) -> tuple[Token, ...]:
    """Joins an operator and its operands, each a token or the tokens of a tree."""
    joined: list[Token] = []
    for part in parts:
        if isinstance(part, (str, float)):
            joined.append(part)
        else:
            joined.extend(part)
    return tuple(joined)
