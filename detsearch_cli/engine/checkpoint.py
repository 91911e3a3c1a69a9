"""Run folders: what a training run keeps, and how it is found again.

    recipe.yaml           the whole recipe; written first and signed, so that the folder is known as ours
    lock                  held by the process that trains; it stays
    metrics.json          written last; its presence means the run is finished
    log.jsonl             one line a step, one line an epoch
    last.safetensors      weights after the last trained epoch (averaged ones, with EMA), recipe, classes
    best.safetensors      the same at the epoch of the highest validation AP, when it is evaluated every epoch
    resume.safetensors    weights, optimiser and EMA; removed when the run is finished
    detections.json       COCO results of the evaluated split
    detections.final.json the same of the final split, where the run is part of a comparison (comparison.py)
    best.yaml             what the detector learned beside its weights, as a fragment, where it did
    scores.json           [[epoch, AP], ...] of a trial, for the coordinator of a search (trial.py)
    data.json             which images it was trained and scored on (fingerprint.py)
    diverged.json         the losses and images of the step whose loss was not finite
    tensorboard/          events, with runtime.tensorboard

Weights are kept as those of the deployed detector (Detector.deployed) with the recipe that builds it; only
resume.safetensors holds the parts that learn.

Weights are safetensors only: opening a file never runs code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from detsearch_cli import reading
from detsearch_cli.detectors import build
from detsearch_cli.detectors._weights import refuse_not_finite
from detsearch_cli.detectors.base import Detector, LearnedPart
from detsearch_cli.document import checked
from detsearch_cli.engine.documents import ClassNames, Metrics
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.files import (
    LOCK,
    claim_folder,
    is_ours,
    locked,
    replace_file,
    signed_yaml,
    storage_error,
    write_text,
)
from detsearch_cli.fragments import differences
from detsearch_cli.recipe import Fragment, Recipe, merge, validate

RECIPE, METRICS, LOG, FRAGMENT = "recipe.yaml", "metrics.json", "log.jsonl", "best.yaml"
LAST, BEST, RESUME, DETECTIONS = (
    "last.safetensors",
    "best.safetensors",
    "resume.safetensors",
    "detections.json",
)
FINAL, SCORES, DIVERGED, DATA = "detections.final.json", "scores.json", "diverged.json", "data.json"
BOARD, BOARD_EVENTS = "tensorboard", "events.out.tfevents.*"
RUN_FILES = (RESUME, METRICS, LAST, BEST, LOG, DETECTIONS, FINAL, FRAGMENT, SCORES, DIVERGED, DATA)
"""Every file of a run but its recipe, in the order in which `start_anew` removes them."""


def save_weights(path: Path, model: nn.Module, recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Save a detector with all that is needed to build it again."""
    about = {"recipe": recipe.to_yaml(), "classes": json.dumps(classes)}
    save_tensors(path, model.state_dict(), about)


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Save tensors and text atomically."""
    # contiguous and clone: safetensors refuses channels-last tensors, and tensors that share memory
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    # not save_file: it makes files that only their owner can read, whatever the umask
    # replaces our own: every caller names a weights file in a run folder that it has claimed
    replace_file(path, lambda p: p.write_bytes(save(plain, metadata=about)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and text. Raises CheckpointError naming the file."""
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a run folder or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({error}); restore or retrain it"
        ) from error


def load_detector(run_or_file: Path, which: str = LAST) -> tuple[Detector, Recipe, tuple[str, ...]]:
    """Build the detector a run folder or weights file holds: (detector in eval mode, recipe, classes).

    Raises CheckpointError for a file that is damaged, does not fit its own recipe, or holds a weight that is no number.
    """
    path = run_or_file / which if run_or_file.is_dir() else run_or_file
    if run_or_file.is_dir() and not path.is_file():
        raise CheckpointError(f"{run_or_file} holds no {which}; is it the folder of a finished run?")
    tensors, about = load_tensors(path)
    if "recipe" not in about or "classes" not in about:
        raise CheckpointError(f"{path} was not written by detsearch: it names no recipe and classes")
    # the backbone's own file is not needed any more: its weights are in here
    recipe = _recipe_inside(path, about["recipe"])
    bare = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": None})})
    classes = _classes_inside(path, about["classes"])
    _refuse_unfit(path, tensors, bare, len(classes))
    refuse_not_finite(path, tensors)
    try:
        model = build(bare, len(classes))
    except (RuntimeError, MemoryError) as error:  # torch's error where there is no memory for it
        said = (str(error).splitlines() or ["out of memory"])[0]
        raise CheckpointError(
            f"the recipe inside {path} builds no detector here ({said}); restore the file"
        ) from error
    load_state(model, tensors, path, "its own recipe")
    return model.eval(), recipe, classes


