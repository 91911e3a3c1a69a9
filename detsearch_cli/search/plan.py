"""What a search is given, what it reports while it runs, and what it ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from detsearch_cli.search.config import StudyConfig
from detsearch_cli.search.space import Candidate
from detsearch_cli.search.study import Trial, all_failed
from detsearch_cli.trials import Leader, baseline_of, best_of, leader_of

Kind = Literal[
    "resumed", "started", "scored", "finished", "failed", "repeated", "refused", "retried", "waiting", "noise"
]


@dataclass(frozen=True)
class Prepared:
    """What a candidate is trained as.

    recipe_yaml: the whole recipe. recipe_hash: `Recipe.hash`, the name of a recipe here and in metrics.json.
    fragment: what the candidate changes in the recipe; kept with the trial, {} for the baseline.
    """

    recipe_yaml: str
    recipe_hash: str
    fragment: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """The candidate must not be trained, and why not, in one sentence."""

    reason: str


@dataclass(frozen=True)
class Plan:
    """One search.

    folder: the study's own; the caller has claimed it. storage: database URL, None for folder/study.db.
    trials: trials that train; the baseline (trial 0) and answers from the ledger are not counted; more than
    before extends a study. time_budget: seconds over all resumptions; no trial begins after it. jobs: trials
    at a time. epochs: the whole length of a training. prepare: the candidate's recipe, the baseline's for
    None; it is deterministic and cheap, since a search may refuse ten thousand candidates. with_seed: the same recipe
    with another seed; needed for several `noise_seeds`, which count among the trials but for the first. stops: end early
    where nothing can overtake the best any more. images: of the baseline's trials, the part of their variance that the
    choice of the held-out images explains, None where that is unknown.
    """

    name: str
    folder: Path
    storage: str | None
    config: StudyConfig
    trials: int
    time_budget: float | None
    jobs: int
    executor: str
    epochs: int
    prepare: Callable[[Candidate | None], Prepared | Refused]
    with_seed: Callable[[Prepared, int], Prepared] | None = None
    stops: bool = False
    images: Callable[[Sequence[Trial]], float | None] = lambda trials: None


@dataclass(frozen=True)
class Event:
    """Something happened. trial: the one concerned; best: the best so far, the baseline included; leader: the candidate to
    rely on first.

    A `finished` trial whose state is `stopped` was asked for at fewer epochs than the whole training has.
    `refused` sums up: its message says how many candidates were refused so far; at most one event a second. `noise` comes
    once, when every seed of the baseline has its outcome; its message says how much scores differ by seed alone.
    """

    kind: Kind
    trial: Trial | None
    best: Trial | None
    leader: Leader[Trial] | None
    message: str = ""


class Emit(Protocol):
    """Tells whoever watches the search; the best so far and the leader are added."""

    def __call__(self, kind: Kind, trial: Trial | None, message: str = "") -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a search ended. reason: why no more trials were begun, for a person. refused: proposals refused."""

    trials: tuple[Trial, ...]
    reason: str
    refused: int = 0

    @property
    def best(self) -> Trial | None:
        return best_of(self.trials)

    @property
    def leader(self) -> Leader[Trial] | None:
        return leader_of(self.trials)

    @property
    def baseline(self) -> Trial | None:
        """With the mean over its seeds as value."""
        return baseline_of(self.trials) or next((trial for trial in self.trials if trial.baseline), None)

    @property
    def all_failed(self) -> bool:
        return all_failed(self.trials)
