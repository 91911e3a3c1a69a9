"""What a loss formula may be written in: inputs, operators and constants of each branch.

Source: Liu et al. 2021, Section 3.1. The smaller operator set of the regression search is the released code's.

The inputs, and what they hold:
one stage    x the logit, y its target in {0, 1}, w the IoU of a positive and 1 elsewhere; one value an entry.
two stages   the same with C + 1 columns a box, background included: y one-hot, w the IoU in the column of a positive
             box's own class and 1 elsewhere. The loss of a box is the sum over what columns are left.
regression   i, u, e: areas of intersection, union and enclosing box, in px^2 or strides^2; one value a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEAST_IOU = 1e-7
"""w is never smaller, so that a formula may divide by it."""


@dataclass(frozen=True)
class Language:
    """Inputs and operators of one branch. columns: the inputs hold C + 1 columns a box, which dot and softmax join."""

    name: Literal["one-stage", "two-stage", "regression"]
    branch: Literal["cls", "reg"]
    inputs: tuple[str, ...]
    unary: tuple[str, ...]
    binary: tuple[str, ...]
    columns: bool = False

    @property
    def words(self) -> frozenset[str]:
        """Every name that a formula of this language may hold."""
        return frozenset((*self.inputs, *self.unary, *self.binary)) - SIGNS


SIGNS = frozenset({"neg", "+", "-", "*", "/"})
"""Operators that are written as signs, not as calls."""
ARITY = {
    **dict.fromkeys(
        ("neg", "exp", "log", "abs", "sqrt", "softmax", "softplus", "sigmoid", "gd", "alf", "erf", "erfc"), 1
    ),
    **dict.fromkeys(("tanh", "relu", "sin", "cos"), 1),
    **dict.fromkeys(("+", "-", "*", "/", "dot"), 2),
}
COMMUTATIVE = frozenset({"+", "*", "dot"})
CONSTANTS = (1.0, 2.0, 3.0)
"""What a search draws (Section 3.1); a reader accepts any finite number."""

_SIGNED = ("+", "-", "*", "/")
_CURVES = ("softplus", "sigmoid", "gd", "alf", "erf", "erfc", "tanh", "relu", "sin", "cos")

ONE_STAGE = Language(
    "one-stage", "cls", ("x", "y", "w"), ("neg", "exp", "log", "abs", "sqrt", *_CURVES), _SIGNED
)
TWO_STAGE = Language(
    "two-stage",
    "cls",
    ("x", "y", "w"),
    (*ONE_STAGE.unary, "softmax"),
    (*_SIGNED, "dot"),
    columns=True,
)
REGRESSION = Language(
    "regression",
    "reg",
    ("i", "u", "e"),
    ("neg", "exp", "log", "abs", "sqrt", "softplus", "sigmoid", "tanh", "relu", "sin", "cos"),
    _SIGNED,
)
LANGUAGES = (ONE_STAGE, TWO_STAGE, REGRESSION)
