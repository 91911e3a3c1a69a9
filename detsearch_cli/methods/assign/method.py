"""How a candidate of the search becomes a fragment: its counts are the dynamic assigner's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import RecipeError
from detsearch_cli.methods.assign.options import Options, ShowOptions
from detsearch_cli.methods.base import Method, Shown

if TYPE_CHECKING:
    from detsearch_cli.detectors.base import Detector
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.methods.assign.space import Bins
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure
    from detsearch_cli.report.page import Table
    from detsearch_cli.search.space import Candidate, Product
    from detsearch_cli.slots.assigners.dynamic import Dynamic

SIDES = ("baseline", "searched")


class Assign(Method):
    """HPS-Det's search. The baseline, trial 0, is the recipe as given: the detector's own assignment, mostly."""

    Options = Options
    ShowOptions = ShowOptions
    sampler = "dycors"
    search_help = "Find the counts of highest AP; trial 0 is the recipe as given."
    train_help = "Train with searched counts; with --baseline also the recipe as given, and compare."
    show_help = "Counts as a table, and how many positives each ground truth receives, where: baseline beside searched."

    def groups(self, recipe: Recipe) -> Bins:
        """Groups of ground truths for the recipe's pyramid. Raises SpaceError where the bins do not fit it."""
        from detsearch_cli.methods.assign.space import parse_bins, parse_edges
        from detsearch_cli.recipe import detector_class

        edges = parse_edges(self.options.edges) if self.options.edges else None
        return parse_bins(self.options.bins, detector_class(recipe.detector).pyramid_levels(recipe), edges)

    def space(self, recipe: Recipe) -> Product:
        """Whole numbers from 1 to the largest count, one for each group. Raises SpaceError."""
        from detsearch_cli.methods.assign.space import build

        return build(self.groups(recipe), self.largest(recipe))

    def largest(self, recipe: Recipe) -> int:
        """Largest count searched for the recipe's detector (HPS-Det, section 4.2)."""
        from detsearch_cli.recipe import detector_class

        given: int | None = self.options.max_count
        return detector_class(recipe.detector).max_count if given is None else given

    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """The whole assign slot. Raises SpaceError outside the space."""
        self.space(recipe).check(candidate)
        groups = self.groups(recipe)
        return {
            "assign": {
                "name": "dynamic",
                "counts": groups.counts(candidate),
                "edges": [list(edge) for edge in groups.edges],
                "alpha": self.options.alpha,
                "min_iou": self.options.min_iou,
            }
        }

    def tables(self, recipe: Recipe) -> Sequence[Table]:
        """Counts by pyramid level and aspect ratio."""
        from detsearch_cli.recipe import build_part
        from detsearch_cli.slots.assigners.dynamic import Dynamic

        if recipe.assign is None:
            return ()
        assigner = build_part("slots.assigners", recipe.assign, "assign")
        return [counts_table(recipe, assigner)] if isinstance(assigner, Dynamic) else ()

    def show(self, recipe: Recipe, runs: Sequence[Path], options: Any) -> Shown:
        """Counts, positives by size, and pictures of where they are.

        Raises RecipeError for a recipe without counts or several runs, CheckpointError for a run of another recipe.
        """
        from detsearch_cli.data.source import open_source
        from detsearch_cli.data.splits import resolve
        from detsearch_cli.methods.assign import figures
        from detsearch_cli.methods.assign.inspect import inspect, summarise
        from detsearch_cli.slots.assigners.dynamic import Dynamic

        if len(runs) > 1:
            raise RecipeError(f"assign show looks through one run at a time, got {len(runs)} with --run")
        detector = _detector(recipe, runs[0] if runs else None)
        searched = detector.assigner
        if not isinstance(searched, Dynamic):
            raise RecipeError(
                "assign show needs counts: give --study, or --recipe with a fragment such as best.yaml "
                "(an empty one means that nothing better than the recipe as given was found)"
            )
        split = resolve(recipe.data, open_source(recipe.data.source)).train
        seen = min(options.images, len(split))
        inspection = inspect(
            detector,
            {"baseline": detector.default_assigner(), "searched": searched},
            recipe,
            split,
            list(range(seen)),
            grouping=searched,
            samples=options.samples,
        )
        summary = summarise(inspection.rows, SIDES)
        weights = "trained" if runs else "untrained"
        title = f"positives a ground truth, {seen} of {len(split)} images, {weights} weights"
        drawn: dict[str, Figure] = {
            "counts": figures.counts_table(_bins(recipe, searched), searched.counts),
            "positives": figures.positives_per_ground_truth(inspection.rows, SIDES),
            **{f"locations-{i + 1}": f for i, f in enumerate(figures.locations(inspection, SIDES))},
        }
        content = {"counts": searched.counts, "positives": summary, "trained": bool(runs)}
        return Shown(content, [counts_table(recipe, searched), _positives(title, summary)], (), drawn)


def counts_table(recipe: Recipe, assigner: Dynamic) -> Table:
    """The counts as a level x aspect-ratio table; rows with fewer bins leave the rest empty."""
    from detsearch_cli.methods.assign.space import bin_labels
    from detsearch_cli.report.page import Table

    bins = _bins(recipe, assigner)
    widest = max(bins.edges, key=len)
    rows: list[list[str | int | float]] = [
        [name, *row, *[""] * (len(widest) + 1 - len(row))]
        for name, row in zip(bins.row_names, assigner.counts, strict=True)
    ]
    caption = "Positives each ground truth gets, by its pyramid level and aspect ratio (height / width)."
    return Table("Counts found", caption, ["level", *bin_labels(widest)], rows, heat=True)


def _bins(recipe: Recipe, assigner: Dynamic) -> Bins:
    from detsearch_cli.methods.assign.space import Bins
    from detsearch_cli.recipe import detector_class

    first, last = detector_class(recipe.detector).pyramid_levels(recipe)
    shared = len(assigner.counts) == 1
    return Bins(assigner.edge_rows(), None if shared else tuple(range(first, last + 1)))


def _positives(title: str, summary: Sequence[dict[str, float | int | str]]) -> Table:
    from detsearch_cli.report.page import Table

    rows = [[cell(name, value) for name, value in line.items()] for line in summary]
    return Table(title, "", list(summary[0]), rows, heat=False)


def cell(column: str, value: Any) -> str:
    """A mean with one decimal, the share without positives in percent, a dash where there is none."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f}%" if column.endswith(" none") else f"{value:.1f}"


def _detector(recipe: Recipe, run: Path | None) -> Detector:
    """The detector to look through: with a trained run's weights, or with those its training starts from."""
    import torch

    from detsearch_cli.data.source import open_source
    from detsearch_cli.detectors import build, start
    from detsearch_cli.engine.checkpoint import LAST, load_state, load_tensors

    classes = open_source(recipe.data.source).load("train").classes
    torch.manual_seed(recipe.seed)
    detector = build(recipe, len(classes))
    if run is None:
        # the start of a training; a run has weights of its own, and what it started from may be gone
        start(detector, recipe, classes)
        return detector
    path = run / LAST if run.is_dir() else run
    tensors, _ = load_tensors(path)
    load_state(detector, tensors, path, "the recipe; give the recipe that it was trained with")
    return detector
