"""Plain data from a file of ours against a schema: the first field that is wrong, in one sentence.

A run or a study may have been edited, cut short, or written by another version. Each kind of its files has one schema,
a `Document` or a dataclass, and is read through it, so that nothing further down meets a text where it needs a number.
"""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from detsearch_cli.errors import DetsearchError

SHOWN_CHARACTERS = 60
T = TypeVar("T")


class Document(BaseModel):
    """What a file must hold: values of exactly these types, numbers finite. Keys that no reader needs may be there."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


def checked(content: Any, kind: type[T], name: object, error: type[DetsearchError], remedy: str) -> T:
    """`content`, as JSON or YAML gave it, as a `kind`. Raises `error` naming the first field that is wrong.

    kind: a Document, a dataclass, or a type such as list[str]. name: what holds the content, such as its file. remedy:
    what the reader of the message can do, which ends the sentence.
    """
    schema: Any = kind
    adapter: TypeAdapter[T] = _adapter(schema)
    try:
        if is_dataclass(kind):
            # python's strict mode wants an instance of the dataclass, JSON's strict mode an object of its fields
            return adapter.validate_json(json.dumps(content), strict=True)
        return adapter.validate_python(content)
    except ValidationError as problem:
        raise error(
            f"{name} is damaged or of another version of detsearch: {_said(problem)}; {remedy}"
        ) from problem


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _said(problem: ValidationError) -> str:
    """The first complaint: `per_class.0.AP should be a valid number, got 'x'`."""
    first = problem.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or "its content"
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{field} is no key of such a file"
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    # a BaseModel's name in the sentence is a name of this program's, which says nothing to its user
    said = "should be an object" if first["type"] in ("model_type", "dataclass_type") else said
    got = repr(first["input"])
    got = got if len(got) <= SHOWN_CHARACTERS else f"{got[: SHOWN_CHARACTERS - 3]}..."
    return f"{field} {said[0].lower()}{said[1:]}, got {got}"
