"""Reads a formula that somebody else wrote: checked before Python's parser sees it, then a whitelist, never `eval`.

The text is scanned once: its length, characters, words, numbers, depth of brackets and number of nodes. What is left
holds only known words, numbers, `+ - * /`, brackets and commas, so `ast.parse` can neither be made to crash nor to
take long. Raises `FormulaError` in one sentence that points at the place; places count characters from 1.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata

from detsearch_cli.errors import FormulaError
from detsearch_cli.formulas.formula import MAX_DEPTH, MAX_NODES, Formula
from detsearch_cli.formulas.language import ARITY, LANGUAGES, SIGNS, Language
from detsearch_cli.formulas.writing import Token

MAX_CHARACTERS = 4_000
MAX_BRACKETS = 64
_SHOWN = 24
"""Characters of a stranger's word that an error repeats."""

_PIECE = re.compile(
    r"(?P<space>[ \t\r\n]+)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign>\*\*|//|[-+*/])|(?P<open>\()|(?P<close>\))|(?P<comma>,)",
    re.ASCII,
)
_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def parse(text: str, language: Language) -> Formula:
    """The formula that a text writes down. Raises FormulaError where it is none of this language."""
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(
            f"a formula has at most {MAX_CHARACTERS} characters, this one has {len(text)}; write a shorter one"
        )
    _scan(text, language)
    try:
        tree = ast.parse(re.sub(r"\s", " ", text).strip(" "), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as odd:
        place = _stripped(text) + (getattr(odd, "offset", None) or 1)
        raise FormulaError(
            f"{_quoted(text)} cannot be read as a formula at character {place}: an operator, an operand or a "
            "bracket is missing there"
        ) from None
    tokens: list[Token] = []
    _walk(tree.body, language, tokens, 0, _stripped(text))
    return Formula(tuple(tokens))


def _stripped(text: str) -> int:
    """Characters before the formula itself begins."""
    return len(text) - len(text.lstrip())


def _scan(text: str, language: Language) -> None:
    """Refuses every character, word and number from outside, too many brackets and too many nodes."""
    depth = nodes = at = 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise FormulaError(_stranger(text[at], at + 1))
        kind, said = piece.lastgroup, piece.group()
        if kind == "word" and said not in language.words:
            raise FormulaError(_unknown(said, at + 1, language))
        if said in ("**", "//"):
            raise FormulaError(
                f"'{said}' at character {at + 1} is no operator of formulas, which have + - * /; for a power "
                "write the factor as often as it counts"
            )
        if kind == "number":
            _number(said, at + 1)
        depth += (kind == "open") - (kind == "close")
        nodes += kind in ("number", "word", "sign")
        if depth > MAX_BRACKETS:
            raise FormulaError(
                f"brackets may be open {MAX_BRACKETS} deep, the one at character {at + 1} is deeper; write a "
                "flatter formula"
            )
        at = piece.end()
    if not nodes:
        raise FormulaError("a formula is empty; write one, such as -y*log(sigmoid(x))")
    if nodes > MAX_NODES:
        raise FormulaError(
            f"a formula has at most {MAX_NODES} operators, inputs and constants, this one has {nodes}; write a shorter "
            "one"
        )


def _number(said: str, place: int) -> float:
    value = float(said)  # thousands of digits are read in microseconds, other than as an integer
    if not math.isfinite(value):
        raise FormulaError(
            f"the number {said[:_SHOWN]} at character {place} is infinite in double precision; write a smaller one"
        )
    return value


def _stranger(character: str, place: int) -> str:
    """About a character that no formula holds, by its name where it may look like one that does."""
    if character.isascii() and character.isprintable():
        return (
            f"'{character}' at character {place} has no meaning in a formula, which holds names, numbers, + - * /, "
            "brackets and commas; remove it"
        )
    name = unicodedata.name(character, f"the control character U+{ord(character):04X}")
    return f"{name} at character {place} is no character of a formula; write the plain letter or sign it looks like"


def _unknown(word: str, place: int, language: Language) -> str:
    """About a word that this language has not, which another one may have."""
    shown = word if len(word) <= _SHOWN else word[:_SHOWN] + "..."
    homes = [other.name for other in LANGUAGES if word in other.words]
    known = f"inputs {', '.join(language.inputs)} and functions {', '.join(sorted(language.words - {*language.inputs}))}"
    what = f"belongs to {' and '.join(homes)} formulas" if homes else "is unknown"
    return f"'{shown}' at character {place} {what}; a {language.name} formula has the {known}"


def _quoted(text: str) -> str:
    shown = " ".join(text.split())
    return f"'{shown if len(shown) <= 60 else shown[:57] + '...'}'"


def _walk(node: ast.expr, language: Language, tokens: list[Token], depth: int, before: int) -> None:
    """Appends the tokens of a node in prefix order. Whatever is not named here is refused."""
    place = before + node.col_offset + 1
    if depth > MAX_DEPTH:
        raise FormulaError(
            f"operators may stand {MAX_DEPTH} above each other, the one at character {place} stands higher; write a "
            "flatter formula"
        )
    match node:
        case ast.Constant(value=int() | float() as value):
            tokens.append(float(value))  # True and False are words, refused above
        case ast.Name(id=word) if word in language.inputs:
            tokens.append(word)
        case ast.Name(id=word):
            raise FormulaError(f"'{word}' at character {place} is a function; write {word}(...)")
        case ast.UnaryOp(op=ast.UAdd()):
            _walk(node.operand, language, tokens, depth + 1, before)
        case ast.UnaryOp(op=ast.USub()):
            tokens.append("neg")
            _walk(node.operand, language, tokens, depth + 1, before)
        case ast.BinOp() if type(node.op) in _BINARY:
            tokens.append(_BINARY[type(node.op)])
            _walk(node.left, language, tokens, depth + 1, before)
            _walk(node.right, language, tokens, depth + 1, before)
        case ast.Call(func=ast.Name(id=word), keywords=[]) if word in language.words - {*language.inputs}:
            if len(node.args) != ARITY[word]:
                raise FormulaError(
                    f"'{word}' at character {place} takes {ARITY[word]} operand{'s' * (ARITY[word] > 1)}, "
                    f"{len(node.args)} are given"
                )
            tokens.append(word)
            for operand in node.args:
                _walk(operand, language, tokens, depth + 1, before)
        case ast.Call():
            raise FormulaError(
                f"what is called at character {place} is no function of formulas; remove the brackets"
            )
        case _:
            raise FormulaError(
                f"what stands at character {place} is no part of a formula, which holds inputs, numbers, + - * / and "
                f"calls of {', '.join(sorted(set(ARITY) - SIGNS))}"
            )
