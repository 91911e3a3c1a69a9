"""Anchor shapes: fitted to the boxes, learned while the detector trains (anchor box optimization)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detsearch_cli.cli.groups import Group
from detsearch_cli.cli.options import RecipeOptions, RunsOptions, with_options

if TYPE_CHECKING:
    import numpy as np

    from detsearch_cli.data.splits import Resolved
    from detsearch_cli.detectors.base import Detector
    from detsearch_cli.recipe import Fragment, Recipe

app = typer.Typer(name="anchors", cls=Group, no_args_is_help=True, help=__doc__)
PANEL = "Anchors"
DETECTOR = "yolov2"  # the paper's test-bed

Count = Annotated[
    int | None,
    typer.Option(rich_help_panel=PANEL, help="Shapes of a cell; default: the detector's number.", min=1),
]
Init = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="START",
        help="Where shapes start: uniform, identical, kmeans, yolov2-voc, yolov2-coco, or a YAML file of fit; "
        "default: the detector's own.",
    ),
]


@app.command("fit", no_args_is_help=True)
@with_options(options=RecipeOptions)
def fit(
    options: RecipeOptions,
    anchors: Count = None,
    min_strides: Annotated[
        float,
        typer.Option(rich_help_panel=PANEL, help="No side below this many strides of its level.", min=0),
    ] = 0.0,
    restarts: Annotated[
        int, typer.Option(rich_help_panel=PANEL, help="k-means from so many seeds; the best counts.", min=1)
    ] = 10,
    online: Annotated[
        bool,
        typer.Option(
            "--online", rich_help_panel=PANEL, help="Online clustering from --init instead of k-means."
        ),
    ] = False,
    init: Init = None,
    format: Annotated[
        str,
        typer.Option(rich_help_panel=PANEL, help="fragment, torchvision, ultralytics or mmdetection."),
    ] = "fragment",
    out: Annotated[Path, typer.Option(rich_help_panel=PANEL, help="YAML file to write.")] = Path(
        "anchors.yaml"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fit anchor shapes to the training boxes, without training: IoU k-means, and how well the shapes fit."""
    from detsearch_cli.cli import console, shapes
    from detsearch_cli.errors import RecipeError
    from detsearch_cli.files import write_text
    from detsearch_cli.methods.anchors.fit import fit_levels, quality
    from detsearch_cli.methods.anchors.formats import to_yaml
    from detsearch_cli.methods.anchors.starts import own_shapes

    if init is not None and not online:
        raise RecipeError(f"--init {init} is for --online: k-means chooses its own seeds; leave --init away")
    recipe, data, detector = _opened(options, {"detector": DETECTOR})
    before, sizes = own_shapes(detector), _sizes(recipe, data)
    count, runs = anchors or before.shape[1], None
    if online:
        found = _online(init, detector, anchors, sizes, recipe, min_strides)
    else:
        found, result = fit_levels(
            sizes, detector.strides, count, seed=recipe.seed, restarts=restarts, min_strides=min_strides
        )
        runs = list(result.runs)
    how = "online clustering" if online else f"k-means, best of {restarts}"
    about = f"{how}, {len(sizes)} boxes of {data.train.name}, image size {shapes.sides(recipe)}"
    text = to_yaml(found, detector.strides, format, about)
    write_text(out, text)
    rows = quality(sizes, before.reshape(-1, 2)), quality(sizes, found.reshape(-1, 2))
    if json:
        console.emit_json(shapes.fit_json(found, detector.strides, rows, runs, out))
        return
    shapes.tell_fit(recipe, found, detector.strides, sizes, rows)
    console.say(f"wrote {out} ({format})")
    if format == "fragment":
        console.say(f"next: detsearch anchors train --init {out} --baseline with the same options")


@app.command("train", no_args_is_help=True)
@with_options(options=RecipeOptions, runs=RunsOptions)
def train(options: RecipeOptions, runs: RunsOptions, init: Init = None, anchors: Count = None) -> None:
    """Train with anchor shapes that learn; with --baseline also with the initial ones fixed, and compare."""
    from detsearch_cli.cli import console, shapes
    from detsearch_cli.cli.prove import compare, default_folder, record, tell, train_alone
    from detsearch_cli.methods.anchors.starts import starting_shapes

    recipe, data, detector = _opened(options, {"detector": DETECTOR})
    start = starting_shapes(init, detector, anchors, lambda: _sizes(recipe, data), recipe.seed)
    learning, fixed = _sides(recipe, start, len(data.train.classes), runs.executor == "local")
    shapes.tell_bounds(start, fixed)
    folder = runs.out or default_folder("anchors", None, learning)
    console.set_resume_hint(f"the runs are saved in {folder}; give the same command again to go on")
    seeds = [learning.seed + i for i in range(runs.seeds)]
    told: dict[str, Any] = {"folder": str(folder), "initial": start.tolist()}
    if runs.baseline:
        outcome = compare(fixed, learning, seeds, folder, runs, shapes.SIDES)
        record(outcome, folder, None)
        told |= outcome.to_json()
        if not runs.json:
            tell(outcome)
    else:
        told["runs"] = train_alone(shapes.SIDES[1], learning, seeds, folder, runs)
    ways = shapes.learned_ways(folder, seeds)
    if runs.json:
        console.emit_json(told | shapes.ways_json(ways))
        return
    shapes.tell_ways(ways, detector.levels[0])
    console.say(f"next: detsearch anchors show --run {folder / ways[0].name}")


