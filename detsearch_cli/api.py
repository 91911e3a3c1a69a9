"""detsearch from Python: train, evaluate, search, compare, predict; each returns typed results and prints nothing.

    from detsearch_cli import api

    result = api.search("assign", {"detector": "fcos", "data": {"source": "path/to/set"}}, trials=20)
    if result.fragment:  # something better than the recipe as given
        comparison = api.compare(result.recipe, result.recipe_with_finding, seeds=3)

A recipe is a Recipe, a mapping of its keys, or a YAML file. The command line stands on the same functions. Errors are
those of detsearch_cli.errors: one sentence each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import RecipeError
from detsearch_cli.session.runs import Callbacks, Placement, TrainedRun, compare_sides
from detsearch_cli.session.search import SEARCHED, new_search, run_search
from detsearch_cli.session.study import Settings, final, noise_seeds_of, races_of, unused_seed

if TYPE_CHECKING:
    import numpy as np

    from detsearch_cli.engine.comparison import RunComparison
    from detsearch_cli.engine.evaluate import Evaluation
    from detsearch_cli.engine.train import OnProgress
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.search.plan import Event, Outcome

__all__ = ["Prediction", "SearchFinding", "compare", "evaluate", "predict", "search", "train"]


SEEDS_OF_A_TEST = 100


@dataclass(frozen=True)
class SearchFinding:
    """What a search found, and the two recipes to train next: as given, and with the finding laid over it.

    Their seed, and the hundred from it on, are none that the search has trained with.
    """

    folder: Path
    outcome: Outcome
    fragment: Fragment
    recipe: Recipe
    recipe_with_finding: Recipe


@dataclass(frozen=True)
class Prediction:
    """Detections of one image, best first. boxes (N, 4) xyxy px of the image, scores (N,), labels (N,) into classes."""

    image: Path
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def recipe_of(
    recipe: Recipe | Mapping[str, Any] | Path | str, below: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe, read and validated where it is a file or a mapping, then laid over `below`. Raises RecipeError."""
    from detsearch_cli.recipe import DEFAULTS, Recipe, compose, read_fragment

    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Path | str):
        given, origin = read_fragment(Path(recipe)), str(recipe)
    elif isinstance(recipe, Mapping) and recipe:
        given, origin = dict(recipe), "recipe"
    else:
        raise RecipeError(f"a recipe is a Recipe, a mapping of its keys, or a YAML file, got {recipe!r}")
    return compose([(DEFAULTS, dict(below or {})), (origin, given)])


def default_folder(recipe: Recipe, kind: str = "") -> Path:
    """runs/fcos-bccd-1a2b3c4d: readable, and the same for the same recipe. kind: a word to begin with."""
    data = Path(recipe.data.source.partition(":")[0]).name or "data"
    words = [kind] if kind else []
    return Path("runs") / "-".join([*words, recipe.detector.name, data, recipe.hash()[:8]])


