"""Finds the parts of detsearch (detectors, slots, samplers, formats) by file name.

A part is one file in its package: `slots/assigners/atss.py` is `assign: {name: atss}`. Listing and
describing parts reads files without importing them, so that `--help` stays fast.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from detsearch_cli.errors import DetsearchError, RecipeError

ROOT = Path(__file__).parent
T = TypeVar("T")


class Part(BaseModel):
    """A frozen, fully validated configuration that is also the working object."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@cache
def names(package: str) -> tuple[str, ...]:
    """Names of the parts in `package` (such as "slots.assigners"), sorted; imports nothing."""
    folder = ROOT.joinpath(*package.split("."))
    return tuple(sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_") and p.stem != "base"))


def summary(package: str, name: str) -> str:
    """First line of the part's module docstring; imports nothing."""
    path = ROOT.joinpath(*package.split("."), f"{name}.py")
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


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
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define exactly one public {base.__name__}, found {len(found)}")
    return found[0]
