"""The whole story in about two minutes on a laptop CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detsearch_cli.option import LARGEST_SEED

RECIPE: dict[str, Any] = {
    "detector": "retinanet",
    "backbone": "tiny",
    "neck": {"channels": 32, "levels": [3, 5]},
    "head": {"convs": 1},
    # group photographs: heads of 11 to 28 px where the smallest anchors have 32, so that few anchors are matched to each.
    # The effect is ten AP, which every search seed shows (docs/results.md); a small one would be luck
    "data": {"source": "faces:images=240,val=120,test=300,size=80,domain=1"},
    "augment": {"image_size": 80},
    # clipped gradients: without, one training in ten ends 4 AP lower than the others and hides the difference
    "optim": {"name": "adamw", "lr": 0.003, "batch_size": 4, "clip_norm": 5.0},
    "schedule": {"epochs": 8, "eval_every": 0, "name": "cosine"},
    # compiling kernels would take longer here than they save
    "runtime": {"device": "cpu", "cache": "ram", "kernels": "off"},
}
METHOD, OPTIONS = "assign", {"bins": "1"}
TRIALS, JOBS, SEEDS = 4, 2, 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the study; the same one resumes.")] = Path(
        "detsearch-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything.", min=0, max=LARGEST_SEED)] = 0,
) -> None:
    """Search a sample assignment on rendered images, then test it: AP, interval, report. About 2 minutes."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.methods import run, train_study
    from detsearch_cli.cli.options import RecipeOptions, RunsOptions
    from detsearch_cli.methods.base import load_method
    from detsearch_cli.recipe import compose
    from detsearch_cli.session.search import new_search
    from detsearch_cli.session.study import Settings

    out = out if out.name else out.resolve()  # `--out .` has no name of its own
    recipe = compose([("demo", {**RECIPE, "seed": seed})])
    method = load_method(METHOD, OPTIONS)
    settings = Settings(out.name, trials=TRIALS, jobs=JOBS, command=console.command_line())
    console.announce_load()
    console.say("1. search: how many positives should each ground truth get?")
    result = run(new_search(method, recipe, settings, out.parent))
    if result.best.baseline:
        console.say("The search found nothing better than the recipe as given, so there is nothing to test.")
        return
    console.say("")
    console.say(f"2. test: train both with {SEEDS} seeds at equal cost, score on images the search never saw")
    train_study(method, RecipeOptions(), out, RunsOptions(baseline=True, seeds=SEEDS, jobs=JOBS))
