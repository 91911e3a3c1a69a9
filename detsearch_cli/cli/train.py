"""Train a detector from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detsearch_cli.cli.options import RecipeOptions, with_options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", no_args_is_help=True)(train)


@with_options(options=RecipeOptions)
def train(
    options: RecipeOptions,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; default: runs/DETECTOR-DATA-HASH. The same one resumes.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Train a detector from a recipe; the same command resumes an interrupted run."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.console import announce_data
    from detsearch_cli.cli.hunt import refuse_untrainable
    from detsearch_cli.engine.trial import load_data, train_with_retry

    recipe = options.compose({"runtime": {"tensorboard": tensorboard}} if tensorboard else None)
    folder = out or default_folder(recipe.detector.name, recipe.data.source, recipe.hash())
    console.set_resume_hint(f"the run is saved in {folder}; give the same command again to go on")
    data = load_data(recipe.data)
    announce_data(data)
    refuse_untrainable(recipe, len(data.train.classes))  # else a typo would claim the folder for its recipe
    with console.training_bar(f"{recipe.detector.name} {recipe.backbone.name}") as watch:
        metrics = train_with_retry(recipe, data, folder, watch)
    if json:
        console.emit_json({"run": str(folder), **metrics})
        return
    console.coco_table(
        f"{folder}: AP on {metrics['split']} ({metrics['val_images']} images)", metrics["coco"]
    )
    if "proposals" in metrics:
        console.proposal_table(metrics["proposals"])
    console.say(f"next: detsearch eval {folder}")


def default_folder(detector: str, source: str, digest: str) -> Path:
    """runs/fcos-bccd-1a2b3c4d: readable, and the same for the same recipe."""
    name = Path(source.partition(":")[0]).name or "data"
    return Path("runs") / f"{detector}-{name}-{digest[:8]}"
