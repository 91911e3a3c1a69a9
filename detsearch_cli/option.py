"""Options of a method, written once: a dataclass field with its default, help and limits. Imports nothing heavy.

The command line makes parameters of them, the Python interface takes them as keywords, a study keeps their values.
"""

from __future__ import annotations

import dataclasses
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
    for name, value in values.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise error(f"{name!r} is none of the options ({known})")
        low, high = fields[name].metadata.get("min"), fields[name].metadata.get("max")
        if isinstance(value, int | float) and (
            (low is not None and value < low) or (high is not None and value > high)
        ):
            limits = " and ".join(
                text
                for text in (
                    f"at least {low:g}" if low is not None else "",
                    f"at most {high:g}" if high is not None else "",
                )
                if text
            )
            raise error(f"{name} must be {limits}, got {value:g}")
    return options(**values)
