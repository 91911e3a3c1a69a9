"""Detections of a trained detector: on a whole split, or on image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detsearch_cli.data.images import ImageError, check_image, find_images, read_header, read_image
from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.types import Record, Split
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.machine import autocast
from detsearch_cli.engine.proposals import ProposalRecall
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Recipe
from detsearch_cli.structures import Detections

EVAL_BATCH = 16
FILES_AT_ONCE = 256
"""Image files that are looked at, detected and handed out before the next: a night's work is not lost at its end."""


@torch.no_grad()
def detect_split(
    model: Detector, split: Split, recipe: Recipe, device: torch.device, *, rank: int = 0, world: int = 1
) -> DetectionTable:
    """Detections of every image of `split` (of this rank's share), in original pixels.

    Computed in the precision the recipe trains with on that device.
    """
    training = model.training
    model.eval()
    loader = Loader(
        split,
        recipe.augment,
        # no larger than in training: that size is known to fit
        batch_size=min(EVAL_BATCH, recipe.optim.batch_size),
        train=False,
        seed=0,  # nothing is drawn: images are only resized
        device=device,
        workers=recipe.runtime.workers,
        cache=recipe.runtime.cache,
        rank=rank,
        world=world,
    )
    try:
        with autocast(recipe, device):
            tables = [_to_table(model, batch, split, recipe) for batch in loader.epoch(0)]
        return DetectionTable.concatenate(tables)
    finally:  # also after an error: a training that catches it goes on in its own mode
        model.train(training)


def _to_table(model: Detector, batch: Batch, split: Split, recipe: Recipe) -> DetectionTable:
    found: list[Detections] = model.detect(batch.images, batch.sizes, recipe.test)
    records = [split.records[i] for i in batch.index.tolist()]
    rows = [_to_original(d.boxes, batch.scales[i], records[i]) for i, d in enumerate(found)]
    proposed = [
        ProposalRecall.of(records[i], _to_original(d.proposals, batch.scales[i], records[i]))
        for i, d in enumerate(found)
        if d.proposals is not None
    ]
    counts = [len(d.scores) for d in found]
    return DetectionTable(
        image=np.repeat(batch.index.numpy(), counts),
        boxes=np.concatenate(rows).reshape(-1, 4),
        scores=np.concatenate([d.scores.float().cpu().numpy() for d in found]).astype(np.float64),
        labels=np.concatenate([d.labels.cpu().numpy() for d in found]).astype(np.int64),
        proposals=ProposalRecall.total(proposed),
    )


def _to_original(found: Tensor, scale: Tensor, record: Record) -> np.ndarray:
    """Boxes (N, 4) from resized to original pixels, clipped to the image."""
    boxes = found.float().cpu().numpy().astype(np.float64) / scale.repeat(2).numpy()
    limit = np.array([record.width, record.height] * 2, dtype=np.float64)
    return np.clip(boxes, 0, limit)


@dataclass(frozen=True)
class DetectedFiles:
    """Detections of some image files.

    split: those that can be read, in order, with ids 1, 2, ... of all files given; table: of that split. unreadable:
    the others, each with the reason.
    """

    split: Split
    table: DetectionTable
    unreadable: tuple[tuple[Path, str], ...]


def detect_files(
    model: Detector, files: Sequence[Path], recipe: Recipe, classes: tuple[str, ...], device: torch.device
) -> Iterator[DetectedFiles]:
    """Detections of image files, FILES_AT_ONCE at a time; files that are no images are told and passed over.

    Raises DataError where the system cannot read a file now, which says nothing about the file.
    """
    for start in range(0, len(files), FILES_AT_ONCE):
        good: dict[int, Path] = {}
        bad = []
        for number, file in enumerate(files[start : start + FILES_AT_ONCE], start + 1):
            try:
                check_image(file)
                good[number] = file
            except ImageError as error:
                bad.append((file, error.reason))
            except FileNotFoundError:
                bad.append((file, "no such file"))
        split = image_split(good.values(), classes, list(good))
        table = detect_split(model, split, recipe, device) if good else DetectionTable.empty()
        yield DetectedFiles(split, table, tuple(bad))


def image_split(
    paths: Iterable[Path], classes: tuple[str, ...], image_ids: Sequence[int] | None = None
) -> Split:
    """Image files without annotations, as a split. Raises DataError for a file that is no image.

    image_ids: of the files; 1, 2, ... without.
    """
    files = list(paths)
    records = []
    for number, path in zip(image_ids or range(1, len(files) + 1), files, strict=True):
        header = read_header(path)
        empty = np.zeros(0)
        records.append(
            Record(
                number,
                path,
                header.height,
                header.width,
                np.zeros((0, 4), np.float32),
                empty.astype(np.int64),
                empty.astype(bool),
                empty.astype(bool),
                empty,
            )
        )
    ids = tuple(range(1, len(classes) + 1))
    return Split("images", classes, ids, tuple(records), (), lambda i: read_image(files[i]))


def expand_images(given: Iterable[Path]) -> list[Path]:
    """Files as they are, folders as the images directly in them, sorted. Raises DataError for a missing path."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = find_images(path)
            if not inside:
                below = next((p.parent for p in find_images(path, recursive=True)), None)
                where = f" itself, but {below} does; folders below are not searched, give them too"
                raise DataError(
                    f"{path} holds no images{where if below else '; give image files or a folder of them'}"
                )
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"no image at {path}; check the path")
    return found


def per_image(table: DetectionTable, num_images: int) -> Iterator[DetectionTable]:
    """The table's rows of image 0, 1, ..."""
    # stable: the detections of an image keep their order, best first
    order = np.argsort(table.image, kind="stable")
    bounds = np.searchsorted(table.image[order], np.arange(num_images + 1))
    for start, stop in pairwise(bounds.tolist()):
        rows = order[start:stop]
        yield table.select(rows)
