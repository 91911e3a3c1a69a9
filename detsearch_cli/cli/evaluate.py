"""Score a run, a weights file, or any framework's detections."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detsearch_cli.errors import CheckFailed, EvaluationError
from detsearch_cli.option import MOST_RESAMPLES

if TYPE_CHECKING:
    import numpy as np

    from detsearch_cli.data.types import Split
    from detsearch_cli.engine.detections import DetectionTable

CONFUSED_IOU, CONFUSED_SCORE = 0.5, 0.25
PLOTS = ("precision_recall.png", "confusion.png")
VOC_KEYS = ("voc07_mAP50", "voc_mAP50")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("eval")(evaluate)


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default=False)] = None,
    weights: Annotated[Path | None, typer.Option(help="A .safetensors file instead of a run.")] = None,
    detections: Annotated[
        Path | None, typer.Option(help="COCO-format results json of any framework; needs --data.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data to score on; default: the run's own.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test; default: test where it exists, else val.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="last or best weights of the run.")] = "last",
    evaluator: Annotated[str, typer.Option(help="faster (faster-coco-eval) or pycocotools.")] = "faster",
    compare: Annotated[
        Path | None, typer.Option(help="Another run (or results json) to compare with.")
    ] = None,
    metric: Annotated[str, typer.Option(help="Metric of --compare: AP, AP50 or AP75.")] = "AP",
    resamples: Annotated[
        int, typer.Option(help="Bootstrap resamples of --compare.", min=100, max=MOST_RESAMPLES)
    ] = 1000,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="Exit 1 when a metric is lower; repeat.", metavar="AP=0.30")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Write PR curves and the confusion matrix here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """COCO AP, VOC mAP and per-class tables; --compare gives the difference with an interval."""
    from detsearch_cli.cli import console
    from detsearch_cli.engine.evaluate import evaluate as score

    limits = [parse_limit(item) for item in fail_under or []]
    refuse_unknown(evaluator, metric, checkpoint)
    if plots is not None:
        claim_plots(plots)
    where = Where(data, split, f"{checkpoint}.safetensors", device)
    subject = find_subject(run, weights, detections, where)
    result = score(subject.split, subject.table, evaluator)
    report: dict[str, Any] = {"subject": subject.name, "split": subject.split.name, **result.to_json()}
    for note in subject.notes:
        console.say(f"note: {note}")
    report |= {"notes": list(subject.notes)} if subject.notes else {}
    if compare is not None:
        report["comparison"] = compare_with(subject, compare, metric, resamples, where)
    if plots is not None:
        report["plots"] = [str(p) for p in write_plots(subject, result.precision, plots)]
    if json:
        console.emit_json(report)
    else:
        show(subject, report)
    check_limits(limits, report)


def refuse_unknown(evaluator: str, metric: str, checkpoint: str) -> None:
    """Raise EvaluationError for a choice that does not exist, before any detector runs."""
    from detsearch_cli.engine.compare import IOU_THRESHOLDS

    choices: list[tuple[str, str, list[str]]] = [
        ("--evaluator", evaluator, ["faster", "pycocotools"]),
        ("--metric", metric, list(IOU_THRESHOLDS)),
        ("--checkpoint", checkpoint, ["last", "best"]),
    ]
    for option, value, known in choices:
        if value not in known:
            raise EvaluationError(f"{option} is one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class Where:
    """What a detector is scored on: data and split (None: its own), which weights of a run, which device."""

    data: str | None
    split: str | None
    weights: str
    device: str


@dataclass(frozen=True)
class Subject:
    """Detections and the split they belong to."""

    name: str
    split: Split
    table: DetectionTable
    notes: tuple[str, ...] = ()


def find_subject(run: Path | None, weights: Path | None, detections: Path | None, where: Where) -> Subject:
    """What is scored: exactly one of a run, a weights file or a results file."""
    from detsearch_cli.cli import console
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.results import doubt, read_results
    from detsearch_cli.engine.score import detect_and_note, open_split

    given = [x for x in (run, weights, detections) if x is not None]
    if len(given) != 1:
        raise EvaluationError(f"give exactly one of RUN, --weights and --detections, got {len(given)}")
    path = given[0]
    if detections is None and path.suffix != ".json":
        found = detect_and_note(path, where.data, where.split, where.weights, where.device)
        return Subject(str(path), found.split, found.table, found.notes)
    if where.data is None:
        raise EvaluationError(f"{path} needs --data: the annotations to score it against")
    split = open_split(where.data, where.split, pictures=False)
    columns = read_results(path, split)
    doubted = doubt(columns, split)
    if doubted is not None:
        console.say(f"warning: {path}: {doubted}")
    return Subject(str(path), split, DetectionTable.of_columns(columns))


def compare_with(subject: Subject, other: Path, metric: str, resamples: int, where: Where) -> dict[str, Any]:
    """Paired bootstrap over the images of the same split: this run minus the other."""
    from dataclasses import asdict

    from detsearch_cli.cli import console
    from detsearch_cli.engine.compare import paired_bootstrap
    from detsearch_cli.verdicts import sentence

    rival = find_subject(other, None, None, where)
    for note in rival.notes:
        if note not in subject.notes:
            console.say(f"note: {rival.name}: {note}")
    ids = [[r.image_id for r in s.split.records] for s in (subject, rival)]
    if ids[0] != ids[1] or subject.split.classes != rival.split.classes:
        raise EvaluationError(
            f"{subject.name} and {rival.name} are scored on different images or classes; "
            "give --data and --split"
        )
    outcome = paired_bootstrap(subject.split, rival.table, subject.table, metric=metric, resamples=resamples)
    found = asdict(outcome)
    found["other_value"], found["subject_value"] = found.pop("a"), found.pop("b")
    said = sentence(subject.name, rival.name, outcome.low, outcome.high)
    return {"subject": subject.name, "other": rival.name, **found, "verdict": said}


def show(subject: Subject, report: dict[str, Any]) -> None:
    """The report as tables."""
    from detsearch_cli.cli import console

    title = f"{subject.name} on {subject.split.name} ({len(subject.split)} images)"
    console.coco_table(title, report["coco"])
    voc = report["voc"]
    console.table("", ["VOC07 mAP@0.5", "VOC mAP@0.5"], [[console.percent(v) for v in voc.values()]])
    point = report["operating_point"]
    if point["F1"] is not None:
        console.say(
            f"highest F1 {console.percent(point['F1'])}, of detections with score {point['score']:.3g} or more"
        )
    if "proposals" in report:
        console.proposal_table(report["proposals"])
    console.class_table(report["per_class"])
    if "comparison" in report:
        show_comparison(report["comparison"])
    for path in report.get("plots", []):
        console.say(f"wrote {path}")


def show_comparison(comparison: dict[str, Any]) -> None:
    """Both scores, their difference with its interval, and which is better, each by its name."""
    from detsearch_cli.cli import console

    metric = comparison["metric"]
    sides = [(comparison[side], comparison[f"{side}_value"]) for side in ("subject", "other")]
    console.table("comparison", ["", metric], [[name, console.percent(value)] for name, value in sides])
    low, high = (f"{100 * comparison[bound]:+.1f}" for bound in ("low", "high"))
    console.say(
        f"{sides[0][0]} minus {sides[1][0]}: {100 * comparison['difference']:+.1f} {metric} [{low}, {high}], "
        f"95% interval over {comparison['resamples']} resamples of the images"
    )
    console.say(comparison["verdict"])


def claim_plots(folder: Path) -> None:
    """Raises OutputError where the plots would replace what a user put there."""
    from detsearch_cli.files import claim_file, claim_folder

    claim_folder(folder, None, "folder of pictures")
    for name in PLOTS:
        claim_file(folder / name)


def write_plots(subject: Subject, precision: np.ndarray, folder: Path) -> list[Path]:
    """Write both PLOTS. precision (10, 101, C): `Evaluation.precision`."""
    from detsearch_cli.engine.confusion import confusion_matrix
    from detsearch_cli.engine.voc import Claims
    from detsearch_cli.report import curves

    classes = subject.split.classes
    score = Claims.of(subject.split, subject.table).operating_point().score
    least = score if score > 0 else CONFUSED_SCORE  # NaN is not
    pictures = (
        curves.precision_recall(precision, classes, title=subject.name),
        curves.confusion(
            confusion_matrix(subject.split, subject.table, min_iou=CONFUSED_IOU, min_score=least),
            classes,
            title=f"{subject.name}\nscore from {least:.2g} on, IoU from {CONFUSED_IOU} on",
        ),
    )
    for name, figure in zip(PLOTS, pictures, strict=True):
        curves.save(figure, folder / name)
    return [folder / name for name in PLOTS]


def parse_limit(text: str) -> tuple[str, float]:
    """`AP=0.30` -> ("AP", 0.3). Raises EvaluationError."""
    match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9.]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        value = float(match[2])
    except ValueError:
        raise EvaluationError(f"--fail-under takes METRIC=FRACTION such as AP=0.30, got {text!r}") from None
    if not 0 <= value <= 1:
        raise EvaluationError(f"--fail-under takes a fraction in 0..1, got {value:g}; AP 30 is AP=0.30")
    from detsearch_cli.engine.evaluate import COCO_KEYS

    known = (*COCO_KEYS, *VOC_KEYS)
    if match[1] not in known:
        raise EvaluationError(f"--fail-under: {match[1]} is none of the metrics ({', '.join(known)})")
    return match[1], value


def check_limits(limits: list[tuple[str, float]], report: dict[str, Any]) -> None:
    """Raise CheckFailed for the first metric under its limit."""
    known = {**report["coco"], **report["voc"]}
    for name, least in limits:
        value = known[name]
        if value is None or not value >= least:
            shown = "undefined" if value is None else f"{value:.4f}"
            raise CheckFailed(f"{name} is {shown}, under the required {least:g}")
