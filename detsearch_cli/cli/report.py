"""Write the HTML page of a study or a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detsearch_cli.errors import StudyError

if TYPE_CHECKING:
    from detsearch_cli.data.types import Split
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.page import ClassScore, Sample
    from detsearch_cli.report.verdict import Comparison
    from detsearch_cli.search.study import Study, TrialRow

PAGE = "report.html"
SAMPLES = 4
SHOWN_SCORE = 0.3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study or a run.")],
) -> None:
    """Write report.html of a study or a run: one self-contained page."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.hunt import SETTINGS

    page = write_study_page(folder) if (folder / SETTINGS).is_file() else write_run_page(folder)
    console.say(f"wrote {page}")


def write_study_page(folder: Path) -> Path:
    """Write the page of the study in `folder`; returns its path."""
    from detsearch_cli.cli.hunt import BEST_FRAGMENT, base_recipe, read_settings
    from detsearch_cli.engine.versions import versions
    from detsearch_cli.methods.base import load_method
    from detsearch_cli.report.page import StudyPage
    from detsearch_cli.search.study import open_study

    settings = read_settings(folder)
    study = open_study(folder, settings.name, settings.storage)
    recipe = base_recipe(settings)
    method = load_method(settings.method, settings.method_options)
    best = study.best
    tables, figures = (
        method.found(recipe, best.candidate) if best is not None and best.candidate is not None else ([], [])
    )
    contest = read_contest(folder)
    fragment = folder / BEST_FRAGMENT
    trained = [row for row in study.rows if row.seconds is not None and row.repeat_of is None]
    page = StudyPage(
        name=settings.name,
        method=settings.method,
        rows=study.rows,
        split=f"the held-out split ({_images(study)} images)",
        comparison=contest,
        importances=importances(study),
        tables=tables,
        figures=figures,
        classes=class_scores(study.baseline, best),
        samples=samples(recipe, study.baseline, best),
        fragment_yaml=fragment.read_text(encoding="utf-8") if fragment.is_file() else "",
        usage=[
            f"detsearch {settings.method} train --study {folder} --baseline --seeds 3",
            f"detsearch train --recipe {fragment} --data DATA",
        ],
        setup={
            "detector": recipe.detector.name,
            "backbone": recipe.backbone.name,
            "data": Path(recipe.data.source).name,
            "sampler": settings.sampler,
            "epochs": str(recipe.schedule.epochs),
            "image size": " x ".join(map(str, recipe.augment.image_size)),
        },
        recipe_yaml=settings.recipe,
        versions=versions(),
        seeds={"search": settings.seed, "training": recipe.seed, "split": recipe.data.split_seed},
        command=settings.command,
        timing={"trials": sum(row.seconds or 0.0 for row in trained)},
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
    )
    page.write(folder / PAGE)
    return folder / PAGE


def _images(study: Study) -> int:
    return next((int(r.metrics["val_images"]) for r in study.rows if "val_images" in r.metrics), 0)


def importances(study: Study) -> Mapping[str, float]:
    """Which parameters decided the AP of the trials; empty while there are too few, or for a single one."""
    from detsearch_cli.search.importance import importances as compute

    return compute(study) if len(study.space.parameters) > 1 else {}


def read_contest(folder: Path) -> Comparison | None:
    """The final comparison that `train --study FOLDER --baseline` left in the study's folder."""
    from detsearch_cli.cli.hunt import CONTEST

    path = folder / CONTEST
    if not path.is_file():
        return None
    try:
        return to_comparison(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} is damaged ({error}); remove it, or give the `train --baseline` command again, "
            "which writes it anew"
        ) from error


def to_comparison(contest: Mapping[str, Any]) -> Comparison:
    """A contest's JSON as the page shows it: over seeds where there are several, else over images."""
    from detsearch_cli.report.verdict import Comparison

    runs = contest["runs"]
    aps = {side: [r["coco"]["AP"] for r in runs if r["side"] == side] for side in ("baseline", "searched")}
    (against,) = contest["comparisons"].values()
    over_seeds, over_images = against["over_seeds"], against["over_images"]
    chosen = over_seeds or over_images
    how = "t interval over paired seeds" if over_seeds else "paired bootstrap over images, one seed"
    return Comparison(
        seeds=[r["seed"] for r in runs if r["side"] == "baseline"],
        baseline=aps["baseline"],
        searched=aps["searched"],
        difference=chosen["difference"],
        low=chosen["low"],
        high=chosen["high"],
        how=how,
        split=contest["split"],
        images=contest["images"],
    )


def class_scores(baseline: TrialRow | None, best: TrialRow | None) -> list[ClassScore]:
    """Per-class AP of the baseline's trial beside the best's."""
    from detsearch_cli.report.page import ClassScore

    if baseline is None or "per_class" not in baseline.metrics:
        return []
    searched = {}
    if best is not None and not best.baseline:
        searched = {row["name"]: row["AP"] for row in best.metrics.get("per_class", [])}
    return [
        ClassScore(row["name"], row["boxes"], row["AP"], searched.get(row["name"]))
        for row in baseline.metrics["per_class"]
    ]


