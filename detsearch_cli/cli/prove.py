"""Training with a searched fragment, and the proof: the same recipe without it, same seeds, same cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.cli import console
from detsearch_cli.errors import RecipeError, StudyError

if TYPE_CHECKING:
    from detsearch_cli.cli.options import RecipeOptions, RunsOptions, TrainOptions
    from detsearch_cli.engine.comparison import PlannedRun, RunComparison
    from detsearch_cli.recipe import Fragment, Recipe


def study_fragments(study: Path) -> Fragment:
    """A study's recipe, for the final training, with its best.yaml laid over it."""
    from detsearch_cli.cli.hunt import BEST_FRAGMENT, base_recipe, final, read_settings
    from detsearch_cli.recipe import merge, read_fragment

    recipe = final(base_recipe(read_settings(study)))
    if not (study / BEST_FRAGMENT).is_file():
        raise StudyError(
            f"the search in {study} has not ended, it holds no {BEST_FRAGMENT} yet; go on with it by "
            f"`detsearch study resume {study}`"
        )
    return merge(recipe.model_dump(mode="json"), read_fragment(study / BEST_FRAGMENT))


def run_train(method: str, slots: tuple[str, ...], options: RecipeOptions, train: TrainOptions) -> None:
    """Train the recipe over all seeds; with --baseline the same with `slots` left to the detector, and compare."""
    searched = options.compose(study_fragments(train.study) if train.study else None)
    without = searched.model_copy(update=dict.fromkeys(slots))
    nothing = without.hash() == searched.hash()
    if nothing and train.study is None:
        raise RecipeError(
            f"the recipe holds nothing that `{method} search` finds ({', '.join(slots)}); give --study or "
            f"--recipe best.yaml (an empty one means that nothing better than the detector's own was found)"
        )
    folder = train.out or default_folder(method, train.study, searched)
    console.set_resume_hint(f"the runs are saved in {folder}; give the same command again to go on")
    seeds = [searched.seed + i for i in range(train.seeds)]
    if nothing:
        console.say(
            f"{train.study} found nothing better than the detector's own; that is trained, there is no other"
        )
    if nothing or not train.baseline:
        results = train_alone("searched", searched, seeds, folder, train)
        if train.json:
            console.emit_json({"folder": str(folder), "runs": results})
        return
    outcome = compare(without, searched, seeds, folder, train)
    record(outcome, folder, train.study)
    if train.json:
        console.emit_json({"folder": str(folder), **outcome.to_json()})
    else:
        tell(outcome)
        if train.study is not None:
            from detsearch_cli.cli.report import write_study_page

            console.say(f"wrote {write_study_page(train.study)}")


def default_folder(method: str, study: Path | None, recipe: Recipe) -> Path:
    """In the study's folder where there is one, else runs/assign-fcos-HASH."""
    if study is not None:
        return study / "final"
    return Path("runs") / f"{method}-{recipe.detector.name}-{recipe.hash()[:8]}"


def train_alone(
    side: str, recipe: Recipe, seeds: list[int], folder: Path, train: RunsOptions
) -> list[dict[str, Any]]:
    """One recipe alone, once a seed; returns folder and metrics of each, and tells them unless as JSON."""
    from detsearch_cli.engine.comparison import PlannedRun
    from detsearch_cli.engine.trial import load_data, train_with_retry

    entrants = [PlannedRun(side, recipe.with_({"seed": s}), folder / f"{side}-seed{s}") for s in seeds]
    train_in_workers(entrants, folder, "detsearch_cli.engine.trial:run_trial", train)
    results = []
    for one in entrants:
        with console.training_bar(title(one)) as watch:
            metrics = train_with_retry(one.recipe, load_data(one.recipe.data), one.folder, watch)
        results.append({"run": str(one.folder), **metrics})
        if not train.json:
            console.coco_table(f"{one.folder}: AP on {metrics['split']}", metrics["coco"])
    return results


def compare(
    baseline: Recipe,
    searched: Recipe,
    seeds: list[int],
    folder: Path,
    train: RunsOptions,
    sides: tuple[str, str] = ("baseline", "searched"),
) -> RunComparison:
    """Both sides over all seeds, with a progress bar for each training."""
    from detsearch_cli.engine.comparison import compare_recipes, planned_runs

    named = dict(zip(sides, (baseline, searched), strict=True))
    every = planned_runs(named, seeds, folder)
    train_in_workers(every, folder, "detsearch_cli.engine.comparison:train_and_detect", train)
    with ExitStack() as stack:
        bars: list[ExitStack] = []

        def watch(title: str) -> Callable[[Any], None]:
            if bars:
                bars.pop().close()
            bar = stack.enter_context(ExitStack())
            bars.append(bar)
            shown: Callable[[Any], None] = bar.enter_context(console.training_bar(title))
            return shown

        return compare_recipes(named, seeds, folder, watch)


def train_in_workers(
    entrants: Sequence[PlannedRun], folder: Path, run_trial: str, train: RunsOptions
) -> None:
    """Several trainings at a time, or elsewhere; one at a time on this machine is left to the caller."""
    if train.jobs == 1 and train.executor == "local":
        return
    from detsearch_cli.engine.checkpoint import claim
    from detsearch_cli.search.batch import run_batch

    for one in entrants:
        claim(one.folder, one.recipe)

    def tell_done(number: int, metrics: Mapping[str, Any]) -> None:
        ap, split = console.percent(metrics["AP"]), metrics["split"]
        console.say(f"{title(entrants[number])}: AP {ap} on {split}, {metrics['train_seconds']:.0f} s")

    run_batch([e.folder for e in entrants], folder, run_trial, train.jobs, train.executor, tell_done)


def title(entrant: PlannedRun) -> str:
    return f"{entrant.side}, seed {entrant.recipe.seed}"


def record(outcome: RunComparison, folder: Path, study: Path | None) -> None:
    """contest.json beside the runs, and in the study it belongs to."""
    from detsearch_cli.cli.hunt import CONTEST
    from detsearch_cli.files import write_json

    for place in {folder, study or folder}:
        write_json(place / CONTEST, outcome.to_json())


def tell(outcome: RunComparison) -> None:
    """The table of seeds, and the verdict with its interval."""
    rows = []
    below, above = outcome.sides
    for side in outcome.sides:
        aps = outcome.aps(side)
        seconds = [e.train_seconds for e in outcome.runs if e.side == side]
        mean = sum(aps) / len(aps)
        each = "  ".join(console.percent(ap) for ap in aps)
        rows.append([side, console.percent(mean), each, f"{sum(seconds) / len(seconds):.0f}"])
    title = f"AP on {outcome.split.name} ({len(outcome.split)} images)"
    console.table(title, ["", "mean", "by seed", "seconds a training"], rows)
    against = outcome.against[above]
    decisive = against.decisive
    if decisive.low > 0:
        verdict = f"{above} is better than {below}"
    elif decisive.high < 0:
        verdict = f"{above} is worse than {below}"
    else:
        verdict = "within noise"
    over = f"{len(outcome.aps(below))} seeds" if against.over_seeds else "images, one seed"
    console.say(f"difference: {console.interval_text(decisive)}, 95% interval over {over}: {verdict}")
    if against.over_seeds is not None:
        images = console.interval_text(against.over_images)
        console.say(f"first seed alone, bootstrap over images: {images}")
