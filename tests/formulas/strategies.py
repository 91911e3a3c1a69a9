"""Random formulas for hypothesis, and the operators once more in PyTorch, written from the paper and the facts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.language import ARITY, Language

steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""The same examples each time, however busy the machine."""
numbers = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5, 1e-20, 1e300, 123456789.25]),
    st.floats(min_value=0, allow_infinity=False, allow_nan=False),
)


def formulas(
    language: Language, leaves: int = 12, constants: st.SearchStrategy = numbers
) -> st.SearchStrategy:
    """Trees of the language as formulas."""
    leaf = st.one_of(st.sampled_from(language.inputs), constants).map(lambda token: (token,))

    def grown(below: st.SearchStrategy) -> st.SearchStrategy:
        unary = st.tuples(st.sampled_from(language.unary), below).map(lambda p: (p[0], *p[1]))
        binary = st.tuples(st.sampled_from(language.binary), below, below)
        return st.one_of(unary, binary.map(lambda p: (p[0], *p[1], *p[2])))

    return st.recursive(leaf, grown, max_leaves=leaves).map(Formula)


def half(curve: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda a: (curve(a) + 1) / 2


TORCH: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "exp": lambda a: torch.exp(a.clamp(max=88)),
    "log": lambda a: torch.log(a + 1e-20),
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "softmax": lambda a: torch.softmax(a, -1),
    "softplus": torch.nn.functional.softplus,
    "sigmoid": torch.sigmoid,
    "gd": half(lambda a: 2 / math.pi * 2 * torch.atan(torch.tanh(math.pi * a / 4 / 2))),
    "alf": half(lambda a: a / 2 / torch.sqrt(1 + (a / 2) ** 2)),
    "erf": half(lambda a: torch.erf(math.sqrt(math.pi) / 2 * a / 2)),
    "erfc": lambda a: 1 - TORCH["erf"](a),
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sin": torch.sin,
    "cos": torch.cos,
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": lambda a, b: a / (b + 1e-20),
    "dot": lambda a, b: (a * b).sum(-1, keepdim=True),
}


def in_torch(formula: Formula, inputs: dict[str, Tensor]) -> Tensor:
    """A formula by recursion on its tokens; scalars are (1,)."""

    def walk(at: int) -> tuple[Tensor, int]:
        token = formula.tokens[at]
        if not isinstance(token, str):
            return torch.full((1,), token, dtype=torch.float64), at + 1
        if token in inputs:
            return inputs[token], at + 1
        operands, at = [], at + 1
        for _ in range(ARITY[token]):
            value, at = walk(at)
            operands.append(value)
        return TORCH[token](*operands), at

    return walk(0)[0]
