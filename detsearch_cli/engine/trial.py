"""One trial: a recipe trained at one budget with one seed, and its metrics. What executors ship to a worker."""

from __future__ import annotations

import json
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.machine import processes
from detsearch_cli.engine.processes import is_out_of_memory
from detsearch_cli.engine.train import OnProgress, Progress, train
from detsearch_cli.files import write_json
from detsearch_cli.recipe import Data, Recipe, validate, with_fragment


def run_trial(recipe_yaml: str, workdir: str, epochs: int | None = None) -> dict[str, Any]:
    """Train the recipe in `workdir`, score it on the recipe's validation split, return the metrics.

    epochs: the trial's budget; the training stops after so many epochs of its schedule, and goes on when it is called
    with more. Every score on the way is written to scores.json at once, and returned as `scores`. Raises whatever
    training raises; the caller records it as the reason of a failed trial.
    """
    started, folder = time.monotonic(), Path(workdir)
    recipe = validate(yaml.safe_load(recipe_yaml))
    data = load_data(recipe.data)
    # always up to some epoch, which tells `train` that this is a trial
    until = recipe.schedule.epochs if epochs is None else epochs
    metrics = train_with_retry(recipe, data, folder, partial(_note_score, folder), until=until)
    seconds = round(time.monotonic() - started, 3)
    return {**metrics, "scores": read_scores(folder), "seconds": seconds}


def read_scores(folder: Path) -> list[list[float | None]]:
    """Every score of a trial so far, oldest first: [epoch, AP], None where AP is undefined; empty before the first."""
    try:
        return list(json.loads((folder / ckpt.SCORES).read_text(encoding="utf-8"))["scores"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # a power cut may leave an empty file: they are scored again
        return []


def _note_score(folder: Path, at: Progress) -> None:
    if at.ap is None:
        return
    # what is read again may come from after the checkpoint that a killed training went back to
    before = [score for score in read_scores(folder) if (score[0] or 0) < at.epoch]
    # replaces our own: `train` has claimed the folder, and the name is of RUN_FILES
    write_json(folder / ckpt.SCORES, {"scores": [*before, [at.epoch, at.ap]]})


@lru_cache(maxsize=4)
def load_data(data: Data) -> Resolved:
    """The recipe's splits, kept between the trials of one worker."""
    return resolve(data, open_source(data.source))


def train_with_retry(
    recipe: Recipe,
    data: Resolved,
    folder: Path,
    on_progress: OnProgress = lambda _: None,
    until: int | None = None,
) -> dict[str, Any]:
    """Train; out of memory retries once at half the batch with twice the accumulation.

    The same call goes on with the halved batch where an earlier one had to begin with it. until: see `train`.
    """
    halved = _halved(recipe)
    if halved is None or not ckpt.holds_run_of(folder, halved):
        try:
            return train(recipe, data.train, data.val, folder, on_progress, until=until)
        except (RuntimeError, MemoryError) as error:
            if halved is None or not is_out_of_memory(error):
                raise
        # outside the except block: the exception would keep the failed run's tensors alive
        torch.cuda.empty_cache()
        # only what the failed run wrote goes; a folder that is not ours has been refused by `train` already
        ckpt.start_anew(folder, recipe, halved)
    metrics = train(halved, data.train, data.val, folder, on_progress, until=until)
    return {**metrics, "halved_batch": True}


def _halved(recipe: Recipe) -> Recipe | None:
    """The recipe with half as many images at a time; None where a process has only one already."""
    per_node, nodes = processes(recipe.runtime)
    smaller = recipe.optim.accumulate * 2
    if recipe.optim.batch_size % (smaller * per_node * nodes):
        return None
    return with_fragment(recipe, {"optim": {"accumulate": smaller}})
