"""What every part is that a recipe can name: a frozen, validated configuration that is also the working object.

Sections of a recipe (schema.py) and parts have one rule for numbers and text, `Checked`, and one set of bounded types
for whole numbers. The bounds are far above what anybody trains and far below what ends in an allocator's error.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from detsearch_cli.discovery import load, names, only, summary
from detsearch_cli.errors import DetsearchError, RecipeError
from detsearch_cli.option import (
    LARGEST_SEED,
    LEAST_PIXELS,
    MOST_BOXES,
    MOST_CHANNELS,
    MOST_PIXELS,
    MOST_STEPS,
)
from detsearch_cli.reading import LARGEST

__all__ = [
    "Channels", "Checked", "Count", "Part", "Pixels", "Seed", "Steps", "find", "load", "names", "summary",
]  # fmt: skip
T = TypeVar("T")

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Pixels = Annotated[int, Field(ge=LEAST_PIXELS, le=MOST_PIXELS)]
Channels = Annotated[int, Field(ge=8, le=MOST_CHANNELS)]
Count = Annotated[int, Field(ge=1, le=MOST_BOXES)]
Steps = Annotated[int, Field(ge=0, le=MOST_STEPS)]
_DEEPEST = 4
"""Lists inside each other; anchors by level, shape and side have 3."""


class Checked(BaseModel):
    """Frozen and complete, with honest numbers and text in every field, whoever adds it.

    Numbers are finite and at most 2^53, true is none of them, and text can be written to a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _honest(cls, value: Any, info: ValidationInfo) -> Any:
        # before every conversion: int() of 10^400, float() of 10^400 and a path with a NUL raise errors of their own
        field = cls.model_fields[info.field_name or ""]
        _check(value, bool in _leaves(field.annotation), 0)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _still_honest(cls, value: Any) -> Any:
        # again: 1e30 without a dot is text in YAML, and a number only now
        _check(value, True, 0)
        return value


def _check(value: Any, flags: bool, depth: int) -> None:
    """Raise ValueError for a number or text that no field takes. flags: whether true and false are taken."""
    if isinstance(value, bool):
        if not flags:
            raise ValueError("it takes no true or false")
    elif isinstance(value, int | float):
        # a comparison, not math.isfinite: that converts a whole number to a float, which 10^400 does not fit
        if not -LARGEST <= value <= LARGEST:
            raise ValueError("a number must be finite and at most 2^53 in size")
    elif isinstance(value, str):
        if "\0" in value or not _is_utf8(value):
            raise ValueError("text must be UTF-8 without a NUL")
    elif isinstance(value, list | tuple):
        if depth == _DEEPEST:  # a list that holds itself has no end
            raise ValueError("its lists are nested too deeply")
        for item in value:
            _check(item, flags, depth + 1)


def _is_utf8(text: str) -> bool:
    """False for a file's name in another encoding, which Python keeps as lone surrogates that no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _leaves(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of: those of `tuple[int, ...] | None` are int and None."""
    inner = typing.get_args(annotation)
    return set().union(*map(_leaves, inner)) if inner else {annotation}


class Part(Checked):
    """A frozen, fully validated configuration that is also the working object."""


def find(package: str, name: str, base: type[T], error: type[DetsearchError] = RecipeError) -> type[T]:
    """The one public class in the part's file that derives from `base`."""
    return only(load(package, name, error), base)
