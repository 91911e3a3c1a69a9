"""Loss formulas on tensors: by autograd, and value with slope at once where nearly every target is 0."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detsearch_cli.formulas.formula import Formula, arity
from detsearch_cli.formulas.operators import EPSILON, LARGEST_EXPONENT, OPERATORS

Expression = float | str | tuple[Any, ...]
"""A constant, an input, or an operator with its operands. Equal subexpressions are one object's value: tuples compare."""
Dual = tuple[Tensor, Tensor | None]
"""A value and its derivative by x, None where it is constant in it."""

PIECE = 16_384
"""Logits taken at once: all that a formula makes of them stays in the cache."""
_ROOT_PI = math.sqrt(math.pi)


def expression(formula: Formula, known: Mapping[str, float] | None = None) -> Expression:
    """The formula as a tree in which inputs that are `known` and all that follows from them are constants.

    What float32 would lose is written so that it does not: log(sigmoid(a)) as -softplus(-a), 1 - sigmoid(a) as sigmoid(-a).
    Both differ from the formula only where its own 1e-20 in log decides.
    """
    stack: list[Expression] = []
    for token in reversed(formula.tokens):
        if isinstance(token, str) and arity(token):
            stack.append(_simple(token, *(stack.pop() for _ in range(arity(token)))))
        else:
            stack.append((known or {}).get(token, token) if isinstance(token, str) else float(token))
    return stack[0]


def _simple(operator: str, *operands: Expression) -> Expression:
    if operator not in ("softmax", "dot") and all(isinstance(operand, float) for operand in operands):
        given = [x for operand in operands for x in (np.float64(operand), None)]  # type: ignore[arg-type]
        with np.errstate(all="ignore"):
            return float(OPERATORS[operator](*given)[0])
    match (operator, *operands):
        case ("+", 0.0, a) | ("+", a, 0.0) | ("-", a, 0.0) | ("*", 1.0, a) | ("*", a, 1.0) | ("/", a, 1.0):
            return a
        case ("*", 0.0, _) | ("*", _, 0.0) | ("/", 0.0, _):
            return 0.0
        case ("-", 0.0, a):
            return _simple("neg", a)
        case ("neg", ("neg", a)):
            return a
        case ("-", a, ("neg", b)):
            return _simple("+", a, b)
        case ("-", 1.0, ("sigmoid", a)):
            return _simple("sigmoid", _simple("neg", a))
        case ("log", ("sigmoid", a)):
            return _simple("neg", _simple("softplus", _simple("neg", a)))
    return (operator, *operands)


# ---------------------------------------------------------------------- by autograd


def value(tree: Expression, inputs: Mapping[str, Tensor]) -> Tensor:
    """The formula of these inputs, which broadcast; differentiable. Softmax and dot join the last axis."""
    like = next(iter(inputs.values()))
    known: dict[Expression, Any] = {}

    def of(node: Expression) -> Any:
        if node not in known:
            if isinstance(node, float):
                known[node] = like.new_tensor(node)
            elif isinstance(node, str):
                known[node] = inputs[node]
            else:
                known[node] = _VALUES[node[0]](*map(of, node[1:]))
        return known[node]

    found: Tensor = of(tree)
    return found


def _gd(a: Tensor) -> Tensor:
    return (4 / math.pi * torch.arctan(torch.tanh(math.pi / 8 * a)) + 1) / 2


def _alf(a: Tensor) -> Tensor:
    half = a / 2
    return (half * (1 + half * half).rsqrt() + 1) / 2


def _erf(a: Tensor) -> Tensor:
    return (torch.erf(_ROOT_PI / 4 * a) + 1) / 2


_VALUES: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "exp": lambda a: a.clamp(max=LARGEST_EXPONENT).exp(),
    "log": lambda a: (a + EPSILON).log(),
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "softmax": lambda a: a.softmax(-1),
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "gd": _gd,
    "alf": _alf,
    "erf": _erf,
    "erfc": lambda a: 1 - _erf(a),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sin": torch.sin,
    "cos": torch.cos,
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": lambda a, b: a / (b + EPSILON),
    "dot": lambda a, b: (a * b).sum(-1, keepdim=True),
}