def train(
    recipe: Recipe | Mapping[str, Any] | Path | str,
    out: Path | str | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> TrainedRun:
    """Train the recipe in the folder `out`; the same call goes on with an interrupted training, or finds it done.

    Raises OutputError for a folder that holds anything but this recipe's run, and what engine.train raises.
    """
    from detsearch_cli.engine.trial import load_data, train_with_retry
    from detsearch_cli.session.search import refuse_untrainable

    whole = recipe_of(recipe)
    folder = Path(out) if out is not None else default_folder(whole)
    data = load_data(whole.data)
    refuse_untrainable(whole, data.train.classes)  # else a typo would claim the folder for its recipe
    return TrainedRun(folder, train_with_retry(whole, data, folder, on_progress))


def evaluate(
    run: Path | str,
    data: str | None = None,
    split: str | None = None,
    *,
    weights: str = "last",
    device: str = "auto",
) -> Evaluation:
    """Score a run folder or a .safetensors file. data, split: None for the run's own, test where there is one.

    Warns of images that were left out or trained on, and of data that changed since the training. Raises
    CheckpointError, DataError, EvaluationError.
    """
    from detsearch_cli.engine.evaluate import evaluate as score
    from detsearch_cli.engine.score import detect_and_note

    found = detect_and_note(Path(run), data, split, f"{weights}.safetensors", device)
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return score(found.split, found.table)


def search(
    method: str,
    recipe: Recipe | Mapping[str, Any] | Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    trials: int = 20,
    noise_seeds: int | None = None,
    repeats: str = "auto",
    early_stop: bool | None = None,
    time_budget: float | None = None,
    sampler: str | Mapping[str, Any] | None = None,
    jobs: int = 1,
    executor: str = "local",
    storage: str | None = None,
    name: str = "",
    out: Path | str = Path("studies"),
    on_event: Callable[[Event], None] = lambda event: None,
) -> SearchFinding:
    """Search with a method, "assign" say, for what is laid over the recipe; the same call goes on where it was.

    options: the method's own. noise_seeds: trainings of the baseline, each with another seed, which tell what is luck; None:
    as on the command line. repeats: "auto" to train the leaders again with further seeds, or "1". early_stop: end where no
    candidate can overtake the best any more; None: with repeats "auto". time_budget: seconds. As on the command line, a
    training is scored at its end alone and keeps its images in memory unless the recipe says otherwise. Raises what
    session.search.run_search raises.
    """
    from detsearch_cli.methods.base import load_method
    from detsearch_cli.recipe import with_fragment

    made = load_method(method, options or {})
    seeds = noise_seeds_of(trials, noise_seeds)
    races = races_of(repeats, seeds)
    settings = Settings(
        name=name,
        storage=storage,
        trials=trials,
        noise_seeds=seeds,
        races=races,
        stops=races if early_stop is None else early_stop,
        time_budget=time_budget,
        jobs=jobs,
        executor=executor,
    )
    below = {**SEARCHED, **made.defaults}
    wanted = new_search(made, recipe_of(recipe, below), settings, Path(out), sampler)
    result = run_search(wanted, on_event)
    fresh = unused_seed(result.folder, wanted.recipe.seed, SEEDS_OF_A_TEST)
    whole = with_fragment(final(wanted.recipe), {"seed": fresh})
    return SearchFinding(
        result.folder, result.outcome, result.fragment, whole, with_fragment(whole, result.fragment)
    )


def compare(
    a: Recipe | Mapping[str, Any] | Path | str,
    b: Recipe | Mapping[str, Any] | Path | str,
    *,
    seeds: int = 3,
    out: Path | str | None = None,
    jobs: int = 1,
    executor: str = "local",
    on_run: Callable[[str], OnProgress] = lambda title: lambda progress: None,
) -> RunComparison:
    """Train both recipes with the same seeds and score them on the final split: b minus a, with a 95% interval.

    The same call goes on with what was interrupted. Raises OutputError for a folder that holds anything else, and
    RecipeError for two equal recipes, whose difference would be nothing but noise.
    """
    if not isinstance(seeds, int):
        raise RecipeError(f"seeds is how many seeds each recipe is trained with, got {seeds!r}")
    recipes = {"a": recipe_of(a), "b": recipe_of(b)}
    folder = Path(out) if out is not None else default_folder(recipes["b"], "compare")
    first = recipes["a"].seed
    return compare_sides(
        recipes,
        [first + i for i in range(seeds)],
        folder,
        Placement(jobs, executor),
        Callbacks(on_run=on_run),
    )


def predict(
    run: Path | str, images: Sequence[Path | str] | Path | str, *, device: str = "auto"
) -> list[Prediction]:
    """Detections of image files, or of the images in folders. Raises CheckpointError and DataError."""
    from detsearch_cli.engine.checkpoint import load_detector
    from detsearch_cli.engine.machine import pick_device
    from detsearch_cli.engine.predict import detect_split, expand_images, image_split, per_image

    files = expand_images([Path(images)] if isinstance(images, str | Path) else map(Path, images))
    model, recipe, classes = load_detector(Path(run))
    split, where = image_split(files, classes), pick_device(device)
    table = detect_split(model.to(where), split, recipe, where)
    return [
        Prediction(file, rows.boxes, rows.scores, rows.labels, classes)
        for file, rows in zip(files, per_image(table, len(split)), strict=True)
    ]
