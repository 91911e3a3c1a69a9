"""Anchor shapes as tables and as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detsearch_cli.cli import console
from detsearch_cli.engine.checkpoint import LOG
from detsearch_cli.errors import DataError, RecipeError
from detsearch_cli.methods.anchors import figures
from detsearch_cli.methods.anchors.fit import SizeBin, fit_levels, served, training_sizes
from detsearch_cli.methods.anchors.inspect import Look, Way, look, read_way, spread

if TYPE_CHECKING:
    from detsearch_cli.data.types import Split
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure

SIDES = ("baseline", "learned")
LISTED = 12
"""Shapes in one line of a table."""
TOLD = 0.01
"""Part by which a side must move to be told of."""
Rows = tuple[Sequence[SizeBin], Sequence[SizeBin]]


def sides(recipe: Recipe) -> str:
    """`416` or `800,1333`."""
    short, long = recipe.augment.image_size
    return f"{short}" if short == long else f"{short},{long}"


def tell_fit(
    recipe: Recipe, shapes: np.ndarray, strides: Sequence[int], sizes: np.ndarray, rows: Rows
) -> None:
    """The shapes found, what each serves, and the fit by size before and after. shapes (L, K, 2) px."""
    share = served(sizes, shapes.reshape(-1, 2)).reshape(shapes.shape[:2])
    cells = [
        [str(stride), f"{w:.1f}", f"{h:.1f}", f"{100 * part:.1f}"]
        for stride, level, parts in zip(strides, shapes, share, strict=True)
        for (w, h), part in zip(level, parts, strict=True)
    ]
    title = f"{len(cells)} shapes for {len(sizes)} boxes at image size {sides(recipe)}"
    console.table(title, ["stride", "width px", "height px", "serves %"], cells)
    table = [
        [_range(a), str(a.boxes), *(console.percent(v) for v in (b.mean_iou, a.mean_iou, b.recall, a.recall))]
        for b, a in zip(*rows, strict=True)
        if a.boxes
    ]
    title = "mean best IoU, and best possible recall at IoU .5, by size sqrt(w h)"
    columns = ["px", "boxes", "IoU before", "IoU now", "recall before", "recall now"]
    console.table(title, columns, table)
    below = [stride for stride, level in zip(strides, shapes, strict=True) if level.min() < stride]
    if below:
        least = shapes.min()
        console.say(
            f"note: the least side, {least:.1f} px, is below the stride of its level ({_joined(below)}): objects "
            f"that small may share a cell; larger images or a finer level help, --min-strides 1 forbids such shapes"
        )


def _joined(strides: Sequence[int]) -> str:
    return f"{', '.join(map(str, strides))} px"


def _range(row: SizeBin) -> str:
    if row.low == 0 and np.isinf(row.high):
        return "all"
    return f"{row.low:.0f} and more" if np.isinf(row.high) else f"{row.low:.0f} to {row.high:.0f}"


def fit_json(
    shapes: np.ndarray, strides: Sequence[int], rows: Rows, runs: list[float] | None, file: Path
) -> dict[str, Any]:
    """The same as plain data; runs: mean best IoU of every restart."""
    by_size = [
        {
            "low": now.low,
            "high": None if np.isinf(now.high) else now.high,
            "boxes": now.boxes,
            **{
                name: {"mean_iou": row.mean_iou, "recall": row.recall}
                for name, row in (("before", before), ("now", now))
            },
        }
        for before, now in zip(*rows, strict=True)
    ]
    *parts, whole = by_size
    return {
        "strides": list(strides),
        "shapes": shapes.tolist(),
        "mean_iou": rows[1][-1].mean_iou,
        "restarts": runs,
        "all": whole,
        "by_size": parts,
        "file": str(file),
    }


def tell_bounds(start: np.ndarray, fixed: Recipe) -> None:
    """That initial shapes beyond the bounds of learning were brought within them, where they were."""
    assert fixed.priors is not None
    begun = np.array(fixed.priors.options["shapes"]).reshape(start.shape)
    moved = int((np.abs(begun / start - 1) > TOLD).any(-1).sum())
    if moved:
        console.say(
            f"note: {moved} of {start.shape[0] * start.shape[1]} initial shapes leave the bounds of learning (a quarter "
            f"of the stride, the image's side) and begin on them: {_listed(begun.reshape(-1, 2))}; so do the fixed ones"
        )


def learned_ways(folder: Path, seeds: Sequence[int]) -> list[Way]:
    """How the shapes of every seed's training moved."""
    return [read_way(folder / f"{SIDES[1]}-seed{seed}") for seed in seeds]