# ---------------------------------------------------------------------- value and slope at once


def dual(tree: Expression, x: Tensor, inputs: Mapping[str, Tensor] | None = None) -> Dual:
    """Value of the formula of x (N,) and its derivative by it, without a graph. inputs: the others, (N,) each.

    Forward mode in one variable: every operator is met once, whatever is above it.
    """
    known: dict[Expression, Any] = {"x": (x, torch.ones_like(x))}

    def of(node: Expression) -> Any:
        if node not in known:
            if isinstance(node, float):
                known[node] = (node, None)
            elif isinstance(node, str):
                known[node] = ((inputs or {})[node], None)
            else:
                known[node] = _DUALS[node[0]](*map(of, node[1:]))
        return known[node]

    result, slope = of(tree)
    return (x.new_full(x.shape, result) if isinstance(result, float) else result), slope


def _chain(function: Callable[[Any], Tensor], slope: Callable[[Any, Tensor], Tensor]) -> Callable[[Any], Any]:
    """An operator of one operand a, of whose value v the derivative is slope(a, v)."""

    def both(operand: Any) -> Any:
        a, da = operand
        v = function(a)
        return v, None if da is None else slope(a, v) * da

    return both


def _sum(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _product(one: Any, other: Any) -> Any:
    (a, da), (b, db) = one, other
    return a * b, _sum(None if da is None else da * b, None if db is None else a * db)


def _quotient(one: Any, other: Any) -> Any:
    (a, da), (b, db) = one, other
    divisor = b + EPSILON
    v = a / divisor
    return v, _sum(None if da is None else da / divisor, None if db is None else -v / divisor * db)


_DUALS: dict[str, Callable[..., Any]] = {
    "neg": lambda a: (-a[0], None if a[1] is None else -a[1]),
    "exp": _chain(
        lambda a: a.clamp(max=LARGEST_EXPONENT).exp(), lambda a, v: torch.where(a <= LARGEST_EXPONENT, v, 0.0)
    ),
    "log": _chain(lambda a: (a + EPSILON).log(), lambda a, v: 1 / (a + EPSILON)),
    "abs": _chain(torch.abs, lambda a, v: a.sign()),
    "sqrt": _chain(torch.sqrt, lambda a, v: 0.5 / v),
    "softplus": _chain(F.softplus, lambda a, v: torch.sigmoid(a)),
    "sigmoid": _chain(torch.sigmoid, lambda a, v: v * (1 - v)),
    "gd": _chain(_gd, lambda a, v: 0.25 / torch.cosh(math.pi / 4 * a)),
    "alf": _chain(_alf, lambda a, v: 0.25 * (1 + a * a / 4) ** -1.5),
    "erf": _chain(_erf, lambda a, v: torch.exp(-math.pi / 16 * a * a) / 4),
    "erfc": _chain(lambda a: 1 - _erf(a), lambda a, v: -torch.exp(-math.pi / 16 * a * a) / 4),
    "tanh": _chain(torch.tanh, lambda a, v: 1 - v * v),
    "relu": _chain(torch.relu, lambda a, v: (a > 0).to(v)),
    "sin": _chain(torch.sin, lambda a, v: a.cos()),
    "cos": _chain(torch.cos, lambda a, v: -a.sin()),
    "+": lambda a, b: (a[0] + b[0], _sum(a[1], b[1])),
    "-": lambda a, b: (a[0] - b[0], _sum(a[1], None if b[1] is None else -b[1])),
    "*": _product,
    "/": _quotient,
}


def sum_and_slopes(tree: Expression, x: Tensor, slopes: Tensor) -> Tensor:
    """The sum of the formula over all of x (N,), in float64; `slopes` (N,) gets its derivative by each.

    Without a graph, and on a CPU in pieces that stay in the cache.
    """
    piece = PIECE if x.device.type == "cpu" else max(1, len(x))
    total = x.new_zeros((), dtype=torch.float64)
    for part, into in zip(x.split(piece), slopes.split(piece), strict=True):
        result, slope = dual(tree, part)
        total += result.sum(dtype=torch.float64)
        if slope is None:
            into.zero_()
        else:
            into.copy_(slope)
    return total
