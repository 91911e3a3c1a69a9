"""The plane of log width and log height as in the paper's Figures 2 and 3, and what each shape serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from detsearch_cli.methods.anchors.inspect import ShapeFit, ShapeHistory
from detsearch_cli.report.canvas import canvas, level_colour, style
from detsearch_cli.report.figures import COLOURS, Figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS_AN_OCTAVE = 12
BLUR = 0.18
"""Octaves; the width of the kernel of the density."""
FIXED_COLOURS = ("ink", "baseline", "muted")
LEGEND_CHARACTERS = 90
"""Of a line of the legend."""
COLOUR_NAMES = ("accent", "second", "fail", "muted", "baseline")


def plane(
    sizes: np.ndarray, fixed: dict[str, np.ndarray], histories: Sequence[ShapeHistory], first_level: int = 5
) -> Figure:
    """Density of the boxes, at most three sets of fixed shapes, and the histories of shapes that learned, with marginals.

    sizes (N, 2), N at least 1; fixed: (L, K, 2), all px. first_level: of the shapes' first list, 5 for stride 32.
    """
    shown = [s.reshape(-1, 2) for s in (*fixed.values(), *(history.shapes for history in histories))]
    edges = _edges(np.concatenate((np.percentile(sizes, [0.5, 99.5], axis=0), *shown)))
    density = _density(np.log2(sizes), edges)
    with style():
        sheet = canvas(7.6, 7.6)
        axes = sheet.subplots(2, 2, sharex="col", sharey="row", width_ratios=(5, 1), height_ratios=(1, 5))
        main, top, right = axes[1, 0], axes[0, 0], axes[1, 1]
        axes[0, 1].set_axis_off()
        middles = (edges[:-1] + edges[1:]) / 2
        # the root shows where boxes are few, too
        main.pcolormesh(middles, middles, np.sqrt(density), cmap=_map(), shading="gouraud")
        main.plot(edges[[0, -1]], edges[[0, -1]], lw=0.8, ls=(0, (2, 4)), color=COLOURS["muted"])
        _marginals(top, right, density, middles)
        for (name, shapes), marker, colour in zip(fixed.items(), "sDv", FIXED_COLOURS, strict=False):
            x, y = np.log2(shapes.reshape(-1, 2)).T
            main.plot(x, y, marker, ms=7, mfc="none", mec=COLOURS[colour], mew=1.3, label=name, zorder=4)
        for i, history in enumerate(histories):
            _draw_history(main, history, i, len(histories), first_level)
        _ticks(main, edges)
        handles, labels = main.get_legend_handles_labels()
        if handles:
            columns = LEGEND_CHARACTERS // (max(map(len, labels)) + 8)  # 8 for the marker and the gap
            sheet.legend(
                handles, labels, loc="outside lower left", ncols=min(max(columns, 1), 3), fontsize=10
            )
        return Figure(
            "Anchor shapes and ground truths",
            f"Darker where more of the {len(sizes)} ground truths are, as wide and high as the network sees "
            "them in training; lines lead shapes from where they started (triangles) to where they ended.",
            to_png(sheet),
            _alt(fixed, histories),
        )


def _draw_history(ax: Axes, history: ShapeHistory, index: int, count: int, first_level: int) -> None:
    """Start, line and end of every shape: one colour a run, or a level where there is one run of several."""
    levels = history.shapes.shape[1]
    for level in range(levels):
        by_level = count == 1 and levels > 1
        colour = level_colour(first_level + level) if by_level else _colour(index)
        name = f"{history.name}, P{first_level + level}" if by_level else history.name
        points = np.log2(history.shapes[:, level])
        for k in range(points.shape[1]):
            ax.plot(*points[:, k].T, lw=1.3, color=colour, alpha=0.75, zorder=5)
        ax.plot(*points[0].T, "^", ms=6, mfc="white", mec=colour, mew=1.3, zorder=6)
        label = name if by_level or level == 0 else None
        size = 7.5 + 3 * (count - 1 - index)  # those that end in one place all show, as rings
        ax.plot(*points[-1].T, "o", ms=size, color=colour, mec="white", mew=0.9, zorder=7, label=label)


def _edges(points: np.ndarray) -> np.ndarray:
    """Bin edges in octaves, the same for both sides, around all points (P, 2) px; at least four octaves."""
    low, high = np.log2(np.maximum(points.min(), 1)), np.log2(points.max())
    middle, half = (low + high) / 2, max(high - low, 4.0) / 2 + 0.4
    return np.linspace(middle - half, middle + half, int(2 * half * BINS_AN_OCTAVE) + 1)


def _density(logs: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Kernel density of boxes (N, 2) on the bins: rows are heights, columns widths."""
    from scipy.ndimage import gaussian_filter

    counts, _, _ = np.histogram2d(logs[:, 1], logs[:, 0], bins=(edges, edges))
    smooth: np.ndarray = gaussian_filter(counts, BLUR / (edges[1] - edges[0]))
    return smooth / max(smooth.max(), 1e-12)


