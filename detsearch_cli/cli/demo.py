"""The whole story in about three minutes on a laptop CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

RECIPE: dict[str, Any] = {
    "detector": "fcos",
    "backbone": "tiny",
    "neck": {"channels": 32, "levels": [3, 5]},
    "head": {"convs": 1},
    "data": {"source": "faces:images=240,val=120,test=300,size=96"},
    "augment": {"image_size": 96},
    "optim": {"name": "adamw", "lr": 0.003, "batch_size": 4},
    "schedule": {"epochs": 12, "eval_every": 0},
    # compiling kernels would take longer here than they save
    "runtime": {"device": "cpu", "cache": "ram", "kernels": "off"},
}
BINS, TRIALS, JOBS, SEEDS = "1", 5, 2, 4


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the study; the same one resumes.")] = Path(
        "detsearch-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Search a sample assignment on rendered images, then prove it: AP, interval, report. About 3 minutes."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.hunt import Settings, run_search
    from detsearch_cli.cli.options import RecipeOptions, TrainOptions
    from detsearch_cli.cli.prove import run_train
    from detsearch_cli.methods.assign.method import AssignMethod
    from detsearch_cli.recipe import compose

    recipe = compose([("demo", {**RECIPE, "seed": seed})])
    console.say("1. search: how many positives should each ground truth get?")
    outcome = run_search(
        Settings(
            method="assign",
            method_options={"bins": BINS},
            recipe=recipe.to_yaml(),
            name="demo",
            folder=str(out),
            storage=None,
            sampler=AssignMethod.sampler,
            trials=TRIALS,
            time_budget=None,
            jobs=JOBS,
            executor="local",
            seed=seed,
            command=console.command_line(),
        )
    )
    if outcome.best is None or outcome.best.candidate is None:
        console.say(
            "The search found nothing better than the detector's own assignment, so there is nothing to prove."
        )
        return
    console.say("")
    console.say(
        f"2. proof: train both with {SEEDS} seeds at equal cost, score on images the search never saw"
    )
    run_train(
        "assign", ("assign",), RecipeOptions(), TrainOptions(study=out, baseline=True, seeds=SEEDS, jobs=JOBS)
    )