@app.command("show")
@with_options(options=RecipeOptions)
def show(
    options: RecipeOptions,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Run whose shapes learned; repeat. Default: the recipe's shapes alone."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("anchors-show"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Draw shapes over the ground truths in the plane of log width and height, and what each shape serves."""
    from detsearch_cli.cli import console, shapes
    from detsearch_cli.engine.checkpoint import read_recipe
    from detsearch_cli.files import replace_file
    from detsearch_cli.methods.anchors.inspect import read_ways
    from detsearch_cli.methods.anchors.starts import own_shapes

    ways = read_ways(run or [])
    below = read_recipe(run[0]).model_dump(mode="json") if run else {"detector": DETECTOR}
    recipe, data, detector = _opened(options, below)
    sizes, own = _sizes(recipe, data), own_shapes(detector)
    shapes.check_ways(ways, own)
    looks, drawn = shapes.drawn(sizes, ways, own, detector.levels, recipe.seed)
    paths = [out / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        replace_file(path, lambda p, png=figure.png: p.write_bytes(png) and None)  # type: ignore[misc]
    if json:
        console.emit_json({**shapes.looks_json(looks), "figures": [str(path) for path in paths]})
        return
    shapes.tell_looks(looks, len(sizes), data.train.name)
    for path in paths:
        console.say(f"wrote {path}")


def _opened(options: RecipeOptions, below: Fragment) -> tuple[Recipe, Resolved, Detector]:
    """The recipe, its data and its untrained detector."""
    from detsearch_cli.cli.console import announce_data
    from detsearch_cli.detectors import build
    from detsearch_cli.engine.trial import load_data

    recipe = options.compose(below)
    data = load_data(recipe.data)
    announce_data(data)
    return recipe, data, build(recipe, len(data.train.classes))


def _sizes(recipe: Recipe, data: Resolved) -> np.ndarray:
    """Of the training boxes, as the network sees them. Raises DataError where there are none."""
    from detsearch_cli.errors import DataError
    from detsearch_cli.methods.anchors.fit import training_sizes

    sizes = training_sizes(data.train, recipe.augment)
    if not len(sizes):
        raise DataError(
            f"anchor shapes need boxes, none of the {len(data.train)} images of {data.train.name!r} has one that "
            f"is neither crowd nor difficult; check the annotations with `detsearch data inspect`"
        )
    return sizes


def _online(
    init: str | None,
    detector: Detector,
    count: int | None,
    sizes: np.ndarray,
    recipe: Recipe,
    min_strides: float,
) -> np.ndarray:
    """Shapes (L, K, 2) px that online clustering leads to."""
    import numpy as np

    from detsearch_cli.methods.anchors.online import cluster_online
    from detsearch_cli.methods.anchors.starts import starting_shapes
    from detsearch_cli.slots.priors.learned import Learned

    start = starting_shapes(init, detector, count, lambda: sizes, recipe.seed)
    grid = detector.prior_grid
    options = grid if isinstance(grid, Learned) else Learned()
    least = (np.array(detector.strides) * min_strides).repeat(start.shape[1])
    result = cluster_online(sizes, start.reshape(-1, 2), options, seed=recipe.seed, least=least)
    return result.shapes.reshape(start.shape)


def _sides(recipe: Recipe, start: np.ndarray, num_classes: int, here: bool) -> tuple[Recipe, Recipe]:
    """The recipe with shapes that learn from `start`, and with the same shapes fixed.

    here: trained on this machine. Raises what would fail every training.
    """
    from detsearch_cli.cli.hunt import refuse_untrainable
    from detsearch_cli.detectors import build

    learning = recipe.with_({"priors": {"name": "learned", "init": start.tolist()}})
    refuse_untrainable(learning, num_classes, here)
    # within the bounds of those that learn, so that both begin alike
    return learning, build(learning, num_classes).plain_recipe(learning)
