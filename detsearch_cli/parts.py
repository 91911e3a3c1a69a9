"""What every part is that a recipe can name: a frozen, validated configuration that is also the working object."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from detsearch_cli.discovery import load, names, only, summary
from detsearch_cli.errors import DetsearchError, RecipeError

__all__ = ["Part", "find", "load", "names", "summary"]
T = TypeVar("T")


class Part(BaseModel):
    """A frozen, fully validated configuration that is also the working object."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def find(package: str, name: str, base: type[T], error: type[DetsearchError] = RecipeError) -> type[T]:
    """The one public class in the part's file that derives from `base`."""
    return only(load(package, name, error), base)
