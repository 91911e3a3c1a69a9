"""What shapes do: how they moved during a training, how they fit boxes, how many boxes each serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from detsearch_cli.document import Document, checked
from detsearch_cli.engine.checkpoint import LOG
from detsearch_cli.engine.journal import read_entries
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.files import resolved
from detsearch_cli.methods.anchors.fit import quality, served

USED = 0.01
"""A shape that serves fewer of the boxes than this part is called idle."""
Pixels = Annotated[float, Field(gt=0, le=1e6)]


@dataclass(frozen=True)
class ShapeHistory:
    """How the shapes of a run moved. epochs (T,): 0 before the first. shapes (T, L, K, 2): w, h in px."""

    name: str
    epochs: np.ndarray
    shapes: np.ndarray

    @property
    def initial(self) -> np.ndarray:
        """(L, K, 2) px before the training."""
        return self.shapes[0]

    @property
    def learned(self) -> np.ndarray:
        """(L, K, 2) px after the last epoch so far, those of last.safetensors."""
        return self.shapes[-1]


class LearnedEntry(Document):
    """A line of log.jsonl that shapes which learn leave. anchors: [level][shape], w and h in px."""

    epoch: int
    anchors: Annotated[
        list[list[Annotated[list[Pixels], Field(min_length=2, max_length=2)]]], Field(min_length=1)
    ]


def has_history(run: Path) -> bool:
    """Whether shapes learned in this run. Raises CheckpointError for a damaged log."""
    return any("anchors" in entry for entry in read_entries(run / LOG))


def read_history(run: Path) -> ShapeHistory:
    """The history of the run in this folder, finished or not.

    Raises CheckpointError where no shapes learned, and for a damaged log.
    """
    path = run / LOG
    if not path.is_file():
        raise CheckpointError(f"{run} is no run folder: it holds no {LOG}")
    found: dict[int, np.ndarray] = {}
    for content in read_entries(path):
        if "anchors" in content:
            name = f"the entry of epoch {content['epoch']} in {path}"
            entry = checked(content, LearnedEntry, name, CheckpointError, "restore the file from a copy")
            sizes = {len(level) for level in entry.anchors}
            if len(sizes) > 1 or 0 in sizes:
                raise CheckpointError(
                    f"{name} is damaged: every level has as many anchors; restore it from a copy"
                )
            found[entry.epoch] = np.array(entry.anchors, np.float64)
    if not found:
        raise CheckpointError(
            f"no shapes learned in {run}: its recipe has fixed priors; `detsearch anchors train` lets them learn"
        )
    epochs = sorted(found)
    if len({shapes.shape for shapes in found.values()}) > 1:
        raise CheckpointError(
            f"{path} is damaged: its epochs have unequal numbers of anchors; restore it from a copy"
        )
    return ShapeHistory(run.name, np.array(epochs), np.stack([found[epoch] for epoch in epochs]))


def read_histories(runs: Sequence[Path]) -> list[ShapeHistory]:
    """`read_history` of each, named by as much of their folders' paths as tells them apart."""
    parts = list(dict.fromkeys(resolved(run).parts for run in runs))
    depth = next(d for d in range(1, 1000) if len({p[-d:] for p in parts}) == len(parts))
    return [replace(read_history(Path(*p)), name="/".join(p[-depth:])) for p in parts]


def check_counts(histories: Sequence[ShapeHistory], shapes: np.ndarray) -> None:
    """Raises RecipeError for runs whose shapes are not as many, on as many levels, as shapes (L, K, 2)."""
    for history in histories:
        if history.learned.shape != shapes.shape:
            here, there = (
                "{} shapes on {} levels".format(*s.shape[1::-1]) for s in (shapes, history.learned)
            )
            raise RecipeError(
                f"runs shown together need equal counts: {history.name} has {there}, not {here}"
            )


@dataclass(frozen=True)
class ShapeFit:
    """Shapes against boxes. shares (L, K): part of the boxes that each shape overlaps most; sums to 1.

    mean_iou: of the boxes with their best shape. recall: part of them whose best shape has an IoU of at least .5.
    idle: shapes that serve less than a hundredth of the boxes.
    """

    name: str
    shapes: np.ndarray
    shares: np.ndarray
    mean_iou: float
    recall: float
    idle: int


def inspect(sizes: np.ndarray, sets: Sequence[tuple[str, np.ndarray]]) -> list[ShapeFit]:
    """Every named set of shapes (L, K, 2) px against boxes (N, 2) px; places do not count."""
    found = []
    for name, shapes in sets:
        flat = shapes.reshape(-1, 2)
        share = served(sizes, flat)
        whole = quality(sizes, flat)[-1]
        idle = int((share < USED).sum())
        found.append(
            ShapeFit(name, shapes, share.reshape(shapes.shape[:2]), whole.mean_iou, whole.recall, idle)
        )
    return found


def spread(sets: list[np.ndarray]) -> float:
    """How far apart several trainings ended: the largest ratio of sides that correspond, less 1.

    Shapes (L, K, 2) correspond by area, level by level, whatever order they are in.
    """
    ordered = [
        np.stack([level[np.argsort(level.prod(-1), kind="stable")] for level in shapes]) for shapes in sets
    ]
    every = np.stack(ordered)
    return float((every.max(0) / every.min(0)).max() - 1)
