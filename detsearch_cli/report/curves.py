"""Figures of one evaluation: precision-recall curves and the confusion matrix.

They take plain arrays and names, and give matplotlib figures that belong to no window; `save` writes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detsearch_cli.files import replace_file
from detsearch_cli.report.figures import to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CURVES = 20  # more lines in one panel cannot be told apart
MOST_NUMBERS = 25  # more classes leave no room for numbers in the cells


def precision_recall(
    precision: np.ndarray, classes: Sequence[str], *, thresholds: tuple[int, ...] = (0, 5), title: str = ""
) -> Figure:
    """A panel an IoU threshold, a curve a class with its AP, and the mean over classes.

    precision (10, 101, C): `Evaluation.precision`, at IoU .5:.05:.95 and recall 0:.01:1, NaN for classes
    without objects, which get no curve. thresholds: rows of it, by default IoU .5 and .75. Of more than 20
    classes, the 10 best and the 10 worst at the first threshold are drawn; the mean is always over all.
    """
    from matplotlib.figure import Figure

    if precision.ndim != 3 or precision.shape[1:] != (101, len(classes)):
        raise ValueError(f"precision must be (T, 101, {len(classes)}), got {precision.shape}")
    figure = Figure(figsize=(5.2 * len(thresholds) + 1.4, 4.6), layout="constrained")
    panels = figure.subplots(1, len(thresholds), squeeze=False, sharey=True)[0]
    drawn = _curves_to_draw(precision[thresholds[0]])
    for axes, threshold in zip(panels, thresholds, strict=True):
        _curves(axes, precision[threshold], classes, drawn)
        axes.set_title(f"IoU {0.5 + 0.05 * threshold:.2f}")
    panels[0].set_ylabel("precision")
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _curves_to_draw(precision: np.ndarray) -> np.ndarray:
    """Classes with a curve, best first: all that are defined, or the best and worst halves of MOST_CURVES."""
    ap = precision.mean(axis=0)
    order = np.argsort(-ap, kind="stable")[: int((~np.isnan(ap)).sum())]  # NaN sorts last
    if len(order) <= MOST_CURVES:
        return order
    return np.concatenate([order[: MOST_CURVES // 2], order[-(MOST_CURVES // 2) :]])


def _curves(axes: Axes, precision: np.ndarray, classes: Sequence[str], drawn: np.ndarray) -> None:
    import matplotlib

    recall = np.linspace(0, 1, 101)
    colors = matplotlib.colormaps["tab20" if len(drawn) > 10 else "tab10"]
    for number, label in enumerate(drawn):
        ap = precision[:, label].mean()
        name = _legend(classes[label], ap)
        axes.plot(recall, precision[:, label], color=colors(number), linewidth=1.2, label=name)
    defined = precision[:, ~np.isnan(precision).any(axis=0)]
    if defined.shape[1] > 1:
        mean = defined.mean(axis=1)
        name = _legend(f"mean of {defined.shape[1]}", mean.mean())
        axes.plot(recall, mean, color="black", linewidth=2.2, label=name)
    if defined.size == 0:
        axes.text(0.5, 0.5, "no objects to find", ha="center", va="center", transform=axes.transAxes)
    else:
        legend = axes.legend(fontsize=7, loc="lower left", framealpha=0.7, ncols=1 + (len(drawn) > 10))
        for text in legend.get_texts():
            text.set_parse_math(False)  # a dollar sign in a name starts no formula
    axes.set(xlabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)


def _legend(name: str, ap: float) -> str:
    # a leading underscore would hide the entry
    return f"{ap:.3f} {name[:28]}"


def confusion(counts: np.ndarray, classes: Sequence[str], *, title: str = "") -> Figure:
    """The confusion matrix as a picture; colour is the share of the row, numbers are counts.

    counts (C+1, C+1) as of `engine.confusion`: row = true, column = predicted, the last of both = background.
    Numbers are left out above 25 classes, names above 100.
    """
    from matplotlib.figure import Figure

    if counts.shape != (len(classes) + 1, len(classes) + 1):
        raise ValueError(f"counts must be {(len(classes) + 1,) * 2}, got {counts.shape}")
    side = float(np.clip(2.8 + 0.36 * len(counts), 4.5, 22))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    rows = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(rows, 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the row", shrink=0.8)
    _name_cells(axes, classes)
    if len(classes) <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if share[row, column] > 0.55 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.axhline(len(classes) - 0.5, color="gray", linewidth=0.8)
    axes.axvline(len(classes) - 0.5, color="gray", linewidth=0.8)
    if title:
        axes.set_title(title, parse_math=False)
    return figure


def _name_cells(axes: Axes, classes: Sequence[str]) -> None:
    if len(classes) > 100:
        axes.set_xticks([len(classes)], ["missed"])
        axes.set_yticks([len(classes)], ["background"])
        return
    names = [c[:24] for c in classes]
    size = 8 if len(classes) <= 40 else 5
    axes.set_xticks(range(len(names) + 1), [*names, "missed"], rotation=90, fontsize=size)
    axes.set_yticks(range(len(names) + 1), [*names, "background"], fontsize=size)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a signed PNG, whole or not at all. Raises StorageError."""
    encoded = to_png(figure, dpi=130)
    # replaces a file that the caller has claimed: before the figure was computed, not now
    replace_file(path, lambda p: p.write_bytes(encoded))
