"""The pictures of an assignment: its counts, how many positives ground truths get, and where those are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from detsearch_cli.methods.assign.inspect import InspectedImage, Inspection, Locations, Row
from detsearch_cli.methods.assign.space import Bins, bin_labels
from detsearch_cli.report.canvas import canvas, level_colour, style
from detsearch_cli.report.figures import COLOURS, Figure, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SAMPLES = 6


def counts_table(bins: Bins, counts: Sequence[Sequence[int]]) -> Figure:
    """Counts as a level x aspect-ratio heatmap. counts: by row and bin, as the dynamic assigner has them."""
    widest = max(len(row) for row in counts)
    grid = np.full((len(counts), widest), np.nan)
    for i, row in enumerate(counts):
        grid[i, : len(row)] = row
    with style():
        sheet = canvas(max(5.0, 1.6 + 1.35 * widest), 1.15 + 0.55 * len(counts))
        ax = sheet.subplots()
        ax.imshow(grid, cmap=_map(), aspect="auto", vmin=0)
        middle = float(np.nanmax(grid)) * 0.55
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                colour = "white" if count > middle else COLOURS["ink"]
                ax.text(
                    j, i, str(count), ha="center", va="center", color=colour, fontsize=12, fontweight="bold"
                )
        ax.set_yticks(range(len(counts)), [_level_name(name) for name in bins.row_names])
        ax.set_xticks(range(widest), _columns(bins, widest))
        ax.tick_params(length=0)
        ax.set_xlabel("aspect ratio of the ground truth, height / width")
        ax.spines[:].set_visible(False)
        for gap in range(1, widest):
            ax.axvline(gap - 0.5, color="white", lw=2)
        for gap in range(1, len(counts)):
            ax.axhline(gap - 0.5, color="white", lw=2)
        said = "; ".join(
            f"{name} {', '.join(map(str, row))}" for name, row in zip(bins.row_names, counts, strict=True)
        )
        return Figure(
            "Counts found",
            "Positives each ground truth gets, by the pyramid level and the aspect-ratio bin it falls into.",
            to_png(sheet),
            f"Counts by level and aspect ratio: {said}.",
        )


def _level_name(name: str) -> str:
    return "all levels" if name == "all" else f"{name} (stride {2 ** int(name[1:])})"


def _columns(bins: Bins, widest: int) -> list[str]:
    """Labels of the columns: the bins' ranges where all rows of that width agree, else their numbers."""
    edges = {edge for edge in bins.edges if len(edge) + 1 == widest}
    if len(edges) == 1 and set(bins.rows) == {widest}:
        return list(bin_labels(next(iter(edges))))
    return [f"bin {j + 1}" for j in range(widest)]


def positives_per_ground_truth(rows: Sequence[Row], names: Sequence[str]) -> Figure:
    """Positives per ground truth by size and by aspect ratio, one colour an assigner (baseline first)."""
    sizes, aspects = np.array([row.size for row in rows]), np.array([row.aspect for row in rows])
    octaves, ratios = _size_edges(sizes), (0.5, 2.0)
    by_size = np.clip(np.digitize(sizes, octaves) - 1, 0, len(octaves) - 2)
    with style():
        sheet = canvas(10.2, 4.4)
        left, right = sheet.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        _grouped(left, rows, names, by_size, [f"{low:g} – {high:g}" for low, high in pairwise(octaves)])
        _grouped(right, rows, names, np.digitize(aspects, ratios, right=True), bin_labels(ratios))
        left.set(xlabel="size of the ground truth, √area in pixels the network sees", ylabel="positives")
        right.set_xlabel("aspect ratio, height / width")
        left.set_ylim(bottom=0)  # shared
        sheet.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        png = to_png(sheet)
    means = ", ".join(
        f"{name} {np.mean([row.positives[name] for row in rows]):.1f}" for name in names if rows
    )
    return Figure(
        "Positives per ground truth",
        "Boxes hold the middle half, whiskers 90%, the line is the median, the diamond the mean; n is the "
        "number of ground truths, in red how many of them got no positive at all.",
        png,
        f"Mean positives per ground truth: {means or 'no ground truths'}.",
    )


def _size_edges(sizes: np.ndarray) -> list[float]:
    """Octaves that hold all sizes, at least one."""
    if not len(sizes):
        return [16.0, 32.0]
    low = np.floor(np.log2(max(float(sizes.min()), 2.0)))
    high = np.ceil(np.log2(max(float(sizes.max()), 4.0) + 1e-6))
    return [float(2**e) for e in np.arange(low, max(high, low + 1) + 1)]


