"""What every method offers the search: a space, and how a candidate becomes a recipe."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from detsearch_cli.errors import StudyError
from detsearch_cli.recipe import Fragment, Recipe
from detsearch_cli.report.figures import Figure
from detsearch_cli.report.page import Table
from detsearch_cli.search.space import Candidate, Space


class Method(Protocol):
    """One paper's search. Its options are plain data, so a study can be resumed from its folder alone."""

    name: ClassVar[str]
    sampler: ClassVar[str]

    def space(self, recipe: Recipe) -> Space:
        """What is searched for this recipe. Raises SpaceError when the options do not fit it."""
        ...

    def apply(self, recipe: Recipe, candidate: Candidate) -> Recipe:
        """The recipe a candidate stands for."""
        ...

    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """What best.yaml holds."""
        ...

    def found(self, recipe: Recipe, candidate: Candidate) -> tuple[list[Table], list[Figure]]:
        """The candidate as the report shows it."""
        ...


def load_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with its options, as a study's folder recorded them. Raises StudyError."""
    try:
        module = importlib.import_module(f"detsearch_cli.methods.{name}.method")
        made: Method = module.METHOD(**options)
    except (ModuleNotFoundError, TypeError) as error:
        raise StudyError(
            f"this version of detsearch has no method {name!r} with options {options}"
        ) from error
    return made
