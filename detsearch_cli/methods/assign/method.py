"""How a candidate of the search becomes a recipe: its counts are the dynamic assigner's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from detsearch_cli.methods.assign.space import Bins, bin_labels, build, parse_bins
from detsearch_cli.recipe import Fragment, Recipe, detector_class, with_fragment
from detsearch_cli.report.figures import Figure
from detsearch_cli.report.page import Table
from detsearch_cli.search.space import Space

ALPHA, MIN_IOU = 1.5, 0.1  # the dynamic assigner's defaults; its docstring says why


@dataclass(frozen=True)
class AssignMethod:
    """HPS-Det's search. The baseline, trial 0, is the recipe as it is: the detector's own assignment.

    bins: as `--bins`, None for three a level. edges: aspect-ratio edges in place of the paper's. max_count:
    largest count searched, None for the paper's: 80 for RetinaNet, 25 for FCOS, 32 for ATSS. alpha: weight of
    the IoU loss when candidates are ranked. min_iou: IoU above which an anchor is a candidate; at .1, ATSS's
    8 x stride anchors offer none to objects below 2.5 strides, which a lower value serves.
    """

    bins: str | None = None
    edges: tuple[float, ...] | None = None
    max_count: int | None = None
    alpha: float = ALPHA
    min_iou: float = MIN_IOU
    name: ClassVar[str] = "assign"
    sampler: ClassVar[str] = "dycors"

    def groups(self, recipe: Recipe) -> Bins:
        """Groups of ground truths for the recipe's pyramid. Raises SpaceError when the bins do not fit it."""
        return parse_bins(self.bins, detector_class(recipe.detector).pyramid_levels(recipe), self.edges)

    def space(self, recipe: Recipe) -> Space:
        """Raises SpaceError when the bins do not fit the recipe's pyramid."""
        return build(self.groups(recipe), self.largest(recipe))

    def largest(self, recipe: Recipe) -> int:
        """Largest count searched for the recipe's detector (HPS-Det, section 4.2)."""
        if self.max_count is not None:
            return self.max_count
        return detector_class(recipe.detector).max_count

    def fragment(self, recipe: Recipe, candidate: Mapping[str, Any]) -> Fragment:
        """What `best.yaml` holds: the whole assign slot. Raises SpaceError outside the space."""
        self.space(recipe).check(candidate)
        groups = self.groups(recipe)
        return {
            "assign": {
                "name": "dynamic",
                "counts": groups.counts(candidate),
                "edges": [list(edge) for edge in groups.edges],
                "alpha": self.alpha,
                "min_iou": self.min_iou,
            }
        }

    def apply(self, recipe: Recipe, candidate: Mapping[str, Any]) -> Recipe:
        """The recipe with the candidate's assignment. Raises SpaceError for a candidate outside the space."""
        below = recipe.model_copy(
            update={"assign": None}
        )  # replace the slot, do not merge with another dynamic
        return with_fragment(below, self.fragment(recipe, candidate))

    def found(self, recipe: Recipe, candidate: Mapping[str, Any]) -> tuple[list[Table], list[Figure]]:
        """The counts as a level x aspect-ratio table; rows with fewer bins leave the rest empty."""
        groups = self.groups(recipe)
        widest = max(groups.edges, key=len)
        columns = ["level", *bin_labels(widest)]
        counts = groups.counts(candidate)
        rows: list[list[str | int]] = [
            [name, *row, *[""] * (len(widest) + 1 - len(row))]
            for name, row in zip(groups.row_names, counts, strict=True)
        ]
        caption = "Positives each ground truth gets, by its pyramid level and aspect ratio (height / width)."
        return [Table("Counts found", caption, columns, rows, heat=True)], []


METHOD = AssignMethod
