"""Every command with its options, one a line: `python -m tests.cli.interface > tests/cli/options.txt`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from detsearch_cli.cli.commands import app


def commands() -> dict[str, Any]:
    """Every command and group by its words, `assign search` say; the bare `detsearch` is ``."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: list[str]) -> None:
        found[" ".join(words)] = command
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def interface() -> list[str]:
    """`assign search --trials INT = 100`, sorted within a command; arguments come first."""
    return [line for words, command in commands().items() for line in sorted(_lines(words, command))]


def _lines(words: str, command: Any) -> Iterator[str]:
    for parameter in command.params:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        if "completion" in names:  # Typer's own, only there where the bare command is asked
            continue
        annotation = getattr(parameter.type_descriptor.annotation, "__name__", "")
        shown = (parameter.name or "").upper() if not parameter.opts[0].startswith("-") else names
        default = parameter.default
        ending = "" if default in (None, (), [], False) or callable(default) else f" = {default}"
        required = " (required)" if parameter.required else ""
        repeated = "..." if getattr(parameter, "multiple", False) else ""
        yield f"{words} {shown} {annotation}{repeated}{required}{ending}".strip()


if __name__ == "__main__":
    print("\n".join(interface()))
