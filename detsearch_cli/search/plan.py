"""What a search is given, what it reports while it runs, and what it ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detsearch_cli.search.space import Candidate, Space
from detsearch_cli.search.study import TrialRow, all_failed
from detsearch_cli.trials import best_of

Kind = Literal["resumed", "started", "finished", "failed", "repeated", "retried", "waiting"]


def text_hash(recipe_yaml: str) -> str:
    """Names a recipe by its text, 16 hex digits."""
    return hashlib.sha256(recipe_yaml.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """One search.

    folder: the study's own. storage: database URL, None for folder/study.db. trials: candidates to train, the
    baseline (trial 0) and answers from the ledger not counted; more than before extends a study. time_budget:
    seconds over all resumptions; no trial begins after it. identity: what must be equal to resume.
    make_recipe(candidate) -> YAML text, of the baseline for None. recipe_hash names a recipe.
    executor_options: for Slurm, partition and the like; idle_seconds for every executor.
    notes: kept with a new study for whoever reads it (how to resume it, say); not compared.
    """

    name: str
    folder: Path
    storage: str | None
    space: Space
    sampler: str
    seed: int
    trials: int
    time_budget: float | None
    jobs: int
    executor: str
    identity: Mapping[str, Any]
    make_recipe: Callable[[Candidate | None], str]
    recipe_hash: Callable[[str], str] = text_hash
    executor_options: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """Something happened. row: the trial concerned; best: the best so far, the baseline included."""

    kind: Kind
    row: TrialRow | None
    best: TrialRow | None
    message: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a search ended. reason: why no more trials were begun, for a person."""

    rows: tuple[TrialRow, ...]
    reason: str

    @property
    def best(self) -> TrialRow | None:
        return best_of(self.rows)

    @property
    def best_candidate(self) -> TrialRow | None:
        return best_of([row for row in self.rows if not row.baseline])

    @property
    def baseline(self) -> TrialRow | None:
        return next((row for row in self.rows if row.baseline), None)

    @property
    def all_failed(self) -> bool:
        return all_failed(self.rows)
