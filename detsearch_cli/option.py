"""Options of a method, written once: a dataclass field with its default, help and limits. Imports nothing heavy.

The command line makes parameters of them, the Python interface takes them as keywords, a study keeps their values.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from detsearch_cli.errors import DetsearchError

O = TypeVar("O")  # noqa: E741


def option(
    default: Any, help: str, *, min: float | None = None, max: float | None = None, metavar: str | None = None
) -> Any:
    """A field of a dataclass of options. min, max: both included, for numbers."""
    metadata = {"help": help, "min": min, "max": max, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def made(options: type[O], values: Mapping[str, Any], error: type[DetsearchError]) -> O:
    """The options with these values. Raises `error` for an unknown name or a value beyond its limits."""
    fields = {f.name: f for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(options)
    for name, value in values.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise error(f"{name!r} is none of the options ({known})")
        if not _fits(value, hints[name]):
            raise error(f"{name} must be {getattr(hints[name], '__name__', hints[name])}, got {value!r}")
        low, high = fields[name].metadata["min"], fields[name].metadata["max"]
        limits = [f"at least {low:g}"] if low is not None else []
        limits += [f"at most {high:g}"] if high is not None else []
        below = low is not None and value is not None and value < low
        if below or (high is not None and value is not None and value > high):
            raise error(f"{name} must be {' and '.join(limits)}, got {value:g}")
    return options(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of a type of the hint, a type or a union of some; a whole number is a float, too."""
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
