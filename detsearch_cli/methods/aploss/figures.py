"""The picture of a loss: its five curves with their control points (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

from detsearch_cli.report.canvas import canvas, style
from detsearch_cli.report.figures import COLOURS, Figure, to_png

MEANINGS = (
    "f1: positives",
    "f2: ranked above",
    "f3: rightness of those",
    "f4: rank",
    "f5: weight of a positive",
)
"""Of the functions, by what they do in Eq. 6."""
_COLOURS = ("#0b7268", "#3b5bb5", "#c2255c", "#e6550d", "#9b3fae")
_MARKS = ("o", "s", "^", "D", "v")


def curves(points: Sequence[Sequence[tuple[float, float]]]) -> Figure:
    """Five curves, each from (0, 0) to (1, 1), over the linear one where a search begins."""
    with style():
        sheet = canvas(6.4, 4.6)
        ax = sheet.subplots()
        ax.plot([0, 1], [0, 1], ls=(0, (5, 3)), lw=1.4, color=COLOURS["muted"], label="where a search begins")
        for name, colour, mark, curve in zip(MEANINGS, _COLOURS, _MARKS, points, strict=True):
            xs, ys = zip(*curve, strict=True)
            ax.plot(xs, ys, marker=mark, ms=5, lw=1.8, color=colour, label=name, mew=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="x", ylabel="f(x)")
        ax.grid(lw=0.6)
        sheet.legend(loc="outside right upper")
        said = "; ".join(
            f"{name} through {', '.join(f'({x:.3g}, {y:.3g})' for x, y in curve[1:-1]) or 'no inner knot'}"
            for name, curve in zip(MEANINGS, points, strict=True)
        )
        caption = (
            "The functions of Eq. 6 with their control points. x of f2 and f4 is a difference of scores from -1 to 1, "
            "mapped to 0 to 1; x of the others is the localisation score. A steep piece is where the loss has its slope."
        )
        return Figure("Curves found", caption, to_png(sheet), f"Five curves: {said}.")
