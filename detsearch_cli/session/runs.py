"""Trainings that test a finding: several recipes with the same seeds, at equal cost, alone or compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import RecipeError
from detsearch_cli.files import claim_file, claim_folder, write_signed_json
from detsearch_cli.fragments import shown
from detsearch_cli.option import MOST_JOBS

if TYPE_CHECKING:
    from detsearch_cli.engine.comparison import PlannedRun, RunComparison
    from detsearch_cli.engine.train import OnProgress
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe

RUNS, COMPARISON, BASELINE = "runs.json", "comparison.json", "baseline"


def comparison_file(study: Path, trial: int | None) -> Path:
    """Where a study keeps the test of its finding, or of another trial's candidate."""
    return study / (COMPARISON if trial is None else f"comparison-trial{trial}.json")


@dataclass(frozen=True)
class TrainedRun:
    """A finished training: its folder, and what metrics.json holds."""

    folder: Path
    metrics: Mapping[str, Any]

    @property
    def AP(self) -> float:
        """On the recipe's validation split, a fraction."""
        return float(self.metrics["AP"])


@dataclass(frozen=True)
class Placement:
    """Where trainings run: `jobs` at a time, by the executor of that name."""

    jobs: int = 1
    executor: str = "local"

    def __post_init__(self) -> None:
        if not 1 <= self.jobs <= MOST_JOBS:
            raise RecipeError(f"trainings need 1 to {MOST_JOBS} jobs at a time, got {shown(self.jobs)}")

    @property
    def here(self) -> bool:
        """Whether one training after the other runs in this process."""
        return self.jobs == 1 and self.executor == "local"


@dataclass(frozen=True)
class Callbacks:
    """on_run(title) gives the progress callback of a training in this process; on_done hears of one in a worker."""

    on_run: Callable[[str], OnProgress] = lambda title: lambda progress: None
    on_done: Callable[[str, Mapping[str, Any]], None] = lambda title, metrics: None


def sides(
    side: str, own: Recipe, recipe: Recipe, finding: Fragment, against: Mapping[str, Fragment], baseline: bool
) -> dict[str, Recipe]:
    """What is trained, by the name of its side, the baseline first.

    side: the name of what is tested. own: the baseline. finding: what lies over the recipe, {} for nothing. against:
    further fragments by name. Raises RecipeError where there is nothing to train, or two sides have one name.
    """
    from detsearch_cli.recipe import with_fragment

    every: dict[str, Recipe] = {}
    if baseline:
        every[BASELINE] = own
    if finding:
        every[side] = with_fragment(recipe, finding)
    for name, fragment in against.items():
        if name in every:
            raise RecipeError(f"two sides of a comparison would be called {name!r}; rename one of the files")
        every[name] = with_fragment(recipe, fragment)
    if not every:
        raise RecipeError("there is nothing to train; give --baseline or --against FILE as well")
    return every


def _check(planned: Sequence[PlannedRun], placement: Placement) -> None:
    """Raise, before anything is written, what would end these trainings or make their comparison meaningless."""
    from detsearch_cli.engine.checkpoint import check
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.search.coordinator import executor_class
    from detsearch_cli.session.search import refuse_untrainable

    executor_class(placement.executor)  # raises for an unknown one
    if not planned:
        raise RecipeError("trainings need at least one seed, got none")
    recipes: dict[str, Recipe] = {}
    for run in planned:
        recipes.setdefault(run.side, run.recipe)
        check(run.folder, run.recipe)
    sides_by_hash: dict[str, str] = {}
    for side, recipe in recipes.items():
        refuse_untrainable(recipe, load_data(recipe.data).train.classes, placement.executor == "local")
        # of one seed: the seed of a side is replaced by those of the comparison
        twin = sides_by_hash.setdefault(recipe.hash(), side)
        if twin != side:
            raise RecipeError(
                f"{twin} and {side} are the same recipe, so there is nothing to compare; what is laid over one of "
                "them changes nothing"
            )


def train_seeds(
    recipe: Recipe, side: str, seeds: Sequence[int], folder: Path, placement: Placement, callbacks: Callbacks
) -> list[TrainedRun]:
    """One recipe alone, once a seed. The same call goes on with what was interrupted."""
    from detsearch_cli.engine.comparison import planned_runs
    from detsearch_cli.engine.trial import load_data, train_with_retry

    planned = planned_runs({side: recipe}, seeds, folder)
    claim_folder(folder, RUNS, "folder of runs")
    _check(planned, placement)
    _note(folder, [side], seeds)
    _in_workers(planned, folder, "detsearch_cli.engine.trial:run_trial", placement, callbacks)
    done = []
    for run in planned:
        # a training that a worker has finished is found here and not repeated
        metrics = train_with_retry(
            run.recipe, load_data(run.recipe.data), run.folder, callbacks.on_run(title(run))
        )
        done.append(TrainedRun(run.folder, metrics))
    return done


def compare_sides(
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    folder: Path,
    placement: Placement,
    callbacks: Callbacks,
    study_file: Path | None = None,
) -> RunComparison:
    """Every side over all seeds; the first is what the others are compared with. Keeps comparison.json.

    study_file: where to keep it in the study that is tested, whose page shows it. The same call goes on after an interrupt.
    """
    from detsearch_cli.engine.comparison import compare_recipes, planned_runs
    from detsearch_cli.engine.score import final_of, refuse_unscorable
    from detsearch_cli.engine.trial import load_data

    planned = planned_runs(recipes, seeds, folder)
    claim_folder(folder, RUNS, "folder of runs")
    files = {folder / COMPARISON, study_file or folder / COMPARISON}
    for file in files:
        claim_file(file, "comparison")
    _check(planned, placement)
    refuse_unscorable(final_of(load_data(planned[0].recipe.data)))
    _note(folder, list(recipes), seeds)
    _in_workers(planned, folder, "detsearch_cli.engine.comparison:train_and_detect", placement, callbacks)
    outcome = compare_recipes(recipes, seeds, folder, callbacks.on_run)
    # both were claimed: what is replaced is this program's earlier comparison
    for file in files:
        write_signed_json(file, "comparison", outcome.to_json())
    return outcome


def _note(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Write runs.json, the first file of the folder, which was claimed."""
    write_signed_json(folder / RUNS, "runs", {"sides": list(names), "seeds": list(seeds)})


def _in_workers(
    planned: Sequence[PlannedRun], folder: Path, function: str, placement: Placement, callbacks: Callbacks
) -> None:
    """Several trainings at a time, or elsewhere; one at a time on this machine is left to the caller."""
    if placement.here:
        return
    from detsearch_cli.engine import fingerprint
    from detsearch_cli.engine.checkpoint import owned
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.search.batch import run_batch

    for run in planned:
        data = load_data(run.recipe.data)
        # here: a worker takes the run for a trial, and keeps no fingerprint
        with owned(run.folder, run.recipe):
            fingerprint.keep(run.folder, data.train, data.val)

    def on_done(number: int, metrics: Mapping[str, Any]) -> None:
        callbacks.on_done(title(planned[number]), metrics)

    run_batch([run.folder for run in planned], folder, function, placement.jobs, placement.executor, on_done)


def title(run: PlannedRun) -> str:
    """`searched, seed 1`."""
    return f"{run.side}, seed {run.recipe.seed}"
