"""A detector that starts from another trained one: a run of ours, a weights file, a checkpoint of torchvision's.

`find` says once, when a recipe is composed, which file that is and what the recipe must be to hold its weights.
`take_over` fills the weights of a detector that was built: layer by layer where the network is the same, row by row
where rows belong to classes, so that classes both have keep what was learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detsearch_cli import reading, schema
from detsearch_cli.detectors import _torchvision
from detsearch_cli.detectors._weights import read_state_dict
from detsearch_cli.detectors.base import ClassRows, Detector
from detsearch_cli.errors import CheckpointError
from detsearch_cli.fragments import Fragment

WEIGHTS = ("best.safetensors", "last.safetensors")
"""Of a run folder, the first that is there: the best on validation images is the better start."""
NETWORK = {
    "detector": None,
    "backbone": ("name",),
    "neck": None,
    "head": None,
    "priors": None,
    "loss": None,
    "region_loss": None,
    "augment": ("image_size", "mean", "std"),
}
"""Of a run's recipe, what its weights mean nothing without: the network, its priors, its input. The loss says how a
score is read. None: the whole section."""
LEARNED_BESIDE = ("shapes.", "size_norm.")
"""Parts of tensor names that serve anchors which learn; a finished run's weights have them folded in."""
SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""PASCAL VOC's names of six of COCO's classes."""
NO_CLASS = ("", "n/a", "__background__")


@dataclass(frozen=True)
class Source:
    """A trained detector. detector: its name; implied: the part of a recipe that builds it; classes: its names in order."""

    file: Path
    sha256: str
    detector: str
    implied: Fragment
    state: Mapping[str, Tensor]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """What was taken over: tensors of the detector in full and of how many, classes kept and of how many."""

    name: str
    loaded: int
    tensors: int
    kept: int
    classes: int
    unused: int

    def __str__(self) -> str:
        if self.kept == self.classes:
            layers = f"class layers kept for all {self.classes} classes"
        elif self.kept == 0:
            layers = f"class layers drawn anew, it knows none of the {self.classes} classes"
        else:
            layers = f"class layers kept for {self.kept} of {self.classes} classes, the rest drawn anew"
        rest = f"; {self.unused} tensors of it have no place here" if self.unused else ""
        return f"started from {self.name}: {self.loaded} of {self.tensors} tensors; {layers}{rest}"


def find(value: str) -> Source:
    """The trained detector that `init` names: a run folder, a weights file, or a checkpoint of torchvision's.

    Raises CheckpointError where it cannot be found, fetched or read.
    """
    if value in _torchvision.CHECKPOINTS:
        return read(_torchvision.checkpoint_file(value))
    path = Path(value)
    if path.is_dir():
        files = [path / name for name in WEIGHTS if (path / name).is_file()]
        if not files:
            raise CheckpointError(
                f"init: {path} holds no {' or '.join(WEIGHTS)}; give the folder of a trained run"
            )
        path = files[0]
    if not path.is_file():
        raise CheckpointError(
            f"init takes a run folder, a weights file or one of {', '.join(_torchvision.CHECKPOINTS)}, found none "
            f"at {value}"
        )
    return read(path.resolve())


def read(path: Path) -> Source:
    """A whole detector from a weights file, its tensors under our names. Raises CheckpointError."""
    state, digest = read_state_dict(path), sha256_of(path)
    about = _about(path)
    if "recipe" in about:
        return _own(path, digest, about, state)
    # DistributedDataParallel saves every name behind this word
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if _torchvision.detector_of(state) is None:
        raise CheckpointError(
            f"init: {path} holds no detector this program knows; give a run of its own, or the state dict of "
            f"torchvision's {', '.join(_torchvision.CHECKPOINTS)}; for a backbone alone there is --backbone-weights"
        )
    implied = _torchvision.recipe_of(state)
    try:
        foreign = _torchvision.converted(state, _torchvision.official_name(digest))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError) as error:
        # a layer that is missing or of no size whose rows are to be rearranged
        raise CheckpointError(
            f"init: {path} is no complete {implied['detector']['name']} of torchvision's ({error}); save the whole state "
            f"dict with torch.save(model.state_dict(), FILE)"
        ) from error
    return Source(path, digest, foreign.detector, implied, foreign.state, foreign.classes)


def _own(path: Path, digest: str, about: Mapping[str, str], state: dict[str, Tensor]) -> Source:
    recipe = reading.parse_yaml(about["recipe"], f"the recipe inside {path}", CheckpointError)
    classes = reading.parse_json(about.get("classes", ""), f"the classes inside {path}", CheckpointError)
    detector = recipe.get("detector") if isinstance(recipe, dict) else None
    if not isinstance(detector, dict) or not isinstance(detector.get("name"), str):
        raise CheckpointError(f"init: the recipe inside {path} names no detector; restore or retrain it")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"init: the classes inside {path} are no list of names; restore or retrain it")
    implied: Fragment = {}
    for section, keys in NETWORK.items():
        value: Any = recipe.get(section)
        if isinstance(value, dict) and keys is not None:
            value = {key: value[key] for key in keys if key in value}
        if isinstance(value, dict):
            implied[section] = value
    return Source(path, digest, detector["name"], implied, state, tuple(classes))


def _about(path: Path) -> dict[str, str]:
    """The text beside the tensors of a safetensors file; {} of any other."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}); restore it") from error


