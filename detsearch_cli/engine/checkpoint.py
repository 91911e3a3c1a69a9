"""Run folders: what a training run keeps, and how it is found again.

    recipe.yaml           the whole recipe
    metrics.json          written last; its presence means the run is finished
    log.jsonl             one line a step, one line an epoch
    last.safetensors      weights after the last trained epoch (averaged ones, with EMA), recipe, classes
    best.safetensors      the same at the epoch of the highest validation AP, when it is evaluated every epoch
    resume.safetensors    weights, optimiser and EMA; removed when the run is finished
    detections.json       COCO results of the evaluated split
    best.yaml             what the detector learned beside its weights, as a fragment, where it did

Weights are kept as those of the deployed detector (Detector.deployed) with the recipe that builds it; only
resume.safetensors holds the parts that learn.

Weights are safetensors only: opening a file never runs code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector, LearnedPart
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.files import replace_file, write_text
from detsearch_cli.recipe import Fragment, Recipe, merge, validate, yaml_problem

RECIPE, METRICS, LOG, FRAGMENT = "recipe.yaml", "metrics.json", "log.jsonl", "best.yaml"
LAST, BEST, RESUME, DETECTIONS = (
    "last.safetensors",
    "best.safetensors",
    "resume.safetensors",
    "detections.json",
)


def save_weights(path: Path, model: nn.Module, recipe: Recipe, classes: tuple[str, ...]) -> None:
    """Save a detector with all that is needed to build it again."""
    about = {"recipe": recipe.to_yaml(), "classes": json.dumps(classes)}
    save_tensors(path, model.state_dict(), about)


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Save tensors and text atomically."""
    # clone: safetensors refuses tensors that share memory, and channels-last ones
    plain = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    # not save_file: it makes files that only their owner can read, whatever the umask
    replace_file(path, lambda p: p.write_bytes(save(plain, metadata=about)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and text. Raises CheckpointError naming the file."""
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; give a run folder or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({error}); restore or retrain it"
        ) from error


def load_detector(run_or_file: Path, which: str = LAST) -> tuple[Detector, Recipe, tuple[str, ...]]:
    """Build the detector a run folder or weights file holds: (detector in eval mode, recipe, classes)."""
    path = run_or_file / which if run_or_file.is_dir() else run_or_file
    if run_or_file.is_dir() and not path.is_file():
        raise CheckpointError(f"{run_or_file} holds no {which}; is it the folder of a finished run?")
    tensors, about = load_tensors(path)
    if "recipe" not in about or "classes" not in about:
        raise CheckpointError(f"{path} was not written by detsearch: it names no recipe and classes")
    # the backbone's own file is not needed any more: its weights are in here
    recipe = validate(yaml.safe_load(about["recipe"]))
    bare = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"weights": None})})
    classes = tuple(json.loads(about["classes"]))
    model = build(bare, len(classes))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit its own recipe: {str(error).splitlines()[1].strip()}"
        ) from error
    return model.eval(), recipe, classes


def save_fragment(path: Path, weights: Path, learned: Sequence[LearnedPart]) -> None:
    """Write what the parts have become in a weights file as a fragment."""
    recipe = validate(yaml.safe_load(load_tensors(weights)[1]["recipe"]))
    fragment: Fragment = {}
    for part in learned:
        fragment = merge(fragment, part.fragment(recipe))
    write_text(path, yaml.safe_dump(fragment, sort_keys=False, default_flow_style=None))


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """metrics.json of a finished run, or None."""
    path = folder / METRICS
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); remove it and run the training again"
        ) from error


def read_recipe(folder: Path) -> Recipe:
    """recipe.yaml of a run folder."""
    path = folder / RECIPE
    if not path.is_file():
        raise CheckpointError(f"{folder} is no run folder: it holds no {RECIPE}")
    try:
        return validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path} is not valid YAML: {yaml_problem(error)}") from error
    except RecipeError as error:
        raise CheckpointError(f"{path} is damaged or of another version: {error}") from error


def claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's. Raises CheckpointError when it already is another's."""
    path = folder / RECIPE
    if path.is_file():
        there = read_recipe(folder)
        if there.hash() != recipe.hash():
            raise CheckpointError(
                f"{folder} holds the run of another recipe ({_first_difference(there, recipe)}); "
                f"choose another --out"
            )
        return
    if any((folder / name).exists() for name in (METRICS, RESUME, LAST)):
        raise CheckpointError(f"{folder} holds a run without its {RECIPE}; choose another --out")
    write_text(path, recipe.to_yaml())


def _first_difference(a: Recipe, b: Recipe) -> str:
    flat_a, flat_b = (dict(_flatten(r.identity())) for r in (a, b))
    for key in sorted(flat_a.keys() | flat_b.keys()):
        if flat_a.get(key) != flat_b.get(key):
            return f"{key} is {flat_a.get(key)} there, {flat_b.get(key)} here"
    return "no difference"


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), content