def load_state(model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """`load_state_dict` of tensors from a file. Raises CheckpointError saying that it does not fit `what`."""
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # its first line names the class of the detector, the second what is wrong
        said = (str(error).splitlines() * 2)[1].strip()
        raise CheckpointError(f"{path} does not fit {what}: {said}") from error


def _refuse_unfit(path: Path, tensors: dict[str, Tensor], recipe: Recipe, num_classes: int) -> None:
    """Raise CheckpointError before memory is taken for a recipe that the file's tensors cannot be of.

    A damaged number in the recipe, or a list of a million classes, asks for more memory than there is.
    """
    try:
        with torch.device("meta"):  # shapes without values
            wanted = {name: tuple(t.shape) for name, t in build(recipe, num_classes).state_dict().items()}
    except (RuntimeError, NotImplementedError):
        return  # a detector of the user's own computes with its values; the real one is built next
    for name, shape in wanted.items():
        there = tuple(tensors[name].shape) if name in tensors else None
        if there != shape:
            found = "is missing" if there is None else f"has shape {there}"
            raise CheckpointError(
                f"{path} does not fit its own recipe: {name} {found} where the recipe has {shape}; restore the file"
            )


def _recipe_inside(path: Path, text: str) -> Recipe:
    name = f"the recipe inside {path}"
    content = reading.parse_yaml(text, name, CheckpointError)
    try:
        return validate(content)
    except RecipeError as error:
        raise CheckpointError(f"{name} is damaged or of another version: {error}") from error


def _classes_inside(path: Path, text: str) -> tuple[str, ...]:
    name = f"the list of classes inside {path}"
    remedy = "restore or retrain the file"
    content = reading.parse_json(text, name, CheckpointError, remedy)
    return tuple(checked(content, ClassNames, name, CheckpointError, remedy))


def save_fragment(path: Path, weights: Path, learned: Sequence[LearnedPart]) -> None:
    """Write what the parts have become in a weights file as a fragment."""
    recipe = _recipe_inside(weights, load_tensors(weights)[1]["recipe"])
    fragment: Fragment = {}
    for part in learned:
        fragment = merge(fragment, part.fragment(recipe))
    write_text(path, yaml.safe_dump(fragment, sort_keys=False, default_flow_style=None))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """metrics.json of a finished run, None where there is none. Raises CheckpointError naming a damaged field."""
    path = folder / METRICS
    if not path.exists():
        return None
    remedy = "restore it, or remove it and train again, which writes it"
    content = reading.read_json(path, CheckpointError, remedy)
    checked(content, Metrics, path, CheckpointError, remedy)
    return dict(content)


def read_recipe(folder: Path) -> Recipe:
    """recipe.yaml of a run folder."""
    path = folder / RECIPE
    if not path.exists():
        raise CheckpointError(f"{folder} is no run folder: it holds no {RECIPE}")
    content = reading.read_yaml(path, CheckpointError)
    try:
        return validate(content)
    except RecipeError as error:
        raise CheckpointError(f"{path} is damaged or of another version: {error}") from error


def holds_run_of(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder is this recipe's run. A recipe.yaml of the user's own is nobody's run."""
    return is_ours(folder / RECIPE) and read_recipe(folder).hash() == recipe.hash()


def check(folder: Path, recipe: Recipe) -> None:
    """May this recipe be trained in `folder`? Writes nothing.

    Raises OutputError for a folder that holds what no run wrote, CheckpointError for another recipe's run.
    """
    # the lock follows the recipe at once: without it a recipe was copied beside what somebody else keeps there
    claim_folder(folder, RECIPE, "run", beside=LOCK)
    if not (folder / RECIPE).is_file():
        return
    there = read_recipe(folder)
    if there.hash() != recipe.hash():
        # equal values of different hash are one number written in two ways, 1 and 1.0
        first = next(iter(differences(there.identity(), recipe.identity())), "in how a number is written")
        raise CheckpointError(f"{folder} holds the run of another recipe ({first}); choose another --out")


def claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's. Raises what `check` raises, StorageError when the disk refuses."""
    check(folder, recipe)
    if not (folder / RECIPE).is_file():
        _write_recipe(folder, recipe)


@contextmanager
def owned(folder: Path, recipe: Recipe) -> Iterator[None]:
    """Claim the folder for this recipe and lock it, so that no second training writes into it.

    Raises what `claim` raises, and CheckpointError while another process trains in it.
    """
    # the recipe before the lock: a folder that held only a lock after a kill would be nobody's, so refused
    claim(folder, recipe)
    with _locked(folder):
        # again: another recipe may have claimed the empty folder between our look at it and our writing
        claim(folder, recipe)
        yield


def start_anew(folder: Path, old: Recipe, new: Recipe) -> None:
    """Turn the unfinished run of `old` in `folder` into the untouched run of `new`; files of other names stay.

    After a kill on the way the folder is still the old recipe's, and can be trained on. Raises OutputError where
    `folder` is no run, CheckpointError where it is another's or finished, or while another process trains in it.
    """
    check(folder, old)
    with _locked(folder):
        # again: another process may have trained there before we held the lock
        check(folder, old)
        if (folder / METRICS).exists():
            raise CheckpointError(f"the run in {folder} is finished, so it does not start anew")
        # resume.safetensors comes first: what a kill leaves then starts at the first step, and the journal drops the
        # entries that are too many; a checkpoint without its log would have lost the best AP
        for name in RUN_FILES:
            _remove(folder / name)
        board = folder / BOARD
        # through a link we would reach a folder that no run made
        for events in [] if board.is_symlink() else sorted(board.glob(BOARD_EVENTS)):
            _remove(events)
        _write_recipe(folder, new)


def _remove(path: Path) -> None:
    """Remove one file that a run wrote, by its name in a folder that is signed as a run's.

    A symbolic link is removed itself, never what it points to; a folder of that name is not ours and stays.
    """
    if path.is_dir() and not path.is_symlink():
        return
    try:
        path.unlink(missing_ok=True)  # ours: a name of RUN_FILES or an events file, the folder claimed
    except OSError as error:
        raise storage_error(path, error) from error


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    # replaces nothing but our own: `claim_folder` has found the folder empty or recipe.yaml signed
    write_text(folder / RECIPE, signed_yaml("run", recipe.to_yaml()))


def _locked(folder: Path) -> Any:
    return locked(
        folder,
        CheckpointError,
        f"{folder} is being trained by {{holder}}; wait for it to end, or choose another --out",
    )
