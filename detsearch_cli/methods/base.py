"""What every method is: options, a space, how a candidate becomes a fragment of a recipe, and what is shown of it.

A method is a file or a folder in methods/; `detsearch NAME search`, `train` and `show`, resuming, the comparison and
the report page follow from its class. The command line imports every method for its --help, so that a method's module
imports nothing heavy: what needs torch, numpy or pydantic is imported inside functions.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from detsearch_cli import option
from detsearch_cli.discovery import load, names, only
from detsearch_cli.errors import SpaceError, StudyError

if TYPE_CHECKING:
    from detsearch_cli.data.types import Split
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure
    from detsearch_cli.report.page import Table
    from detsearch_cli.search.space import Candidate, Space
    from detsearch_cli.search.study import Study


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True)
class Shown:
    """What there is to see: tables, notes and pictures (by the name of their file) for a person, data for a program."""

    content: Mapping[str, Any] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)


class Method(ABC):
    """One paper's way to a better recipe.

    Options: a dataclass of `option` fields, asked for by `search`, or by `train` where there is no search; the study
    keeps their values. ShowOptions: those that only `show` has. sampler: the default one; None where the training
    itself finds what is looked for, so that there is nothing to search. side: what the training with the finding is
    called in a comparison. defaults: a fragment below everything that the user gives.
    """

    Options: ClassVar[type[Any]] = NoOptions
    ShowOptions: ClassVar[type[Any]] = NoOptions
    sampler: ClassVar[str | None] = None
    side: ClassVar[str] = "searched"
    defaults: ClassVar[Mapping[str, Any]] = {}
    search_help: ClassVar[str] = "Search for the candidate of highest AP; trial 0 is the recipe as given."
    train_help: ClassVar[str] = (
        "Train with what a search found; with --baseline also the recipe as given, and compare."
    )
    show_help: ClassVar[str] = "Show what was found, as tables and pictures."

    def __init__(self, options: Any = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def name(cls) -> str:
        """The subcommand: the name of the method's file or folder."""
        return cls.__module__.split(".")[2]

    # ------------------------------------------------------------------ what is searched

    def baseline(self, recipe: Recipe) -> Recipe:
        """Trial 0 of a search, and the side that others are compared with: the recipe as given."""
        return recipe

    def space(self, recipe: Recipe) -> Space:
        """The candidates for this recipe. Raises SpaceError where the options do not fit it."""
        raise SpaceError(f"{self.name()} has nothing to search: its training finds what it looks for")

    def refuse(self, recipe: Recipe, candidate: Candidate) -> str | None:
        """Why this candidate is not worth a training; None where it is. Asked before anything is trained."""
        return None

    @abstractmethod
    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """What best.yaml holds: laid over the recipe, it trains with the candidate.

        A part that it names has every option written out, so that no option of an earlier part of the same name
        stays below it. Raises SpaceError outside the space.
        """

    # ------------------------------------------------------------------ what is shown

    def tables(self, recipe: Recipe) -> Sequence[Table]:
        """A recipe with a candidate's fragment, as the page of a study shows it."""
        return ()

    def show(self, recipe: Recipe, runs: Sequence[Path], options: Any) -> Shown:
        """What `show` prints and draws. runs: trained runs to look through, none for untrained weights."""
        return Shown({"tables": [_plain(t) for t in self.tables(recipe)]}, self.tables(recipe))

    def study_figures(self, study: Study) -> Sequence[Figure]:
        """Pictures of where a search went, for the page of a study; none where there is nothing to see."""
        return ()

    def notes(self, recipe: Recipe) -> Sequence[str]:
        """What a user should know before the trainings of `train` begin."""
        return ()

    def trained(self, recipe: Recipe, runs: Sequence[Path]) -> Shown | None:
        """What `train` adds once the runs with the finding are done, one run a seed; None for nothing."""
        return None

    def run_figures(self, run: Path, recipe: Recipe, train: Split) -> Sequence[Figure]:
        """Pictures for the page of a single run; none where the run has nothing of this method."""
        return ()


def _plain(table: Table) -> dict[str, Any]:
    return {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}


def method_class(name: str) -> type[Method]:
    """The method of that name. Raises StudyError naming those that there are."""
    module = load("methods", name, StudyError)
    if hasattr(
        module, "__path__"
    ):  # a folder: its __init__ tells the paper's order, method.py holds the class
        module = importlib.import_module(f"{module.__name__}.method")
    return only(module, Method)  # type: ignore[type-abstract]


def load_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of that name with these options, as a study keeps them. Raises StudyError."""
    cls = method_class(name)
    return cls(option.made(cls.Options, options, StudyError))


def methods() -> dict[str, type[Method]]:
    """Every method by its name."""
    return {name: method_class(name) for name in names("methods")}
