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
    from detsearch_cli import api
    from detsearch_cli.cli import console
    from detsearch_cli.engine.trial import load_data

    recipe = options.compose({"runtime": {"tensorboard": tensorboard}} if tensorboard else None)
    folder = out or api.default_folder(recipe)
    console.set_resume_hint(f"the run is saved in {folder}; give the same command again to go on")
    data = load_data(recipe.data)
    console.announce_load()
    console.announce_data(data)
    console.announce_changes(folder, data)
    console.announce_scoring(data.val)
    console.announce_start(recipe, data.train.classes)
    with console.training_bar(f"{recipe.detector.name} {recipe.backbone.name}") as on_progress:
        metrics = api.train(recipe, folder, on_progress).metrics
    if json:
        console.emit_json({"run": str(folder), **metrics})
        return
    console.coco_table(
        f"{folder}: AP on {metrics['split']} ({metrics['val_images']} images)", metrics["coco"]
    )
    if "proposals" in metrics:
        console.proposal_table(metrics["proposals"])
    console.say(f"next: detsearch eval {folder}")
