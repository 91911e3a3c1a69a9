"""One trial: a recipe trained at one budget with one seed, and its metrics. What executors ship to a worker."""

from __future__ import annotations

import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.machine import processes
from detsearch_cli.engine.processes import is_out_of_memory
from detsearch_cli.engine.train import Watch, train
from detsearch_cli.recipe import Data, Recipe, validate, with_fragment


def run_trial(recipe_yaml: str, workdir: str) -> dict[str, Any]:
    """Train the recipe in `workdir`, score it on the recipe's validation split, return the metrics.

    Raises whatever training raises; the caller records it as the reason of a failed trial.
    """
    started = time.monotonic()
    recipe = validate(yaml.safe_load(recipe_yaml))
    data = load_data(recipe.data)
    metrics = train_with_retry(recipe, data, Path(workdir))
    return {**metrics, "seconds": round(time.monotonic() - started, 3)}


@lru_cache(maxsize=4)
def load_data(data: Data) -> Resolved:
    """The recipe's splits, kept between the trials of one worker."""
    return resolve(data, open_source(data.source))


def train_with_retry(
    recipe: Recipe, data: Resolved, folder: Path, watch: Watch = lambda _: None
) -> dict[str, Any]:
    """Train; out of memory retries once at half the batch with twice the accumulation.

    The same call goes on with the halved batch where an earlier one had to begin with it.
    """
    halved = _halved(recipe)
    if halved is None or not _holds(folder, halved):
        try:
            return train(recipe, data.train, data.val, folder, watch)
        except (RuntimeError, MemoryError) as error:
            if halved is None or not is_out_of_memory(error):
                raise
        # outside the except block: the exception would keep the failed run's tensors alive
        torch.cuda.empty_cache()
        shutil.rmtree(folder)
    return {**train(halved, data.train, data.val, folder, watch), "halved_batch": True}


def _halved(recipe: Recipe) -> Recipe | None:
    """The recipe with half as many images at a time; None where a process has only one already."""
    per_node, nodes = processes(recipe.runtime)
    smaller = recipe.optim.accumulate * 2
    if recipe.optim.batch_size % (smaller * per_node * nodes):
        return None
    return with_fragment(recipe, {"optim": {"accumulate": smaller}})


def _holds(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder is this recipe's run."""
    return (folder / ckpt.RECIPE).is_file() and ckpt.read_recipe(folder).hash() == recipe.hash()
