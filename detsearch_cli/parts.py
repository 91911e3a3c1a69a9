"""Finds the parts of detsearch (detectors, slots, samplers, formats) by file name.

A part is one file in its package: `slots/assigners/atss.py` is `assign: {name: atss}`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from types import ModuleType
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from detsearch_cli.discovery import names, summary
from detsearch_cli.errors import DetsearchError, RecipeError

__all__ = ["Part", "find", "load", "names", "summary"]
T = TypeVar("T")


class Part(BaseModel):
    """A frozen, fully validated configuration that is also the working object."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def load(package: str, name: str, error: type[DetsearchError] = RecipeError) -> ModuleType:
    """Import the part's module. Raises `error` naming the choices when there is no such file."""
    if name not in names(package):
        kind = package.rpartition(".")[2]
        close = difflib.get_close_matches(name, names(package), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise error(f"{name!r} is none of the {kind} ({', '.join(names(package))}){hint}")
    return importlib.import_module(f"detsearch_cli.{package}.{name}")


def find(package: str, name: str, base: type[T], error: type[DetsearchError] = RecipeError) -> type[T]:
    """The one public class in the part's file that derives from `base`."""
    module = load(package, name, error)
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    found = [c for c in own if issubclass(c, base) and not c.__name__.startswith("_")]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one public {base.__name__}, found {len(found)}")
    return found[0]
