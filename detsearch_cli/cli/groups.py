"""The class of our command groups: a `--help` below them answers without importing pydantic."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """A group whose own --help counts as a plain flag that was not given.

    Typer leaves it None, which it hands to pydantic to become a bool: a quarter of the time of every --help.
    """

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option