def check_ways(ways: Sequence[Way], shapes: np.ndarray) -> None:
    """Raises RecipeError for runs whose shapes are not as many, on as many levels, as the first's."""
    for way in ways:
        if way.learned.shape != shapes.shape:
            here, there = ("{} shapes on {} levels".format(*s.shape[1::-1]) for s in (shapes, way.learned))
            raise RecipeError(f"runs shown together need equal counts: {way.name} has {there}, not {here}")


def tell_ways(ways: Sequence[Way], first_level: int) -> None:
    """Initial and learned shapes, and how far apart the trainings ended."""
    several = ways[0].learned.shape[0] > 1
    rows = []
    for name, shapes in [("initial", ways[0].initial), *((w.name, w.learned) for w in ways)]:
        for number, level in enumerate(shapes):
            rows.append([name, *([f"P{first_level + number}"] if several else []), _listed(level)])
    console.table("shapes, w x h px", ["", *(["level"] if several else []), "by area"], rows)
    if len(ways) > 1:
        apart = 100 * spread([way.learned for way in ways])
        console.say(f"the {len(ways)} trainings ended within {apart:.1f}% of each other in every side")


def _listed(shapes: np.ndarray) -> str:
    by_area = shapes[np.argsort(shapes.prod(1), kind="stable")]
    shown = "  ".join(f"{w:.1f} x {h:.1f}" for w, h in by_area[:LISTED])
    return shown + (f"  and {len(by_area) - LISTED} more" if len(by_area) > LISTED else "")


def ways_json(ways: Sequence[Way]) -> dict[str, Any]:
    """Learned shapes of every training, and their spread; None for a single one."""
    return {
        "learned": {way.name: way.learned.tolist() for way in ways},
        "spread": spread([way.learned for way in ways]) if len(ways) > 1 else None,
    }


def drawn(
    sizes: np.ndarray, ways: Sequence[Way], own: np.ndarray, levels: tuple[int, int], seed: int
) -> tuple[list[Look], dict[str, Figure]]:
    """Every set of shapes against the boxes, and the pictures by the name of their file.

    sizes (N, 2), own (L, K, 2): the detector's anchors, drawn where no shapes learned; px. k-means is left out
    where there are too few boxes for it.
    """
    fixed = {} if ways else {"detector's own": own}
    strides = [2**level for level in range(levels[0], levels[1] + 1)]
    with contextlib.suppress(DataError):
        fixed["k-means"], _ = fit_levels(sizes, strides, own.shape[1], seed=seed)
    initial = [(f"{way.name}, initial", way.initial) for way in ways]
    looks = look(sizes, [*initial, *fixed.items(), *((way.name, way.learned) for way in ways)])
    plane = figures.plane(sizes, fixed, ways, levels[0])
    return looks, {"plane": plane, "shares": figures.shares(looks, levels[0])}


def run_figures(folder: Path, recipe: Recipe, split: Split) -> list[Figure]:
    """The pictures for the page of a run; none where no shapes learned. split: what it was trained on."""
    from detsearch_cli.recipe import detector_class

    if '"anchors"' not in (folder / LOG).read_text(encoding="utf-8"):
        return []
    way, levels = read_way(folder), detector_class(recipe.detector).pyramid_levels(recipe)
    _, pictures = drawn(training_sizes(split, recipe.augment), [way], way.initial, levels, recipe.seed)
    return list(pictures.values())


def tell_looks(looks: Sequence[Look], boxes: int, split: str) -> None:
    """One line a set of shapes."""
    rows = [
        [
            look.name,
            console.percent(look.mean_iou),
            console.percent(look.recall),
            str(look.idle),
            " ".join(f"{100 * share:.0f}" for share in look.shares.reshape(-1)),
        ]
        for look in looks
    ]
    title = f"shapes against {boxes} boxes of {split}"
    columns = ["", "mean best IoU", "recall at .5", "idle (< 1%)", "% of the boxes that each serves"]
    console.table(title, columns, rows)


def looks_json(looks: Sequence[Look]) -> dict[str, Any]:
    """Every set of shapes as plain data."""
    return {
        "sets": [
            {
                "name": look.name,
                "shapes": look.shapes.tolist(),
                "shares": look.shares.tolist(),
                "mean_iou": look.mean_iou,
                "recall": look.recall,
                "idle": look.idle,
            }
            for look in looks
        ]
    }
