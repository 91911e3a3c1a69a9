"""One trial: a recipe trained at one budget with one seed, and its metrics. What executors ship to a worker."""

from __future__ import annotations

import errno
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.machine import processes
from detsearch_cli.engine.processes import is_out_of_memory
from detsearch_cli.engine.train import OnProgress, Progress, train
from detsearch_cli.errors import CheckpointError, DataError, DataLost, DetsearchError, RecipeError
from detsearch_cli.files import write_json
from detsearch_cli.reading import parse_yaml, read_json
from detsearch_cli.recipe import Data, Recipe, validate, with_fragment
from detsearch_cli.trials import scores_in


def run_trial(recipe_yaml: str, workdir: str, epochs: int | None = None) -> dict[str, Any]:
    """Train the recipe in `workdir`, score it on the recipe's validation split, return the metrics.

    epochs: the trial's budget; the training stops after so many epochs of its schedule, and goes on when it is called
    with more. Every score on the way is written to scores.json at once, and returned as `scores`. Raises whatever
    training raises; the caller records it as the reason of a failed trial. Raises DataLost where data or weights
    have gone since, which would fail every trial.
    """
    started, folder = time.monotonic(), Path(workdir)
    recipe = validate(parse_yaml(recipe_yaml, "the trial's recipe", RecipeError))
    try:
        data = load_data(recipe.data)
        # always up to some epoch, which tells `train` that this is a trial
        until = recipe.schedule.epochs if epochs is None else epochs
        metrics = train_with_retry(recipe, data, folder, partial(_note_score, folder), until=until)
    except (DetsearchError, OSError) as error:
        lost = _lost(recipe, error)
        if lost is not None:
            raise DataLost(lost) from error
        raise
    seconds = round(time.monotonic() - started, 3)
    return {**metrics, "scores": read_scores(folder), "seconds": seconds}


PROBED = 16
"""Pictures that are looked for after a failure: enough to tell a set that is gone from one that lost a picture."""


def _lost(recipe: Recipe, error: BaseException) -> str | None:
    """What every trial needs and cannot be read any more; None where the failure is the trial's own.

    An outage leaves one of three marks: the system refused to read a picture, the set cannot be opened anew, or
    none of its pictures is there. A picture that is broken, or a recipe that asks for too much, leaves none.
    """
    weights = recipe.backbone.weights
    if weights is not None and not weights.is_file():
        return f"the weights {weights} are not there any more"
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    unreadable = next((e for e in causes if isinstance(e, DataError)), None)
    if unreadable is None:
        return None
    # Pillow's own complaints about a file's content are OSErrors as well, without a number
    if any(isinstance(e, OSError) and e.errno not in (None, errno.EMFILE, errno.ENFILE) for e in causes):
        return str(unreadable)
    try:
        source = open_source(recipe.data.source)
        named = [name for name in source.splits if name in map(str.strip, recipe.data.train.split("+"))]
        records = [record for name in named for record in source.load(name).records]
    except (DataError, OSError) as gone:
        return str(gone)
    files = [record.file for record in records[:: len(records) // PROBED + 1] if record.file is not None]
    if files and not any(file.is_file() for file in files):
        return f"the pictures of {recipe.data.source} are not there any more, such as {files[0]}"
    return None


def read_scores(folder: Path) -> list[list[float | None]]:
    """Every score of a trial so far, oldest first: [epoch, AP], None where AP is undefined; empty before the first."""
    try:
        return [list(pair) for pair in scores_in(read_json(folder / ckpt.SCORES, CheckpointError))]
    except CheckpointError:  # none yet, or a power cut left an empty file: they are scored again
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
