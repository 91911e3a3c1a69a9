"""What assigners do to real ground truths: how many positives each gets, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.types import Split
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Recipe
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.slots.assigners.dynamic import Dynamic, Groups
from detsearch_cli.structures import Dense, Priors

BATCH = 8


@dataclass(frozen=True)
class Row:
    """One ground truth. image: row of split.records; box: xyxy network px; aspect: height over width.

    level: pyramid level (3 is P3), None when no anchor is a candidate. bin: aspect-ratio bin. candidates:
    what the dynamic assigner can choose from. wanted: its count. positives: by assigner.
    """

    image: int
    label: str
    box: tuple[float, float, float, float]
    aspect: float
    level: int | None
    bin: int
    candidates: int
    wanted: int
    positives: dict[str, int]

    @property
    def size(self) -> float:
        """Square root of the area, px as the network sees it."""
        x0, y0, x1, y1 = self.box
        return float(np.sqrt(max(x1 - x0, 0) * max(y1 - y0, 0)))


@dataclass(frozen=True)
class Locations:
    """Positive priors of an image. points (N, 2) px: centres; level (N,); gt (N,): row of boxes."""

    points: np.ndarray
    level: np.ndarray
    gt: np.ndarray


@dataclass(frozen=True)
class InspectedImage:
    """An image, resized. pixels (H, W, 3) uint8; boxes (G, 4) xyxy px; locations by assigner."""

    image: int
    pixels: np.ndarray
    boxes: np.ndarray
    locations: dict[str, Locations]


@dataclass(frozen=True)
class Inspection:
    """Every ground truth of the images looked at, and the first few images with the positives drawn out."""

    rows: list[Row]
    samples: list[InspectedImage]


@torch.no_grad()
def inspect(
    detector: Detector,
    assigners: Mapping[str, Assigner],
    recipe: Recipe,
    split: Split,
    indices: Sequence[int],
    *,
    grouping: Dynamic,
    samples: int = 4,
) -> Inspection:
    """Assign the images at `indices` of the split with every assigner, from the same predictions.

    grouping: the dynamic assigner whose levels and bins rows are sorted into. detector: trained or not, on
    the device to use; left in the mode it came in. samples: images kept with their locations.
    Raises DataError for an index outside the split, RecipeError when counts do not fit the pyramid.
    """
    wrong = [i for i in indices if not 0 <= i < len(split)]
    if wrong:
        raise DataError(f"images of {split.name!r} are numbered 0 to {len(split) - 1}, got {wrong[0]}")
    device = next(detector.parameters()).device
    loader = Loader(
        split.take(list(indices)),
        recipe.augment,
        batch_size=BATCH,
        train=False,
        seed=0,
        device=device,
    )
    rows: list[Row] = []
    kept: list[InspectedImage] = []
    training = detector.training
    detector.eval()
    try:
        for batch in loader.epoch(0):
            dense = detector(batch.images).detached()
            targets = detector.dense_targets(batch.targets)
            matched = {name: assigner(dense, targets).matched for name, assigner in assigners.items()}
            names = [int(indices[i]) for i in batch.index.tolist()]
            rows += _rows(batch, dense, matched, grouping, detector.levels[0], names, split.classes)
            for i in range(min(samples - len(kept), len(names))):
                kept.append(_inspected(batch, dense.priors, matched, detector.levels[0], i, names[i], recipe))
    finally:
        detector.train(training)
    return Inspection(rows, kept)


def positives(
    detector: Detector,
    assigner: Assigner,
    recipe: Recipe,
    split: Split,
    indices: Sequence[int],
    *,
    grouping: Dynamic,
) -> list[Row]:
    """`inspect` for a single assigner: rows whose `positives` has the one key "positives"."""
    return inspect(
        detector, {"positives": assigner}, recipe, split, indices, grouping=grouping, samples=0
    ).rows


def _rows(
    batch: Batch,
    dense: Dense,
    matched: Mapping[str, Tensor],
    grouping: Dynamic,
    first_level: int,
    names: Sequence[int],
    classes: Sequence[str],
) -> list[Row]:
    """One row a ground truth of the batch."""
    targets = batch.targets
    if not len(targets.boxes):
        return []
    groups: Groups = grouping.explain(dense.priors, targets.boxes)
    received = {
        name: torch.bincount(m[m >= 0], minlength=len(targets.boxes)).tolist() for name, m in matched.items()
    }
    boxes, labels, image = targets.boxes.tolist(), targets.labels.tolist(), targets.image_index().tolist()
    level, bins = groups.level.tolist(), groups.bin.tolist()
    candidates, wanted = groups.candidates.tolist(), groups.count.tolist()
    return [
        Row(
            image=names[image[g]],
            label=classes[labels[g]],
            box=(x0, y0, x1, y1),
            aspect=(y1 - y0) / (x1 - x0),
            level=None if level[g] < 0 else level[g] + first_level,
            bin=bins[g],
            candidates=candidates[g],
            wanted=wanted[g],
            positives={name: counts[g] for name, counts in received.items()},
        )
        for g, (x0, y0, x1, y1) in enumerate(boxes)
    ]


def _inspected(
    batch: Batch,
    priors: Priors,
    matched: Mapping[str, Tensor],
    first_level: int,
    i: int,
    name: int,
    recipe: Recipe,
) -> InspectedImage:
    """Image i of the batch with what each assigner made positive in it."""
    height, width = batch.sizes[i].tolist()
    start, end = batch.targets.splits[i : i + 2].tolist()
    mean, std = np.array(recipe.augment.mean), np.array(recipe.augment.std)
    pixels = batch.images[i, :, :height, :width].permute(1, 2, 0).cpu().numpy() * std + mean
    return InspectedImage(
        image=name,
        pixels=np.rint(pixels * 255).clip(0, 255).astype(np.uint8),
        boxes=batch.targets.boxes[start:end].cpu().numpy(),
        locations={key: _locations(m[i], priors, start, first_level) for key, m in matched.items()},
    )


def _locations(matched: Tensor, priors: Priors, start: int, first_level: int) -> Locations:
    at = torch.nonzero(matched >= 0).flatten()
    return Locations(
        points=priors.points[at].cpu().numpy(),
        level=(priors.level[at] + first_level).cpu().numpy(),
        gt=(matched[at] - start).cpu().numpy(),
    )


def summarise(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, float | int | str]]:
    """Mean positives by size for a table: one line a size range, COCO's small, medium and large, and all.

    Keys: "size", "ground truths", for each assigner its mean, and the share without any as "NAME none".
    """
    ranges = {
        "small (< 32 px)": (0.0, 32.0),
        "medium (32 to 96 px)": (32.0, 96.0),
        "large (> 96 px)": (96.0, np.inf),
    }
    lines: list[dict[str, float | int | str]] = []
    for label, (low, high) in {**ranges, "all": (0.0, np.inf)}.items():
        inside = [row for row in rows if low <= row.size < high]
        line: dict[str, float | int | str] = {"size": label, "ground truths": len(inside)}
        for name in names:
            got = [row.positives[name] for row in inside]
            line[name] = float(np.mean(got)) if got else float("nan")
            line[f"{name} none"] = float(np.mean([n == 0 for n in got])) if got else float("nan")
        lines.append(line)
    return lines
