"""Formulas as text, as LaTeX and as the graph of Figure 1; no recursion, so any depth can be printed."""

from __future__ import annotations

from dataclasses import dataclass

from detsearch_cli.formulas.language import ARITY, COMMUTATIVE

Token = str | float
"""An operator or input by its name, or a constant."""

_SUM, _PRODUCT, _SIGN, _ATOM = 1, 2, 3, 4
"""How tightly a text binds, as in Python: -a*b is (-a)*b."""
_BINDS = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT}
_WRITTEN = {"+": " + ", "-": " - ", "*": "*", "/": "/"}
_LATEX = {"sigmoid": r"\sigma", **{name: "\\" + name for name in ("log", "tanh", "sin", "cos")}}


def number(value: float) -> str:
    """The shortest text that reads back to the same number; whole numbers without a point."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def text(tokens: tuple[Token, ...]) -> str:
    """The canonical text: of commuting operands the larger stands first, then the alphabet decides."""
    stack: list[tuple[int, str, int]] = []  # number of nodes, text, how tightly it binds
    for token in reversed(tokens):
        below = [stack.pop() for _ in range(ARITY.get(token, 0))]  # type: ignore[arg-type]
        if token in COMMUTATIVE:
            below.sort(key=lambda operand: (-operand[0], operand[1]))
        size = 1 + sum(operand[0] for operand in below)
        stack.append((size, *_text_of(token, below)))
    return stack[0][1]


def _text_of(token: Token, below: list[tuple[int, str, int]]) -> tuple[str, int]:
    if not below:
        return (token if isinstance(token, str) else number(token)), _ATOM
    if token == "neg":
        return "-" + _within(below[0], _ATOM), _SIGN
    binds = _BINDS.get(token)  # type: ignore[arg-type]
    if binds is None:
        return f"{token}({', '.join(operand[1] for operand in below)})", _ATOM
    # a right operand that binds as tightly keeps its brackets: a - (b - c), and a + (b + c) is another tree
    left, right = _within(below[0], binds), _within(below[1], binds + 1)
    return f"{left}{_WRITTEN[token]}{right}", binds  # type: ignore[index]


def _within(operand: tuple[int, str, int], least: int) -> str:
    return operand[1] if operand[2] >= least else f"({operand[1]})"


def latex(tokens: tuple[Token, ...]) -> str:
    """LaTeX for mathematics mode, operands in the order they were written."""
    stack: list[tuple[str, int]] = []
    for token in reversed(tokens):
        below = [stack.pop() for _ in range(ARITY.get(token, 0))]  # type: ignore[arg-type]
        stack.append(_latex_of(token, below))
    return stack[0][0]


def _latex_of(token: Token, below: list[tuple[str, int]]) -> tuple[str, int]:
    inner = [operand[0] for operand in below]
    if not isinstance(token, str):
        return _latex_number(token), _ATOM
    match token:
        case "neg":
            # a product may follow a minus without brackets: the sign of a product is that of its first factor
            return f"-{_latex_within(below[0], _PRODUCT)}", _SUM
        case "+":
            return f"{inner[0]} + {_latex_within(below[1], _PRODUCT)}", _SUM
        case "-":
            return f"{inner[0]} - {_latex_within(below[1], _PRODUCT)}", _SUM
        case "*":
            sign = r" \cdot " if inner[1][0].isdigit() else r" \, "
            return f"{_latex_within(below[0], _PRODUCT)}{sign}{_latex_within(below[1], _PRODUCT)}", _PRODUCT
        case "/":
            return rf"\frac{{{inner[0]}}}{{{inner[1]}}}", _PRODUCT
        case "exp":
            return f"e^{{{inner[0]}}}", _ATOM
        case "sqrt":
            return rf"\sqrt{{{inner[0]}}}", _ATOM
        case "abs":
            return rf"\left|{inner[0]}\right|", _ATOM
    if not below:
        return token, _ATOM
    name = _LATEX.get(token, rf"\operatorname{{{token}}}")
    return rf"{name}\left({', '.join(inner)}\right)", _ATOM


def _latex_within(operand: tuple[str, int], least: int) -> str:
    return operand[0] if operand[1] >= least else rf"\left({operand[0]}\right)"


def _latex_number(value: float) -> str:
    mantissa, _, exponent = number(value).partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else mantissa


@dataclass(frozen=True)
class Dag:
    """A computation graph. labels: one a node, operands before their operator, the loss last.
    edges: (operand, operator) as indices of nodes; an operand that is used twice by one operator has two edges."""

    labels: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]


def dag(tokens: tuple[Token, ...]) -> Dag:
    """Each distinct subexpression of a formula is one node; commuting operands have no order."""
    known: dict[tuple[Token, ...], int] = {}
    stack: list[int] = []
    for token in reversed(tokens):
        below = [stack.pop() for _ in range(ARITY.get(token, 0))]  # type: ignore[arg-type]
        if token in COMMUTATIVE:
            below.sort()
        stack.append(known.setdefault((token, *below), len(known)))
    labels = tuple(key[0] if isinstance(key[0], str) else number(key[0]) for key in known)
    edges = tuple((int(operand), node) for key, node in known.items() for operand in key[1:])
    return Dag(labels, edges)
