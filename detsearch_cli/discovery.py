"""Lists and describes parts by file name without importing them, so that `--help` stays fast."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent


@cache
def names(package: str) -> tuple[str, ...]:
    """Names of the parts in `package` (such as "slots.assigners"), sorted."""
    folder = ROOT.joinpath(*package.split("."))
    stems = (p.stem for p in folder.glob("*.py"))
    return tuple(sorted(s for s in stems if not s.startswith("_") and s != "base"))


def summary(package: str, name: str) -> str:
    """First line of the part's module docstring."""
    path = ROOT.joinpath(*package.split("."), f"{name}.py")
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]