def samples(recipe: Recipe, baseline: TrialRow | None, best: TrialRow | None) -> list[Sample]:
    """The held-out images with the most objects: ground truth, baseline and best side by side."""
    from detsearch_cli.engine.checkpoint import DETECTIONS
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.report.page import Sample

    sides = {"baseline": baseline, "best": best if best is not None and not best.baseline else None}
    found = {
        name: row.folder / DETECTIONS
        for name, row in sides.items()
        if row is not None and (row.folder / DETECTIONS).is_file()
    }
    if not found:
        return []
    split = load_data(recipe.data).val
    tables = {name: DetectionTable.load(path, split) for name, path in found.items()}
    crowded = sorted(range(len(split)), key=lambda i: -len(split.records[i].boxes))[: SAMPLES * 3 : 3]
    return [
        Sample(f"image {split.records[i].image_id}", [(n, p) for n, p in pictures(split, i, tables).items()])
        for i in crowded
    ]


def pictures(split: Split, index: int, tables: Mapping[str, DetectionTable]) -> dict[str, Any]:
    """Image `index` with its ground truth, and once for every table of detections."""
    from detsearch_cli.data.drawing import draw

    record, image = split.records[index], split.read(index)
    shown = {f"ground truth: {_boxes(record)}": draw(image, record.boxes, record.labels, split.classes)}
    for name, table in tables.items():
        own = table.select((table.image == index) & (table.scores >= SHOWN_SCORE))
        shown[f"{name}: {_boxes(own)} with score {SHOWN_SCORE:g} or more"] = draw(
            image, own.boxes, own.labels, split.classes, own.scores
        )
    return shown


def _boxes(of: Any) -> str:
    return "1 box" if len(of.boxes) == 1 else f"{len(of.boxes)} boxes"


def write_run_page(folder: Path) -> Path:
    """Write the page of the run in `folder`; returns its path. Raises CheckpointError for an unfinished run."""
    from detsearch_cli.cli.shapes import run_figures
    from detsearch_cli.engine.checkpoint import DETECTIONS, LOG, read_metrics, read_recipe
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.errors import CheckpointError
    from detsearch_cli.report.page import RunClass, RunPage, Sample

    recipe, metrics = read_recipe(folder), read_metrics(folder)
    if metrics is None:
        raise CheckpointError(
            f"{folder} is not finished: it holds no metrics.json; train it to the end first"
        )
    data = load_data(recipe.data)
    split = data.val
    tables = {"detections": DetectionTable.load(folder / DETECTIONS, split)}
    crowded = sorted(range(len(split)), key=lambda i: -len(split.records[i].boxes))[: SAMPLES * 3 : 3]
    page = RunPage(
        name=folder.name,
        coco=metrics["coco"],
        split=metrics["split"],
        epochs=epochs((folder / LOG).read_text(encoding="utf-8").splitlines()),
        classes=[RunClass(r["name"], r["boxes"], r["AP"], r["AP50"]) for r in metrics["per_class"]],
        samples=[
            Sample(f"image {split.records[i].image_id}", list(pictures(split, i, tables).items()))
            for i in crowded
        ],
        figures=run_figures(folder, recipe, data.train),
        setup={
            "detector": recipe.detector.name,
            "backbone": recipe.backbone.name,
            "data": Path(recipe.data.source).name,
        },
        recipe_yaml=recipe.to_yaml(),
        versions=metrics["versions"],
        seeds={"training": recipe.seed},
        timing={"training": metrics["train_seconds"]},
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
    )
    page.write(folder / PAGE)
    return folder / PAGE


def epochs(lines: list[str]) -> list[Any]:
    """Mean losses of every epoch, and its AP where it was evaluated, from log.jsonl."""
    from detsearch_cli.report.figures import EpochPoint

    steps: dict[int, list[dict[str, float]]] = {}
    aps: dict[int, float] = {}
    for line in lines:
        entry = json.loads(line)
        if "step" in entry:
            losses = {k: v for k, v in entry.items() if k not in ("step", "epoch", "lr")}
            steps.setdefault(entry["epoch"], []).append(losses)
        elif "AP" in entry:
            aps[entry["epoch"]] = entry["AP"]
    return [EpochPoint(epoch, _means(seen), aps.get(epoch)) for epoch, seen in sorted(steps.items())]


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Each term's mean over the steps that have it: some terms are there in a warm-up only."""
    terms = dict.fromkeys(term for step in steps for term in step)
    found = {term: [step[term] for step in steps if term in step] for term in terms}
    return {term: sum(values) / len(values) for term, values in found.items()}
