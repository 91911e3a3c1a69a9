"""Value and derivative of each operator on float64 arrays.

Source: Liu et al. 2021, Section 3.1; what the paper leaves open is the released code's: gd, alf, erf and erfc are
rescaled so that they run from 0 to 1 with slope 1/4 at 0, as sigmoid does; log adds 1e-20 to its operand and division
to its divisor, whatever its sign; exp is clamped at 88, where float32 ends.

Each function takes operands a, b and their derivatives da, db by the same variable (None: constant in it), and gives
the value and its derivative; the derivative of what is constant is never asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf as _erf

Array = NDArray[np.float64]
Slope = Array | None
EPSILON = 1e-20
LARGEST_EXPONENT = 88.0
_ROOT_PI = math.sqrt(math.pi)


def _sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def neg(a: Array, da: Slope) -> tuple[Array, Slope]:
    return -a, None if da is None else -da


def exp(a: Array, da: Slope) -> tuple[Array, Slope]:
    v = np.exp(np.minimum(a, LARGEST_EXPONENT))
    return v, None if da is None else np.where(a <= LARGEST_EXPONENT, v, 0.0) * da


def log(a: Array, da: Slope) -> tuple[Array, Slope]:
    shifted = a + EPSILON
    return np.log(shifted), None if da is None else da / shifted


def absolute(a: Array, da: Slope) -> tuple[Array, Slope]:
    return np.abs(a), None if da is None else np.sign(a) * da


def sqrt(a: Array, da: Slope) -> tuple[Array, Slope]:
    # at 0 the slope is infinite, and 0/0 where the operand rests there, as in a training
    v = np.sqrt(a)
    return v, None if da is None else da / (2 * v)


def softmax(a: Array, da: Slope) -> tuple[Array, Slope]:
    """Over the last axis, the columns."""
    v = np.exp(a - a.max(-1, keepdims=True))
    v /= v.sum(-1, keepdims=True)
    return v, None if da is None else v * (da - (v * da).sum(-1, keepdims=True))


def softplus(a: Array, da: Slope) -> tuple[Array, Slope]:
    v = np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a)))
    return v, None if da is None else _sigmoid(a) * da


def sigmoid(a: Array, da: Slope) -> tuple[Array, Slope]:
    v = _sigmoid(a)
    return v, None if da is None else v * (1 - v) * da


def gd(a: Array, da: Slope) -> tuple[Array, Slope]:
    """((2/pi) gd(pi a/4) + 1)/2 with gd(t) = 2 arctan(tanh(t/2))."""
    v = (4 / math.pi * np.arctan(np.tanh(math.pi / 8 * a)) + 1) / 2
    return v, None if da is None else da / (4 * np.cosh(math.pi / 4 * a))


def alf(a: Array, da: Slope) -> tuple[Array, Slope]:
    """((a/2)/sqrt(1 + (a/2)^2) + 1)/2."""
    half = a / 2
    square = 1 + half * half
    root = np.sqrt(square)
    return (half / root + 1) / 2, None if da is None else da / (4 * square * root)


def erf(a: Array, da: Slope) -> tuple[Array, Slope]:
    """(erf(sqrt(pi)/2 * a/2) + 1)/2."""
    inner = _ROOT_PI / 4 * a
    return (_erf(inner) + 1) / 2, None if da is None else np.exp(-inner * inner) / 4 * da


def erfc(a: Array, da: Slope) -> tuple[Array, Slope]:
    v, dv = erf(a, da)
    return 1 - v, None if dv is None else -dv


def tanh(a: Array, da: Slope) -> tuple[Array, Slope]:
    v = np.tanh(a)
    return v, None if da is None else (1 - v * v) * da


def relu(a: Array, da: Slope) -> tuple[Array, Slope]:
    return np.maximum(a, 0), None if da is None else (a > 0) * da


def sin(a: Array, da: Slope) -> tuple[Array, Slope]:
    return np.sin(a), None if da is None else np.cos(a) * da


def cos(a: Array, da: Slope) -> tuple[Array, Slope]:
    return np.cos(a), None if da is None else -np.sin(a) * da


def _sum(first: Slope, second: Slope) -> Slope:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def add(a: Array, da: Slope, b: Array, db: Slope) -> tuple[Array, Slope]:
    return a + b, _sum(da, db)


def subtract(a: Array, da: Slope, b: Array, db: Slope) -> tuple[Array, Slope]:
    return a - b, _sum(da, None if db is None else -db)


def multiply(a: Array, da: Slope, b: Array, db: Slope) -> tuple[Array, Slope]:
    return a * b, _sum(None if da is None else da * b, None if db is None else a * db)


def divide(a: Array, da: Slope, b: Array, db: Slope) -> tuple[Array, Slope]:
    divisor = b + EPSILON
    v = a / divisor
    return v, _sum(None if da is None else da / divisor, None if db is None else -v / divisor * db)


def dot(a: Array, da: Slope, b: Array, db: Slope) -> tuple[Array, Slope]:
    """The product summed over the last axis, the columns."""
    v, dv = multiply(a, da, b, db)
    return v.sum(-1), None if dv is None else dv.sum(-1)


OPERATORS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "neg": neg,
    "exp": exp,
    "log": log,
    "abs": absolute,
    "sqrt": sqrt,
    "softmax": softmax,
    "softplus": softplus,
    "sigmoid": sigmoid,
    "gd": gd,
    "alf": alf,
    "erf": erf,
    "erfc": erfc,
    "tanh": tanh,
    "relu": relu,
    "sin": sin,
    "cos": cos,
    "+": add,
    "-": subtract,
    "*": multiply,
    "/": divide,
    "dot": dot,
}
