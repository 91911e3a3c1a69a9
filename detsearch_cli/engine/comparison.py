"""Is one recipe better than another? Train both with the same seeds, score both on images no search has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detsearch_cli.data.types import Split
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.compare import Comparison, paired_bootstrap, seed_interval
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import Evaluation, evaluate
from detsearch_cli.engine.score import detect_with, final_split
from detsearch_cli.engine.train import Watch
from detsearch_cli.engine.trial import load_data, train_with_retry
from detsearch_cli.recipe import Recipe, validate

SIDES, FINAL = ("baseline", "searched"), "detections.final.json"


@dataclass(frozen=True)
class Entrant:
    """A training that a contest needs."""

    side: str
    recipe: Recipe
    folder: Path


@dataclass(frozen=True)
class Entry:
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


@dataclass(frozen=True)
class Contest:
    """Both sides over all seeds. `over_images` is the paired bootstrap of the first seed's two detectors."""

    split: Split
    entries: tuple[Entry, ...]
    over_images: Comparison
    over_seeds: Comparison | None
    sides: tuple[str, str] = SIDES

    def aps(self, side: str) -> list[float]:
        """AP of every seed of a side, in the order of the seeds."""
        return [e.ap for e in self.entries if e.side == side]

    @property
    def decisive(self) -> Comparison:
        """The interval over seeds where there are several: seed noise exceeds image noise on small sets."""
        return self.over_seeds or self.over_images

    def to_json(self) -> dict[str, Any]:
        from dataclasses import asdict

        return {
            "split": self.split.name,
            "images": len(self.split),
            "runs": [
                {
                    "side": e.side,
                    "seed": e.seed,
                    "run": str(e.folder),
                    "train_seconds": e.train_seconds,
                    **e.evaluation.to_json(),
                }
                for e in self.entries
            ],
            "over_images": asdict(self.over_images),
            "over_seeds": asdict(self.over_seeds) if self.over_seeds else None,
        }


def contest(
    baseline: Recipe,
    searched: Recipe,
    seeds: Sequence[int],
    folder: Path,
    watch: Callable[[str], Watch] = lambda _: lambda _: None,
    sides: tuple[str, str] = SIDES,
) -> Contest:
    """Train both recipes once a seed, at equal cost, and compare them on the final split.

    sides: what the two are called, in tables and in the names of their folders. `watch` is given a title for each
    training and returns its progress callback. The same call resumes, and finds what `train_entry` did in other
    processes.
    """
    split = final_split(searched.data)
    entries = [
        _enter(entrant, split, watch(f"{entrant.side}, seed {entrant.recipe.seed}"))
        for entrant in entrants(baseline, searched, seeds, folder, sides)
    ]
    first = {e.side: e.table for e in entries if e.seed == seeds[0]}
    over_images = paired_bootstrap(split, first[sides[0]], first[sides[1]])
    over_seeds = None
    if len(seeds) > 1:
        aps = {side: [e.ap for e in entries if e.side == side] for side in sides}
        over_seeds = seed_interval(aps[sides[0]], aps[sides[1]])
    return Contest(split, tuple(entries), over_images, over_seeds, sides)


def entrants(
    baseline: Recipe,
    searched: Recipe,
    seeds: Sequence[int],
    folder: Path,
    sides: tuple[str, str] = SIDES,
) -> list[Entrant]:
    """Every training of a contest: both sides take turns, seed by seed."""
    return [
        Entrant(side, recipe.with_({"seed": seed}), folder / f"{side}-seed{seed}")
        for seed in seeds
        for side, recipe in zip(sides, (baseline, searched), strict=True)
    ]


def train_entry(recipe_yaml: str, workdir: str) -> dict[str, Any]:
    """One training with its detections on the final split: what a worker runs. Returns the metrics."""
    recipe = validate(yaml.safe_load(recipe_yaml))
    return _train(recipe, Path(workdir), final_split(recipe.data), lambda _: None)


def _enter(entrant: Entrant, split: Split, watch: Watch) -> Entry:
    metrics = _train(entrant.recipe, entrant.folder, split, watch)
    table = DetectionTable.load(entrant.folder / FINAL, split)
    result = evaluate(split, table)
    return Entry(entrant.side, entrant.recipe.seed, entrant.folder, result, table, metrics["train_seconds"])


def _train(recipe: Recipe, folder: Path, split: Split, watch: Watch) -> dict[str, Any]:
    metrics = train_with_retry(recipe, load_data(recipe.data), folder, watch)
    if not (folder / FINAL).is_file():
        _, table = detect_with(folder, None, None, ckpt.LAST, recipe.runtime.device)
        table.save(folder / FINAL, split)
    return metrics