def _grouped(
    ax: Axes, rows: Sequence[Row], names: Sequence[str], group: np.ndarray, labels: Sequence[str]
) -> None:
    """Whisker boxes of every assigner side by side in each group, with the number of ground truths."""
    count = len(labels)
    ax.grid(axis="y", lw=0.7)
    ax.spines["left"].set_visible(False)
    width = min(0.36, 0.8 / len(names))
    for k, name in enumerate(names):
        colour = _colour(k)
        got = np.array([row.positives[name] for row in rows])
        for g in range(count):
            values = got[group == g] if len(got) else got
            at = g + (k - (len(names) - 1) / 2) * width * 1.08
            if len(values):
                _box(ax, at, width, values, colour)
                none = int((values == 0).sum())
                if none:
                    ax.annotate(
                        f"{none} none", (at, 0), xytext=(0, 3), textcoords="offset points", ha="center",
                        fontsize=8, color=COLOURS["fail"], fontweight="bold", zorder=6,
                        bbox={"fc": "white", "ec": "none", "pad": 1, "alpha": 0.8},
                    )  # fmt: skip
        ax.plot([], [], "s", ms=9, color=colour, alpha=0.75, label=name)
    texts = [f"{label}\nn = {int((group == g).sum())}" for g, label in enumerate(labels)]
    ax.set_xticks(range(count), texts, linespacing=1.5)
    ax.set_xlim(-0.6, count - 0.4)


def _box(ax: Axes, at: float, width: float, values: np.ndarray, colour: str) -> None:
    low, quarter, middle, three, high = np.percentile(values, [5, 25, 50, 75, 95])
    for whisker in ([low, quarter], [three, high]):
        ax.plot([at, at], whisker, lw=1.3, color=colour, solid_capstyle="round", zorder=2)
    ax.bar(at, three - quarter, width, bottom=quarter, color=colour, alpha=0.75, zorder=3)
    ax.plot([at - width / 2, at + width / 2], [middle, middle], lw=2.2, color=colour, zorder=4)
    ax.plot([at], [values.mean()], "D", ms=5, color="white", mec=colour, mew=1.4, zorder=5)


def locations(inspection: Inspection, names: Sequence[str]) -> list[Figure]:
    """One picture an image: where each assigner's positives are, side by side, coloured by pyramid level."""
    return [_pair(sample, names) for sample in inspection.samples[:MOST_SAMPLES]]


def _pair(sample: InspectedImage, names: Sequence[str]) -> Figure:
    height, width = sample.pixels.shape[:2]
    each = 4.9
    with style():
        sheet = canvas(each * len(names) + 0.2, each * height / width + 0.75)
        axes = np.atleast_1d(sheet.subplots(1, len(names)))
        for ax, name in zip(axes, names, strict=True):
            found = sample.locations[name]
            _photograph(ax, sample, found)
            per_gt = len(found.gt) / max(1, len(sample.boxes))
            ax.set_title(
                f"{name}: {len(found.gt)} positives, {per_gt:.1f} a ground truth", fontsize=11, loc="left"
            )
        levels = sorted({int(v) for name in names for v in sample.locations[name].level})
        for level in levels:
            axes[0].plot([], [], "o", ms=6, color=level_colour(level), mec="white", label=f"P{level}")
        if levels:
            handles, labels = axes[0].get_legend_handles_labels()
            sheet.legend(handles, labels, loc="outside lower left", ncols=len(levels), fontsize=10)
        totals = ", ".join(f"{name} {len(sample.locations[name].gt)}" for name in names)
        return Figure(
            f"Positives in image {sample.image}",
            "Every dot is a positive location, coloured by its pyramid level, larger on coarser ones; red "
            "boxes are ground truths without any.",
            to_png(sheet),
            f"Image {sample.image} with {len(sample.boxes)} ground truths; positives: {totals}.",
        )


def _photograph(ax: Axes, sample: InspectedImage, found: Locations) -> None:
    """The image, pale, its boxes and the positives, each of which stays visible."""
    from matplotlib.patches import Rectangle

    height, width = sample.pixels.shape[:2]
    ax.imshow(sample.pixels, extent=(0, width, height, 0), interpolation="bilinear")
    ax.add_patch(Rectangle((0, 0), width, height, color="white", alpha=0.3, lw=0))
    for g, (x0, y0, x1, y1) in enumerate(sample.boxes.tolist()):
        served = bool((found.gt == g).any())
        colour, line = ("#111111", 1.3) if served else (COLOURS["fail"], 2.2)
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=colour, lw=line))
    points = _spread(found)
    for level in sorted(set(found.level.tolist()), reverse=True):
        here = found.level == level
        ax.scatter(
            points[here, 0], points[here, 1], s=13 + 7 * (level - 2), color=level_colour(level),
            edgecolors="white", linewidths=0.6, zorder=3,
        )  # fmt: skip
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _spread(found: Locations) -> np.ndarray:
    """Centres (N, 2) px; positives that share one lie on a small circle around it, so that all show."""
    points = found.points.astype(np.float64).copy()
    if not len(points):
        return points.reshape(0, 2)
    _, where, shared = np.unique(found.points, axis=0, return_inverse=True, return_counts=True)
    where = where.reshape(-1)
    order = np.argsort(where, kind="stable")
    rank = np.empty(len(points), dtype=np.int64)
    rank[order] = np.arange(len(points)) - np.repeat(np.cumsum(shared) - shared, shared)
    several = shared[where] > 1
    angle = 2 * np.pi * rank / shared[where]
    radius = 2.0**found.level * 0.25  # a quarter of the cell
    points[several] += (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))[several]
    return points


def _colour(index: int) -> str:
    return (COLOURS["baseline"], COLOURS["accent"], COLOURS["second"], COLOURS["muted"])[index % 4]


def _map() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("counts", ["#f4f8f7", COLOURS["accent"]])
