"""Finds the parts of detsearch (detectors, slots, samplers, formats, methods) by file name, without importing them.

A part is one file in its package: `slots/assigners/atss.py` is `assign: {name: atss}`. A method may be a folder.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from detsearch_cli.errors import DetsearchError, RecipeError

T = TypeVar("T")


@cache
def _files(package: str) -> dict[str, Path]:
    """The source of every part by its name; of a folder, its __init__.py."""
    # not a glob below this file: a package's path may have been extended, as tests do
    spec = importlib.util.find_spec(f"detsearch_cli.{package}")
    found: dict[str, Path] = {}
    for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
        found |= {path.stem: path for path in folder.glob("*.py")}
        found |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return {name: found[name] for name in sorted(found) if not name.startswith("_") and name != "base"}


def forget() -> None:
    """Look at the files anew when next asked; for programs that add parts while they run."""
    _files.cache_clear()


def names(package: str) -> tuple[str, ...]:
    """Names of the parts in `package` (such as "slots.assigners"), sorted."""
    return tuple(_files(package))


def summary(package: str, name: str) -> str:
    """First line of the part's module docstring."""
    doc = ast.get_docstring(ast.parse(_files(package)[name].read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


def load(package: str, name: str, error: type[DetsearchError] = RecipeError) -> ModuleType:
    """Import the part's module. Raises `error` naming the choices when there is no such file."""
    if name not in names(package):
        kind = package.rpartition(".")[2]
        close = difflib.get_close_matches(name, names(package), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise error(f"{name!r} is none of the {kind} ({', '.join(names(package))}){hint}")
    return importlib.import_module(f"detsearch_cli.{package}.{name}")


def only(module: ModuleType, base: type[T]) -> type[T]:
    """The one public class defined in the module that derives from `base`."""
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    found = [c for c in own if issubclass(c, base) and not c.__name__.startswith("_")]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one public {base.__name__}, found {len(found)}")
    return found[0]
