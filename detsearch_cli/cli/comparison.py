"""Trainings of several recipes as a person sees them: progress, scores by seed, the difference with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from detsearch_cli.cli import console
from detsearch_cli.session.runs import Callbacks, TrainedRun

if TYPE_CHECKING:
    from detsearch_cli.engine.comparison import RunComparison


@contextmanager
def callbacks() -> Iterator[Callbacks]:
    """A progress bar for each training here, one at a time; a line for each that a worker has done."""
    with ExitStack() as stack:
        bars: list[ExitStack] = []

        def on_run(title: str) -> Any:
            if bars:
                bars.pop().close()
            bar = stack.enter_context(ExitStack())
            bars.append(bar)
            return bar.enter_context(console.training_bar(title))

        yield Callbacks(on_run, _tell_done)


def _tell_done(title: str, metrics: Mapping[str, Any]) -> None:
    ap, split = console.percent(metrics["AP"]), metrics["split"]
    console.say(f"{title}: AP {ap} on {split}, {metrics['train_seconds']:.0f} s")


def print_runs(runs: Sequence[TrainedRun]) -> None:
    """The twelve COCO numbers of every run."""
    for run in runs:
        console.coco_table(f"{run.folder}: AP on {run.metrics['split']}", run.metrics["coco"])


def print_comparison(outcome: RunComparison) -> None:
    """The table of seeds, and for every side but the first its difference from the first, with the verdict."""
    from detsearch_cli.verdicts import sentence

    rows = []
    for side in outcome.sides:
        aps = outcome.aps(side)
        seconds = [run.train_seconds for run in outcome.runs if run.side == side]
        each = "  ".join(console.percent(ap) for ap in aps)
        mean = console.percent(sum(aps) / len(aps))
        rows.append([side, mean, each, f"{sum(seconds) / len(seconds):.0f}"])
    title = f"AP on {outcome.split.name} ({len(outcome.split)} images)"
    console.table(title, ["", "mean", "by seed", "seconds a training"], rows)
    first, several = outcome.sides[0], len(outcome.sides) > 2
    for side, found in outcome.against.items():
        decisive = found.decisive
        over = f"{len(outcome.aps(first))} seeds" if found.over_seeds else "images, one seed"
        said = sentence(side, first, decisive.low, decisive.high)
        name = f"difference of {side}" if several else "difference"
        console.say(f"{name}: {console.interval_text(decisive)}, 95% interval over {over}: {said}")
        if found.over_seeds is not None:
            images = console.interval_text(found.over_images)
            console.say(f"first seed alone, bootstrap over images: {images}")
