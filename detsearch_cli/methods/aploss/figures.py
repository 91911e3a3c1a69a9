"""Pictures of a loss and of a search for one: five curves with their control points (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from detsearch_cli.report.canvas import canvas, style
from detsearch_cli.report.figures import COLOURS, Figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[Sequence[float]]

MEANINGS = (
    "f1: positives",
    "f2: ranked above",
    "f3: rightness of those",
    "f4: rank",
    "f5: weight of a positive",
)
"""Of the functions, by what they do in Eq. 6."""
LINEAR: Points = ((0.0, 0.0), (1.0, 1.0))
_OTHERS = ("#3b5bb5", "#e6550d", "#9b3fae")
_DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_STEEPEST = 8.0
"""Of the slopes that are drawn; short steep pieces go on above it."""


def curves(points: Sequence[Points], others: Mapping[str, Sequence[Points]]) -> Figure:
    """Five curves, each from (0, 0) to (1, 1), and below each its slope; over those of other losses, by their names."""
    with style():
        sheet = canvas(11.4, 5.2)
        axes = sheet.subplots(2, len(MEANINGS), sharex=True, height_ratios=(3, 2))
        for k, (name, curve) in enumerate(zip(MEANINGS, points, strict=True)):
            above, below = axes[:, k]
            _draw(above, below, LINEAR, COLOURS["muted"], (0, (2, 2)), 1.2, "where a search begins")
            for (other, its), colour, dash in zip(others.items(), _OTHERS, _DASHES, strict=False):
                _draw(above, below, its[k], colour, dash, 1.2, other)
            _draw(above, below, curve, COLOURS["accent"], "-", 2.2, "this loss")
            above.plot(*zip(*curve, strict=True), "o", ms=5, color=COLOURS["accent"], mew=0)
            above.set_title(name, fontsize=10)
            above.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            below.set(ylim=(0, _STEEPEST), xlabel="x")
            if k:
                above.tick_params(labelleft=False)
                below.tick_params(labelleft=False)
            for ax in (above, below):
                ax.grid(lw=0.6)
        axes[0, 0].set_ylabel("f(x)")
        axes[1, 0].set_ylabel("slope")
        handles, names = axes[0, 0].get_legend_handles_labels()
        sheet.legend(handles, names, loc="outside lower center", ncols=len(names))
        caption = (
            "The functions of Eq. 6 with their control points, and their slopes. x of f2 and f4 is a difference of scores "
            "from -1 to 1, mapped to 0 to 1; x of the others is the localisation score. Where f2 is steep scores move, "
            "where f1, f3 and f5 are steep boxes do; where all are flat nothing is learned."
        )
        return Figure("Curves found", caption, to_png(sheet), f"Five curves: {_said(points)}.")


def rounds(means: Sequence[Sequence[Points]], scales: Sequence[float]) -> Figure:
    """The curves at the mean of each round of a search, light to dark. scales: of the gradient into the boxes, by round."""
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("rounds", [COLOURS["line"], COLOURS["accent"]])
    with style():
        sheet = canvas(11.4, 3.2)
        axes = sheet.subplots(1, len(MEANINGS))
        for k, (name, ax) in enumerate(zip(MEANINGS, axes, strict=True)):
            for number, curve_set in enumerate(means):
                xs, ys = zip(*curve_set[k], strict=True)
                last = number == len(means) - 1
                told = f"round {number + 1}" if number in (0, len(means) - 1) else None
                colour = shade(number / max(1, len(means) - 1))
                ax.plot(xs, ys, color=colour, lw=2.2 if last else 1.3, label=told)
            ax.set_title(name, fontsize=10)
            ax.set(
                xlim=(-0.03, 1.03),
                ylim=(-0.03, 1.03),
                xticks=(0, 0.5, 1),
                xticklabels=("0", ".5", "1"),
                xlabel="x",
            )
            ax.grid(lw=0.6)
            if k:
                ax.tick_params(labelleft=False)
        axes[0].set_ylabel("f(x)")
        sheet.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        moved = " to ".join(f"{scale:.2f}" for scale in (scales[0], scales[-1]))
        caption = (
            f"The curves at the mean that each of {len(means)} rounds drew its candidates around, light to dark. The scale "
            f"of the gradient into the boxes went from {moved}."
        )
        said = f"The mean's five curves in the last of {len(means)} rounds: {_said(means[-1])}."
        return Figure("Where the search went", caption, to_png(sheet), said)


def _draw(above: Axes, below: Axes, curve: Points, colour: str, dash: Any, width: float, label: str) -> None:
    above.plot(*zip(*curve, strict=True), color=colour, ls=dash, lw=width, label=label)
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(curve)]
    below.stairs(slopes, [x for x, _ in curve], baseline=None, color=colour, ls=dash, lw=width)


def _said(points: Sequence[Points]) -> str:
    return "; ".join(
        f"{name} through {', '.join(f'({x:.3g}, {y:.3g})' for x, y in curve[1:-1]) or 'no inner knot'}"
        for name, curve in zip(MEANINGS, points, strict=True)
    )
