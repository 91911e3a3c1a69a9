"""report.html of a study or of a run: everything that the page shows, gathered from their folders."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli import reading
from detsearch_cli.errors import CheckpointError, DetsearchError, StudyError
from detsearch_cli.files import finite
from detsearch_cli.methods.base import load_method, method_class, methods
from detsearch_cli.reading import whole
from detsearch_cli.session.runs import BASELINE, comparison_file
from detsearch_cli.session.study import BEST, SETTINGS, identity_of, read_settings, recipe_of, study_of
from detsearch_cli.trials import candidates

if TYPE_CHECKING:
    from detsearch_cli.data.types import Split
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.documents import ClassRow
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure
    from detsearch_cli.report.page import ClassScore, SideBySide
    from detsearch_cli.report.verdict import SeedComparison
    from detsearch_cli.search.study import Study, Trial
    from detsearch_cli.session.documents import ComparisonDocument

PAGE = "report.html"
SAMPLES = 4
SHOWN_SCORE = 0.3  # where no detection is right


def write_page(folder: Path) -> Path:
    """Write the page of the study or the run in `folder`; returns its path."""
    return write_study_page(folder) if (folder / SETTINGS).is_file() else write_run_page(folder)


def write_study_page(folder: Path) -> Path:
    """Write the page of the study in `folder`; returns its path. Raises StudyError."""
    from detsearch_cli.engine.versions import versions
    from detsearch_cli.report.page import StudyPage
    from detsearch_cli.search.noise import noise_of

    settings, study = read_settings(folder), study_of(folder)
    recipe, best = recipe_of(study, settings), study.best
    method = identity_of(study)["method"]
    fragment = folder / BEST
    page = StudyPage(
        name=settings.name,
        method=method,
        rows=study.trials,
        split=f"the held-out split ({_images(study)} images)",
        comparison=comparison_of(folder, study),
        noise=noise.sd if (noise := noise_of(study.trials)) else None,
        luck=luck(study),
        importances=importances(study),
        tables=tables(method, recipe, best),
        figures=study_figures(method, study),
        classes=class_scores(study.baseline, best),
        class_split="the held-out split, with the first seed"
        if noise_of(study.trials)
        else "the held-out split",
        samples=samples(recipe, study.baseline, best),
        fragment_yaml=reading.read_text(fragment, StudyError) if fragment.exists() else "",
        usage=usage(method, folder, study),
        setup=_setup(recipe)
        | {
            "sampler": study.config.sampler.name,
            "epochs": str(recipe.schedule.epochs),
            "image size": " x ".join(map(str, recipe.augment.image_size)),
        },
        recipe_yaml=recipe.to_yaml(),
        versions=versions(),
        seeds={"search": study.config.seed, "training": recipe.seed, "split": recipe.data.split_seed},
        command=settings.command,
        timing={"trials": sum(t.seconds or 0.0 for t in study.trials if t.repeat_of is None)},
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
    )
    page.write(folder / PAGE)
    return folder / PAGE


def usage(method: str, folder: Path, study: Study) -> list[str]:
    """The commands that go on from here."""
    test, leader = f"detsearch {method} train --study {folder}", study.leader
    if study.best is not None and study.best.baseline:
        # best.yaml changes nothing, so that there is nothing to carry elsewhere
        return [f"{test} --trial {leader.trial.number} --baseline --seeds 5"] if leader is not None else []
    return [f"{test} --baseline --seeds 3", f"detsearch train --recipe {folder / BEST} --data DATA"]


def luck(study: Study) -> list[str]:
    """How much of a difference between two trainings of this search may be luck, for a person without statistics."""
    from detsearch_cli.search import settling
    from detsearch_cli.search.noise import luck as by_luck
    from detsearch_cli.search.noise import noise_of
    from detsearch_cli.trials import SURE, percent, points

    noise, leader = noise_of(study.trials), study.leader
    if noise is None:
        return []
    scores = [points(score) for score in noise.scores]
    told = [
        f"The recipe as given was trained {len(scores)} times, each time with another random seed and nothing else "
        f"changed, and scored AP {', '.join(scores[:-1])} and {scores[-1]}: that is how far apart equal trainings end, and "
        "the band in the picture."
    ]
    if noise.sd == 0:
        return [*told, "Equal scores say nothing of the noise; train longer."]
    course = settling.course_of(study.trials)
    short = settling.in_words(course) if course is not None else None
    if short is not None:
        told.append(f"Beware: {short}.")
    if leader is None or leader.gain is None:
        return told
    count, gain = len(candidates(study.trials)), leader.gain
    if count > 1:
        told.append(
            f"The luckiest of {count} candidates that are no better than the baseline would score "
            f"{points(by_luck(count, noise.sd))} above it, so the highest score is not believed: every score is drawn "
            "towards the others', the more the fewer seeds it rests on."
        )
    told.append(
        "What is left is the gain that can be expected, a diamond in the picture, and the bar through it holds the true one "
        "with 95%; where a bar reaches the dashed line, the candidate may be no better than the baseline, or worse."
    )
    verdict = "enough" if gain.better >= SURE else f"less than the {percent(SURE)} asked for"
    told.append(
        f"Of trial {leader.trial.number} a gain of {points(gain.expected, signed=True)} AP is expected, and it is better "
        f"than the baseline with a probability of {percent(gain.better)}: {verdict} to call it found. "
        "Whether that is true is told by new seeds on images that the search never used."
    )
    return told


def _setup(recipe: Recipe) -> dict[str, str]:
    return {
        "detector": recipe.detector.name,
        "backbone": recipe.backbone.name,
        "data": Path(recipe.data.source).name,
    }


def _images(study: Study) -> int:
    counts = (whole(trial.metrics.get("val_images")) for trial in study.trials)
    return next((count for count in counts if count is not None), 0)


def tables(method: str, recipe: Recipe, best: Trial | None) -> list[Any]:
    """The best candidate as its method shows it; nothing for the baseline.

    The trial's own fragment is enough: no option of the method is needed to read it.
    """
    if best is None or best.baseline:
        return []
    from detsearch_cli.recipe import with_fragment

    return list(method_class(method)().tables(with_fragment(recipe, best.fragment)))


def study_figures(method: str, study: Study) -> Sequence[Figure]:
    """Where the search went, as its method shows it."""
    return load_method(method, identity_of(study)["options"]).study_figures(study)


def importances(study: Study) -> Mapping[str, float]:
    """Which parameters decided the AP of the trials; empty for a single one, or a space without parameters."""
    from detsearch_cli.search.importance import importances as compute
    from detsearch_cli.search.space import Product

    space = study.config.space
    return compute(study) if isinstance(space, Product) and len(space.parameters) > 1 else {}


def comparison_of(folder: Path, study: Study) -> SeedComparison | None:
    """The test of the finding; where nothing was found, that of the candidate that leads, if it was tested."""
    leader = study.leader
    if study.best is not None and study.best.baseline and leader is not None:
        tested = read_comparison(comparison_file(folder, leader.trial.number))
        if tested is not None:
            return tested
    return read_comparison(comparison_file(folder, None))


def read_comparison(path: Path) -> SeedComparison | None:
    """The comparison that `train --study FOLDER --baseline` left in the study's folder."""
    from detsearch_cli.document import checked
    from detsearch_cli.session.documents import ComparisonDocument

    if not path.exists():
        return None
    remedy = "remove it, or give the `train --baseline` command again, which writes it anew"
    content = reading.read_json(path, StudyError, remedy)
    found = checked(content, ComparisonDocument, path, StudyError, remedy)
    try:
        return to_comparison(found)
    except ValueError as error:  # fewer scores of one side than of the other
        raise StudyError(f"{path} is damaged: {error}; {remedy}") from error


