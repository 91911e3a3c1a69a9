"""Is one recipe better than another? Train each with the same seeds, score all on images that no search has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detsearch_cli.data.types import Split
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.checkpoint import FINAL
from detsearch_cli.engine.compare import Comparison, paired_bootstrap, seed_interval
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import Evaluation, evaluate
from detsearch_cli.engine.score import detect_with, final_split
from detsearch_cli.engine.train import OnProgress
from detsearch_cli.engine.trial import load_data, train_with_retry
from detsearch_cli.errors import EvaluationError, RecipeError
from detsearch_cli.fragments import differences
from detsearch_cli.reading import parse_yaml
from detsearch_cli.recipe import Recipe, validate, with_fragment


@dataclass(frozen=True)
class PlannedRun:
    """A training that a comparison needs."""

    side: str
    recipe: Recipe
    folder: Path

    @property
    def title(self) -> str:
        """What a progress bar calls it."""
        return f"{self.side}, seed {self.recipe.seed}"


@dataclass(frozen=True)
class ScoredRun:
    """One training of one side, scored on the final split."""

    side: str
    seed: int
    folder: Path
    evaluation: Evaluation
    table: DetectionTable
    train_seconds: float

    @property
    def ap(self) -> float:
        return self.evaluation.coco["AP"]

    def to_json(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "seed": self.seed,
            "run": str(self.folder),
            "train_seconds": self.train_seconds,
            **self.evaluation.to_json(),
        }


@dataclass(frozen=True)
class SideComparison:
    """One side against the first. over_images: the paired bootstrap of the two detectors of the first seed.

    over_seeds: the t interval over all seeds, None with a single one.
    """

    over_images: Comparison
    over_seeds: Comparison | None

    @property
    def decisive(self) -> Comparison:
        """The interval over seeds where there are several: seed noise exceeds image noise on small sets."""
        return self.over_seeds or self.over_images

    def to_json(self) -> dict[str, Any]:
        return {
            "over_images": asdict(self.over_images),
            "over_seeds": asdict(self.over_seeds) if self.over_seeds else None,
        }


@dataclass(frozen=True)
class RunComparison:
    """All sides over all seeds. against: every side but the first -> that side against the first."""

    split: Split
    runs: tuple[ScoredRun, ...]
    sides: tuple[str, ...]
    against: dict[str, SideComparison]

    def aps(self, side: str) -> list[float]:
        """AP of every seed of a side, in the order of the seeds."""
        return [run.ap for run in self.runs if run.side == side]

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split.name,
            "images": len(self.split),
            "sides": list(self.sides),
            "runs": [run.to_json() for run in self.runs],
            "comparisons": {side: found.to_json() for side, found in self.against.items()},
        }


def compare_recipes(
    sides: Mapping[str, Recipe],
    seeds: Sequence[int],
    folder: Path,
    on_run: Callable[[str], OnProgress] = lambda _: lambda _: None,
) -> RunComparison:
    """Train every side once a seed, at equal cost, and compare each with the first on the final split.

    sides: name -> recipe; the names are those of the folders too. `on_run` is given the title of each training and
    returns its progress callback. The same call resumes, and finds what `train_and_detect` did in other processes.
    Raises EvaluationError for fewer than two sides, for no or repeated seeds, and for sides with different data.
    """
    _refuse_incomparable(sides, seeds)
    split = final_split(next(iter(sides.values())).data)
    planned = planned_runs(sides, seeds, folder)
    runs = tuple(_score(run, split, on_run(run.title)) for run in planned)
    first, *others = sides
    against = {side: _compare(runs, first, side, split) for side in others}
    return RunComparison(split, runs, tuple(sides), against)


def planned_runs(sides: Mapping[str, Recipe], seeds: Sequence[int], folder: Path) -> list[PlannedRun]:
    """Every training of a comparison. Sides take turns, seed by seed: a comparison cut short has pairs."""
    return [
        PlannedRun(side, with_fragment(recipe, {"seed": seed}), folder / f"{side}-seed{seed}")
        for seed in seeds
        for side, recipe in sides.items()
    ]


def train_and_detect(recipe_yaml: str, workdir: str) -> dict[str, Any]:
    """One training with its detections on the final split: what a worker runs. Returns the metrics."""
    recipe = validate(parse_yaml(recipe_yaml, "the recipe of this training", RecipeError))
    return _train(recipe, Path(workdir), final_split(recipe.data), lambda _: None)


def _refuse_incomparable(sides: Mapping[str, Recipe], seeds: Sequence[int]) -> None:
    if len(sides) < 2:
        raise EvaluationError(f"a comparison needs at least two sides, got {', '.join(sides) or 'none'}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise EvaluationError(f"a comparison needs seeds that differ, at least one, got {list(seeds)}")
    (first, recipe), *others = sides.items()
    for side, other in others:
        # other images, or others held out: the scores would differ for reasons that no interval knows
        unequal = differences(recipe.data.model_dump(), other.data.model_dump())
        if unequal:
            raise EvaluationError(
                f"{first} and {side} have different data ({unequal[0]}), so their scores cannot be compared; "
                "give both the same"
            )


def _compare(runs: Sequence[ScoredRun], first: str, other: str, split: Split) -> SideComparison:
    a, b = ([run for run in runs if run.side == side] for side in (first, other))
    # one seed's detectors: the bootstrap is over images, and a mean over seeds is no detector
    over_images = paired_bootstrap(split, a[0].table, b[0].table)
    over_seeds = seed_interval([run.ap for run in a], [run.ap for run in b]) if len(a) > 1 else None
    return SideComparison(over_images, over_seeds)


def _score(planned: PlannedRun, split: Split, on_progress: OnProgress) -> ScoredRun:
    metrics = _train(planned.recipe, planned.folder, split, on_progress)
    # read back also where it was just made: a resumed comparison then has the same numbers to the last bit
    table = DetectionTable.load(planned.folder / FINAL, split)
    seconds = metrics["train_seconds"]
    return ScoredRun(
        planned.side, planned.recipe.seed, planned.folder, evaluate(split, table), table, seconds
    )


def _train(recipe: Recipe, folder: Path, split: Split, on_progress: OnProgress) -> dict[str, Any]:
    metrics = train_with_retry(recipe, load_data(recipe.data), folder, on_progress)
    if not (folder / FINAL).is_file():
        # the last weights: best.safetensors is there with eval_every alone, and was chosen by the validation split
        _, table = detect_with(folder, None, None, ckpt.LAST, recipe.runtime.device)
        # ours: `train` has claimed the folder, and the name is of RUN_FILES
        table.save(folder / FINAL, split)
    return metrics
