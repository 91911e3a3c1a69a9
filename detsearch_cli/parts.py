"""What every part is that a recipe can name: a frozen, validated configuration that is also the working object."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, model_serializer

from detsearch_cli.discovery import load, names, only, summary
from detsearch_cli.errors import DetsearchError, RecipeError

__all__ = ["Part", "find", "load", "names", "summary"]
T = TypeVar("T")


class Part(BaseModel):
    """A frozen, fully validated configuration that is also the working object."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    later_options: ClassVar[frozenset[str]] = frozenset()
    """Options that were added after recipes with this part were trained; written only where they are not at their
    default, or every such recipe would get another hash."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: Any) -> dict[str, Any]:
        fields = type(self).model_fields
        unset = {key for key in self.later_options if getattr(self, key) == fields[key].default}
        return {key: value for key, value in dump(self).items() if key not in unset}


def find(package: str, name: str, base: type[T], error: type[DetsearchError] = RecipeError) -> type[T]:
    """The one public class in the part's file that derives from `base`."""
    return only(load(package, name, error), base)