def to_comparison(content: ComparisonDocument) -> SeedComparison:
    """A comparison as the page shows it: over seeds where there are several, else over images."""
    from detsearch_cli.report.verdict import SeedComparison

    side, found = next(iter(content.comparisons.items()))
    runs = {name: [run for run in content.runs if run.side == name] for name in (BASELINE, side)}
    chosen = found.over_seeds or found.over_images
    how = "t interval over paired seeds" if found.over_seeds else "paired bootstrap over images, one seed"
    return SeedComparison(
        seeds=[run.seed for run in runs[BASELINE]],
        baseline=[run.coco.AP for run in runs[BASELINE]],
        searched=[run.coco.AP for run in runs[side]],
        difference=chosen.difference,
        low=chosen.low,
        high=chosen.high,
        how=how,
        split=content.split,
        images=content.images,
        side=side.replace("trial", "trial ", 1) if side.startswith("trial") else "searched",
    )


def class_scores(baseline: Trial | None, best: Trial | None) -> list[ClassScore]:
    """Per-class AP of the baseline's trial beside the best's."""
    from detsearch_cli.report.page import ClassScore

    if baseline is None or "per_class" not in baseline.metrics:
        return []
    searched = {}
    if best is not None and not best.baseline:
        searched = {row.name: row.AP for row in _class_rows(best)}
    return [ClassScore(row.name, row.boxes, row.AP, searched.get(row.name)) for row in _class_rows(baseline)]


def _class_rows(trial: Trial) -> list[ClassRow]:
    from detsearch_cli.document import checked
    from detsearch_cli.engine.documents import ClassRow

    rows = trial.metrics.get("per_class", [])
    name = f"per_class of trial {trial.number} in the ledger of its study"
    return checked(finite(rows), list[ClassRow], name, StudyError, "restore the ledger from a copy")