def sha256_of(path: Path) -> str:
    """Hexadecimal digest of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------ filling a detector


def take_over(model: Detector, recipe: schema.Recipe, classes: Sequence[str]) -> Started:
    """Fill the detector that `recipe` builds with the weights of its `init`. classes: those it is to tell apart.

    Raises CheckpointError for a file that is gone, changed, or of another network; nothing is filled then.
    """
    init = recipe.init
    assert init is not None  # whoever calls has looked
    if not init.file.is_file():
        raise CheckpointError(f"init.file: no weights at {init.file}; bring the file back, or set init anew")
    if sha256_of(init.file) != init.sha256:
        raise CheckpointError(
            f"init.file: {init.file} is no longer the file that the recipe was made with (init.sha256 differs); "
            f"bring that one back, or start a new run with --init {init.file}"
        )
    source = read(init.file)
    if source.detector != recipe.detector.name:
        raise CheckpointError(
            f"init.file: {init.file} holds the detector {source.detector}, the recipe trains {recipe.detector.name}; "
            f"set detector back, or init to null"
        )
    return fill(model, source, classes)


@torch.no_grad()
def fill(model: Detector, source: Source, classes: Sequence[str]) -> Started:
    """Copy what fits. Raises CheckpointError, before anything is copied, where the networks differ."""
    own = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    layers = model.class_layers()
    same = _pairs(source.classes, classes)
    plan: list[tuple[Tensor, Tensor]] = []
    loaded = 0
    for key, target in own.items():
        given = source.state.get(key)
        if given is None:
            _check_optional(key, source)
            continue
        rows = layers.get(key.rpartition(".")[0])
        if rows is None:
            if given.shape != target.shape:
                raise _misfit(key, given, target, source)
            plan.append((target, given))
            loaded += 1
            continue
        plan += _class_rows(key, target, given, rows, same, (len(classes), len(source.classes)), source)
        loaded += len(same) == len(classes)
    for target, given in plan:
        target.copy_(given)
    unused = [k for k in source.state.keys() - own.keys() if not k.endswith("num_batches_tracked")]
    return Started(str(source.file), loaded, len(own), len(same), len(classes), len(unused))


def _class_rows(
    key: str,
    target: Tensor,
    given: Tensor,
    rows: ClassRows,
    same: Sequence[tuple[int, int]],
    counts: tuple[int, int],
    source: Source,
) -> list[tuple[Tensor, Tensor]]:
    """(here, there) rows of one class layer that are to be copied: of shared classes, and those of no class."""
    here = _split(target, rows, counts[0])
    there = _split(given, rows, counts[1])
    if there is None and rows.after < 2:
        # a softmax has a row for background, sigmoids have none: then that of the recipe's detector stays as it was drawn
        there = _split(given, replace(rows, after=1 - rows.after), counts[1])
    if (
        here is None
        or there is None
        or here[0].shape[0] != there[0].shape[0]
        or here[0].shape[2:] != there[0].shape[2:]
    ):
        raise _misfit(key, given, target, source)
    pairs = [(here[0], there[0]), *([(here[2], there[2])] if here[2].shape == there[2].shape else [])]
    return pairs + [(here[1][:, own], there[1][:, other]) for own, other in same]


def _split(layer: Tensor, rows: ClassRows, classes: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Views (groups, before, ...), (groups, classes, width, ...), (groups, after, ...); None where it does not divide."""
    each = rows.before + classes * rows.width + rows.after
    if len(layer) != rows.groups * each:
        return None
    grouped = layer.unflatten(0, (rows.groups, each))
    before, own, after = grouped.split([rows.before, classes * rows.width, rows.after], 1)
    return before, own.unflatten(1, (classes, rows.width)), after


def _pairs(there: Sequence[str], here: Sequence[str]) -> list[tuple[int, int]]:
    """(index here, index there) of the classes that both have."""
    known: dict[str, int] = {}
    for index, name in enumerate(there):
        known.setdefault(_plain(name), index)
    pairs = [
        (index, known.get(_plain(name))) for index, name in enumerate(here) if _plain(name) not in NO_CLASS
    ]
    return [(own, other) for own, other in pairs if other is not None]


def _plain(name: str) -> str:
    """A class by what tells it from others: not by case, and not by how its words are joined."""
    joined = " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
    # "__background__" must not become a word that somebody's class may have
    return name if name.startswith("__") else SYNONYMS.get(joined, joined)


def _check_optional(key: str, source: Source) -> None:
    """Raises CheckpointError for a tensor that the weights ought to have."""
    # torchvision's FCOS knows no factor a level: it counts as 1, which is where ours begin
    if any(part in key for part in LEARNED_BESIDE) or (
        key.startswith("head.scales.") and source.detector == "fcos"
    ):
        return
    raise CheckpointError(
        f"init: {source.file} has no {key}, which the recipe's detector has; build the same network (backbone.name, "
        f"neck, head and the detector's options as they were trained)"
    )


def _misfit(key: str, given: Tensor, target: Tensor, source: Source) -> CheckpointError:
    return CheckpointError(
        f"init: {key} has shape {tuple(given.shape)} in {source.file} and {tuple(target.shape)} in the recipe's "
        f"detector; build the same network (backbone.name, neck.channels, head.convs and priors as they were trained)"
    )
