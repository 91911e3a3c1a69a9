"""Search how many positives each ground truth gets (HPS-Det)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detsearch_cli.cli.groups import Group
from detsearch_cli.cli.options import RecipeOptions, SearchOptions, TrainOptions, with_options

if TYPE_CHECKING:
    from detsearch_cli.recipe import Recipe

app = typer.Typer(name="assign", cls=Group, no_args_is_help=True, help=__doc__)


@app.command("search", no_args_is_help=True)
@with_options(options=RecipeOptions, search=SearchOptions)
def search(
    options: RecipeOptions,
    search: SearchOptions,
    bins: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Assignment",
            help="Aspect bins of each pyramid level, as 3,3,3,3,3 (default: 3 each) or 1,1,1,1,1; "
            "or one number for all levels: 5, 3 or 1.",
        ),
    ] = None,
    edges: Annotated[
        str | None,
        typer.Option(
            rich_help_panel="Assignment",
            help="Aspect-ratio (height / width) bin edges; default: the paper's, as 1/2,2.",
        ),
    ] = None,
    max_count: Annotated[
        int | None,
        typer.Option(
            rich_help_panel="Assignment",
            help="Largest count; default: 80 for RetinaNet, 25 for FCOS, 32 for ATSS.",
            min=1,
        ),
    ] = None,
    alpha: Annotated[
        float,
        typer.Option(
            rich_help_panel="Assignment", help="Weight of the IoU loss when ranking candidates.", min=0
        ),
    ] = 1.5,
    min_iou: Annotated[
        float,
        typer.Option(
            rich_help_panel="Assignment", help="IoU above which an anchor is a candidate.", min=0, max=0.99
        ),
    ] = 0.1,
) -> None:
    """Find the counts with the highest AP; trial 0 is the detector's own assignment."""
    from detsearch_cli.cli.hunt import run_search, settings_of
    from detsearch_cli.methods.assign.method import AssignMethod
    from detsearch_cli.methods.assign.space import parse_edges

    chosen: dict[str, Any] = {
        "bins": bins,
        "edges": parse_edges(edges) if edges else None,
        "max_count": max_count,
        "alpha": alpha,
        "min_iou": min_iou,
    }
    run_search(settings_of("assign", chosen, AssignMethod.sampler, options, search), search.json)


@app.command("train")
@with_options(options=RecipeOptions, train=TrainOptions)
def train(options: RecipeOptions, train: TrainOptions) -> None:
    """Train with searched counts; with --baseline also the detector's own assignment, and compare."""
    from detsearch_cli.cli.prove import run_train

    run_train("assign", ("assign",), options, train)


@app.command("show")
@with_options(options=RecipeOptions)
def show(
    options: RecipeOptions,
    study: Annotated[Path | None, typer.Option(help="Take recipe and best.yaml from this study.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Look through this trained run; default: untrained weights.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images that are counted.", min=1)] = 100,
    samples: Annotated[int, typer.Option(help="Images drawn with their positives.", min=0, max=20)] = 4,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("assign-show"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Counts as a table, and how many positives each ground truth receives, where: baseline beside searched."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.prove import study_fragments
    from detsearch_cli.data.source import open_source
    from detsearch_cli.data.splits import resolve
    from detsearch_cli.errors import RecipeError
    from detsearch_cli.files import replace_file
    from detsearch_cli.methods.assign import figures
    from detsearch_cli.methods.assign.inspect import look, summarise
    from detsearch_cli.slots.assigners.dynamic import Dynamic

    recipe = options.compose(study_fragments(study) if study else None)
    detector, trained = _detector(recipe, run)
    searched = detector.assigner
    if not isinstance(searched, Dynamic):
        if study is not None:
            raise RecipeError(
                f"{study} found nothing better than the detector's own, so there are no counts to show: its "
                f"best.yaml is empty; `detsearch study show {study}` lists its trials"
            )
        raise RecipeError(
            "assign show needs counts: give --study, or --recipe with a fragment such as best.yaml "
            "(an empty one means that nothing better than the detector's own was found)"
        )
    split = resolve(recipe.data, open_source(recipe.data.source)).train
    names = ["baseline", "searched"]
    found = look(
        detector,
        {"baseline": detector.default_assigner(), "searched": searched},
        recipe,
        split,
        list(range(min(images, len(split)))),
        grouping=searched,
        samples=samples,
    )
    drawn = [
        ("counts", figures.counts_table(_bins(recipe, searched), searched.counts)),
        ("positives", figures.positives_per_ground_truth(found.rows, names)),
        *((f"locations-{i + 1}", f) for i, f in enumerate(figures.locations(found, names))),
    ]
    paths = []
    for name, figure in drawn:
        path = out / f"{name}.png"
        replace_file(path, lambda p, png=figure.png: p.write_bytes(png) and None)  # type: ignore[misc]
        paths.append(str(path))
    summary = summarise(found.rows, names)
    if json:
        console.emit_json(
            {"counts": searched.counts, "positives": summary, "figures": paths, "trained": trained}
        )
        return
    _show_counts(recipe, searched)
    columns = list(summary[0])
    cells = [[cell(name, v) for name, v in line.items()] for line in summary]
    state = "trained" if trained else "untrained"
    seen = min(images, len(split))
    console.table(f"positives a ground truth, {seen} of {len(split)} images, {state} weights", columns, cells)
    for written in paths:
        console.say(f"wrote {written}")


def cell(column: str, value: Any) -> str:
    """A mean with one decimal, the share without positives in percent, a dash where there is none."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}%" if column.endswith(" none") else f"{value:.1f}"


def _detector(recipe: Recipe, run: Path | None) -> tuple[Any, bool]:
    """The detector to look through: a trained run's weights, or the recipe's untrained ones."""
    import torch

    from detsearch_cli.data.source import open_source
    from detsearch_cli.detectors import build
    from detsearch_cli.engine.checkpoint import LAST, load_tensors
    from detsearch_cli.errors import CheckpointError

    classes = open_source(recipe.data.source).load("train").classes
    torch.manual_seed(recipe.seed)
    detector = build(recipe, len(classes))
    if run is not None:
        tensors, _ = load_tensors(run / LAST if run.is_dir() else run)
        try:
            detector.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(
                f"{run} does not fit the recipe: {str(error).splitlines()[1].strip()}; give the recipe it was trained with"
            ) from error
    return detector, run is not None


def _bins(recipe: Recipe, assigner: Any) -> Any:
    from detsearch_cli.methods.assign.space import Bins
    from detsearch_cli.recipe import detector_class

    shared = len(assigner.counts) == 1
    first, last = detector_class(recipe.detector).pyramid_levels(recipe)
    levels = None if shared else tuple(range(first, last + 1))
    return Bins(assigner.edge_rows(), levels)


def _show_counts(recipe: Recipe, assigner: Any) -> None:
    from detsearch_cli.cli import console
    from detsearch_cli.methods.assign.space import bin_labels

    bins = _bins(recipe, assigner)
    widest = max(bins.edges, key=len)
    rows = [
        [name, *map(str, row), *[""] * (len(widest) + 1 - len(row))]
        for name, row in zip(bins.row_names, assigner.counts, strict=True)
    ]
    console.table("counts by level and height / width", ["level", *bin_labels(widest)], rows)
