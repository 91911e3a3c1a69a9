"""Partial recipes as plain data: read from YAML or `--set`, laid over each other. recipe.py checks the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detsearch_cli import reading
from detsearch_cli.errors import RecipeError

Fragment = dict[str, Any]
SHOWN_CHARACTERS = 60
SLOTS = ("detector", "priors", "assign", "loss", "region_loss")


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Fragment:
    """Lay `above` over `below`. Sections merge key by key; a slot naming another part is replaced.

    Raises RecipeError for keys over what has none, such as a list: it would vanish without a word.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key in SLOTS and isinstance(value, str):
            value = {"name": value}
        if key == "backbone" and isinstance(value, str):
            value = {"name": value}
        if key == "init" and isinstance(value, str | Mapping):
            # another file has another digest, so nothing of the one below may stay
            old = None
        renamed = (
            key in SLOTS
            and isinstance(value, Mapping)
            and isinstance(old, Mapping)
            and value.get("name", old.get("name")) != old.get("name")
        )
        if isinstance(value, Mapping) and not isinstance(old, Mapping | str | None):
            raise RecipeError(f"{key} takes keys and values, found {shown(old)} below {shown(value)}")
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not renamed:
            value = merge(old, value)
        result[key] = value
    return result


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, their keys joined by dots; an empty mapping has no key."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What tells two nested mappings apart, sorted by key: "optim.lr is 0.01 there, 0.1 here".

    A key that is missing counts as unset: a slot left open has no options to compare. Long values are cut.
    """
    a, b = flattened(there), flattened(here)
    return [
        f"{key} is {_short(a.get(key))} there, {_short(b.get(key))} here"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def shown(value: Any) -> str:
    """A value in a message, as Python writes it, cut where it is long."""
    try:
        return _cut(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def _short(value: Any) -> str:
    return _cut("unset" if value is None else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def read_fragment(path: Path) -> Fragment:
    """Read a YAML fragment. Raises RecipeError naming the file when it is missing or no mapping."""
    content = reading.read_yaml(path, RecipeError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold keys and values, found a {type(content).__name__}")
    return content


PUBLISHED = Path(__file__).parent / "published"


def published() -> dict[str, Path]:
    """The fragments that come with this program, by name: losses and curves that papers compare."""
    return {path.stem: path for path in sorted(PUBLISHED.glob("*.yaml"))}


def find_fragment(given: str) -> Fragment:
    """The fragment in a file, or the published one of that name. Raises RecipeError for neither."""
    if not Path(given).exists() and given in published():
        return read_fragment(published()[given])
    if not Path(given).exists():
        raise RecipeError(
            f"{shown(given)} is no file, and none of the published fragments ({', '.join(published())})"
        )
    return read_fragment(Path(given))


def parse_set(assignment: str) -> Fragment:
    """`optim.lr=0.02` -> {"optim": {"lr": 0.02}}; the value is read as YAML."""
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip() or not all(key.strip().split(".")):
        raise RecipeError(f"--set takes key=value such as optim.lr=0.02, got {shown(assignment)}")
    nested: Any = reading.parse_yaml(value, f"--set {_cut(assignment)}", RecipeError)
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)