def samples(recipe: Recipe, baseline: Trial | None, best: Trial | None) -> list[SideBySide]:
    """Crowded held-out images: ground truth, baseline and best side by side."""
    from detsearch_cli.engine.checkpoint import DETECTIONS
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.trial import load_data

    sides = {"baseline": baseline, "best": best if best is not None and not best.baseline else None}
    files = {
        name: trial.folder / DETECTIONS
        for name, trial in sides.items()
        if trial is not None and (trial.folder / DETECTIONS).is_file()
    }
    if not files:
        return []
    split, tables = load_data(recipe.data).val, {}
    for name, path in files.items():
        # pictures are an extra: a damaged file of one trial must not cost the page, nor the end of a search
        with contextlib.suppress(DetsearchError):
            tables[name] = DetectionTable.load(path, split)
    return _samples(split, tables) if tables else []


def _samples(split: Split, tables: Mapping[str, DetectionTable]) -> list[SideBySide]:
    from detsearch_cli.report.page import SideBySide

    # every third of the most crowded, so that a video's neighbours are not all there is to see
    crowded = sorted(range(len(split)), key=lambda i: -len(split.records[i].boxes))[: SAMPLES * 3 : 3]
    return [
        SideBySide(f"image {split.records[i].image_id}", list(pictures(split, i, tables).items()))
        for i in crowded
    ]


def pictures(split: Split, index: int, tables: Mapping[str, DetectionTable]) -> dict[str, Any]:
    """Image `index` with its ground truth, and once for every table of detections."""
    from detsearch_cli.data.drawing import draw

    record, image = split.records[index], split.read(index)
    drawn = {f"ground truth: {_boxes(record)}": draw(image, record.boxes, record.labels, split.classes)}
    for name, table in tables.items():
        least = shown_from(split, table)
        own = table.select((table.image == index) & (table.scores >= least))
        drawn[f"{name}: {_boxes(own)} with score {least:.2g} or more"] = draw(
            image, own.boxes, own.labels, split.classes, own.scores
        )
    return drawn


def shown_from(split: Split, table: DetectionTable) -> float:
    """The score of the highest F1 on the split, from which on detections are drawn."""
    from detsearch_cli.engine.voc import Claims

    score = Claims.of(split, table).operating_point().score
    return score if score > 0 else SHOWN_SCORE  # NaN is not


def _boxes(of: Any) -> str:
    return "1 box" if len(of.boxes) == 1 else f"{len(of.boxes)} boxes"


def write_run_page(folder: Path) -> Path:
    """Write the page of the run in `folder`; returns its path. Raises CheckpointError for an unfinished run."""
    from detsearch_cli.engine.checkpoint import DETECTIONS, LOG, read_metrics, read_recipe
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.journal import read_entries
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.report.page import RunClass, RunPage

    recipe, metrics = read_recipe(folder), read_metrics(folder)
    if metrics is None:
        raise CheckpointError(
            f"{folder} is not finished: it holds no metrics.json; train it to the end first"
        )
    data = load_data(recipe.data)
    page = RunPage(
        name=folder.name,
        coco=metrics["coco"],
        split=metrics["split"],
        epochs=epochs(read_entries(folder / LOG)),
        classes=[RunClass(r["name"], r["boxes"], r["AP"], r["AP50"]) for r in metrics["per_class"]],
        samples=_samples(data.val, {"detections": DetectionTable.load(folder / DETECTIONS, data.val)}),
        figures=[f for m in methods().values() for f in m().run_figures(folder, recipe, data.train)],
        setup=_setup(recipe),
        recipe_yaml=recipe.to_yaml(),
        versions=metrics["versions"],
        seeds={"training": recipe.seed},
        timing={"training": metrics["train_seconds"]},
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
    )
    page.write(folder / PAGE)
    return folder / PAGE


def epochs(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Mean losses of every epoch, and its AP where it was evaluated, from the entries of log.jsonl."""
    from detsearch_cli.report.figures import EpochPoint

    steps: dict[int, list[dict[str, float]]] = {}
    aps: dict[int, float] = {}
    for entry in entries:
        if "step" in entry:
            # a loss that was no number is logged as null
            losses = {k: v for k, v in entry.items() if k not in ("step", "epoch", "lr") and v is not None}
            steps.setdefault(entry["epoch"], []).append(losses)
        elif "AP" in entry:
            aps[entry["epoch"]] = entry["AP"]
    return [EpochPoint(epoch, _means(seen), aps.get(epoch)) for epoch, seen in sorted(steps.items())]


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    """Each term's mean over the steps that have it: some terms are there in a warm-up only."""
    terms = dict.fromkeys(term for step in steps for term in step)
    by_term = {term: [step[term] for step in steps if term in step] for term in terms}
    return {term: sum(values) / len(values) for term, values in by_term.items()}
