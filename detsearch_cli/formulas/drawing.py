"""Formulas at random, and small changes of one: what the filters are measured with.

Source: Liu et al. 2021, Section 3.2.1. Random is `random.Random`: numpy's generators take longer for a single number
than a whole mutation may.
"""

from __future__ import annotations

from random import Random

from detsearch_cli.formulas.formula import Formula, arity, subtree
from detsearch_cli.formulas.language import CONSTANTS, Language
from detsearch_cli.formulas.writing import Token

_CONSTANT, _LEAF, _UNARY = 0.25, 0.2, 0.45
"""Chances that a leaf is a constant, that a branch ends early, and that an operator takes one operand."""


def random_formula(rng: Random, language: Language, depth: int) -> Formula:
    """A formula of at most this depth, an operator at its root."""
    return Formula(tuple(_grow(rng, language, max(depth, 1), [], root=True)))


def _grow(
    rng: Random, language: Language, depth: int, tokens: list[Token], root: bool = False
) -> list[Token]:
    if depth == 0 or (not root and rng.random() < _LEAF):
        tokens.append(_leaf(rng, language))
        return tokens
    if rng.random() < _UNARY:
        tokens.append(rng.choice(language.unary))
        return _grow(rng, language, depth - 1, tokens)
    tokens.append(rng.choice(language.binary))
    _grow(rng, language, depth - 1, tokens)
    return _grow(rng, language, depth - 1, tokens)


def mutate(formula: Formula, rng: Random, language: Language) -> Formula:
    """A subexpression replaced by a small random one, an operator by another, or an operator put above a subexpression."""
    tokens = formula.tokens
    at = rng.randrange(len(tokens))
    kind = rng.random()
    if kind < 0.4:
        part = subtree(tokens, at)
        return Formula((*tokens[:at], *_grow(rng, language, rng.randrange(3), []), *tokens[part.stop :]))
    if kind < 0.8:
        return Formula((*tokens[:at], _like(tokens[at], rng, language), *tokens[at + 1 :]))
    return Formula((*tokens[:at], rng.choice(language.unary), *tokens[at:]))


def _like(token: Token, rng: Random, language: Language) -> Token:
    """Another token with as many operands."""
    operands = arity(token)
    if operands:
        return rng.choice(language.unary if operands == 1 else language.binary)
    return _leaf(rng, language)


def _leaf(rng: Random, language: Language) -> Token:
    return rng.choice(CONSTANTS) if rng.random() < _CONSTANT else rng.choice(language.inputs)