def _marginals(top: Axes, right: Axes, density: np.ndarray, middles: np.ndarray) -> None:
    top.fill_between(middles, density.sum(0), color=COLOURS["dot"], alpha=0.6, lw=0)
    right.fill_betweenx(middles, density.sum(1), color=COLOURS["dot"], alpha=0.6, lw=0)
    for ax in (top, right):
        ax.spines[:].set_visible(False)
        ax.tick_params(labelleft=False, labelbottom=False)
    top.set_ylim(bottom=0)
    right.set_xlim(left=0)


def _ticks(ax: Axes, edges: np.ndarray) -> None:
    """Powers of two, told in pixels."""
    octaves = np.arange(np.ceil(edges[0]), np.floor(edges[-1]) + 1)
    names = [f"{2**octave:g}" for octave in octaves]
    ax.set_xticks(octaves, names)
    ax.set_yticks(octaves, names)
    ax.set(xlim=edges[[0, -1]], ylim=edges[[0, -1]])
    ax.set(xlabel="width, px (logarithmic)", ylabel="height, px (logarithmic)")


def _alt(fixed: dict[str, np.ndarray], histories: Sequence[ShapeHistory]) -> str:
    told = [f"{name}: {_listed(shapes)}" for name, shapes in fixed.items()]
    told += [
        f"{history.name}: from {_listed(history.initial)} to {_listed(history.learned)}"
        for history in histories
    ]
    return "; ".join(told) + "."


def _listed(shapes: np.ndarray) -> str:
    return ", ".join(f"{w:.0f} x {h:.0f}" for w, h in shapes.reshape(-1, 2))


def shares(fits: Sequence[ShapeFit], first_level: int = 5) -> Figure:
    """Part of the ground truths that every shape serves, one panel a set of shapes, as bars by area."""
    tallest = max(fit.shares.size for fit in fits)
    with style():
        sheet = canvas(max(4.0, 3.3 * len(fits)), 1.2 + 0.26 * tallest)
        panels = np.atleast_1d(sheet.subplots(1, len(fits), sharex=True))
        for ax, fit in zip(panels, fits, strict=True):
            _bars(ax, fit, first_level)
            ax.set_ylim(tallest - 0.4, -0.6)
        return Figure(
            "What each shape serves",
            "Part of the ground truths whose highest IoU is with this shape, all around one centre.",
            to_png(sheet),
            "; ".join(
                f"{fit.name}: " + ", ".join(f"{100 * s:.0f}%" for s in fit.shares.reshape(-1)) for fit in fits
            ),
        )


def _bars(ax: Axes, fit: ShapeFit, first_level: int) -> None:
    flat, share = fit.shapes.reshape(-1, 2), fit.shares.reshape(-1)
    levels = np.repeat(np.arange(len(fit.shapes)), fit.shapes.shape[1])
    order = np.argsort(flat.prod(1), kind="stable")
    several = len(fit.shapes) > 1
    colours: Any = [level_colour(first_level + n) for n in levels[order]] if several else COLOURS["accent"]
    ax.barh(range(len(order)), 100 * share[order], height=0.68, color=colours)
    for row, value in enumerate(share[order]):
        ax.annotate(
            f"{100 * value:.1f}", (100 * value, row), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=9, color=COLOURS["muted"],
        )  # fmt: skip
    names = [
        f"{w:.0f} × {h:.0f}" + (f"  P{first_level + n}" if several else "")
        for (w, h), n in zip(flat[order], levels[order], strict=True)
    ]
    ax.set_yticks(range(len(order)), names, fontsize=9)
    ax.set_title(f"{fit.name}\nmean best IoU {100 * fit.mean_iou:.1f}", fontsize=10, loc="left")
    ax.set_xlabel("% of ground truths")
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.18)


def _colour(index: int) -> str:
    return COLOURS[COLOUR_NAMES[index % len(COLOUR_NAMES)]]


def _map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("density", ["#ffffff", "#dfeceb", COLOURS["dot"]])
