"""How a candidate of the search becomes a fragment: a loss whose curves it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from detsearch_cli.errors import RecipeError, SpaceError
from detsearch_cli.methods.aploss.options import Options
from detsearch_cli.methods.base import Method, Shown

if TYPE_CHECKING:
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure
    from detsearch_cli.report.page import Table
    from detsearch_cli.search.space import Candidate, Product
    from detsearch_cli.search.study import Study
    from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

LOSS = "parameterized_ap"


class APLoss(Method):
    """The paper's search. The baseline, trial 0, is the recipe as given: the detector's own losses, mostly.

    Of a detector with two stages both losses are searched at once, and all of its regions are trained on, as in the paper.
    """

    Options = Options
    sampler = "ppo2"
    search_help = "Find the curves of highest AP; trial 0 is the recipe as given."
    train_help = "Train with searched curves; with --baseline also the recipe as given, and compare."
    show_help = "The curves of the loss as a table and a picture."

    def space(self, recipe: Recipe) -> Product:
        """Two numbers for each inner knot, and a scale. Raises SpaceError for a detector or an option that does not fit."""
        from detsearch_cli.methods.aploss.space import space
        from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

        kinds = get_args(ParameterizedAP.model_fields["localisation"].annotation)
        if self.options.localisation not in kinds:
            raise SpaceError(
                f"the localisation score is one of {', '.join(kinds)}, got {self.options.localisation!r}"
            )
        options = self.options
        return space(options.segments, options.shared, not options.no_scale, list(places(recipe)))

    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """The whole slot of each loss. Raises SpaceError outside the space."""
        from detsearch_cli.methods.aploss.space import SCALE, curves

        self.space(recipe).check(candidate)
        found: Fragment = {
            slot: {
                "name": LOSS,
                "curves": curves(candidate, self.options.segments, place),
                "scale": float(candidate.get(f"{place}{SCALE}", 1.0)),
                "localisation": self.options.localisation,
                "over": "batch",
                "through_denominator": False,
            }
            for place, slot in places(recipe).items()
        }
        # a ranking is of all regions, not of a sample that is balanced for a cross entropy
        return found | ({"detector": {"regions": None}} if len(found) > 1 else {})

    def tables(self, recipe: Recipe) -> Sequence[Table]:
        """The knots of each curve."""
        return [knots_table(loss, slot) for slot, loss in _losses(recipe).items()]

    def show(self, recipe: Recipe, runs: Sequence[Path], options: Any) -> Shown:
        """The curves. Raises RecipeError for a recipe without this loss, or whose curves are none, or that cannot train."""
        from detsearch_cli.data.source import open_source
        from detsearch_cli.detectors import build, start
        from detsearch_cli.engine.checkpoint import read_recipe
        from detsearch_cli.methods.aploss import figures

        if len(runs) > 1:
            raise RecipeError(f"aploss show looks at one run at a time, got {len(runs)} with --run")
        for run in runs:
            read_recipe(run)  # it lies below the options by now; a path that holds none is told
        # nothing of a recipe that could not be trained is worth a look
        classes = open_source(recipe.data.source).load("train").classes
        start(build(recipe, len(classes)), recipe, classes)
        losses = _losses(recipe)
        if not losses:
            raise RecipeError(
                "aploss show needs a loss parameterized_ap with curves, and `sigmoid` is none: give --study, --recipe "
                "with a fragment such as best.yaml (an empty one means that nothing better than the recipe as given was "
                "found), or --set loss=parameterized_ap"
            )
        content = {
            slot: {"curves": loss.points(), "scale": loss.scale, "localisation": loss.localisation}
            for slot, loss in losses.items()
        }
        others = _known_curves(recipe)
        drawn = {NAMES[slot]: figures.curves(loss.points(), others[slot]) for slot, loss in losses.items()}
        notes = [
            f"{slot}: the gradient into the boxes is multiplied by {loss.scale:.4g}; localisation score {loss.localisation}"
            for slot, loss in losses.items()
        ]
        return Shown(content, self.tables(recipe), notes, drawn)

    def study_figures(self, study: Study) -> Sequence[Figure]:
        """The curves at the mean of each round of PPO2; nothing of other samplers, which have none."""
        from detsearch_cli.methods.aploss import figures
        from detsearch_cli.methods.aploss.space import SCALE, curves
        from detsearch_cli.search.past import sampler_of
        from detsearch_cli.search.samplers.ppo2 import PPO2

        # another sampler has no rounds, and would be rebuilt for nothing
        sampler = sampler_of(study) if study.config.sampler.name == "ppo2" else None
        if not isinstance(sampler, PPO2) or len(sampler.rounds) < 2:
            return ()
        means = sampler.means()
        found = []
        for place in dict.fromkeys(name.rpartition(".f")[0] for name in means[0] if not name.endswith(SCALE)):
            place = f"{place}." if place else ""
            moved = [curves(mean, self.options.segments, place) for mean in means]
            scales = [float(mean.get(f"{place}{SCALE}", 1.0)) for mean in means]
            picture = figures.rounds(moved, scales)
            found.append(replace(picture, title=f"{picture.title}, {place[:-1]}") if place else picture)
        return found


PUBLISHED = {False: "pap-retinanet", True: "pap-faster-rcnn"}
"""Fragments with the paper's curves, by whether a detector has two stages."""
NAMES = {"loss": "curves", "region_loss": "region-curves"}
"""Of the pictures."""


def places(recipe: Recipe) -> dict[str, str]:
    """What the numbers of each loss begin with, and its slot. Raises SpaceError for a detector that has no place for it."""
    from detsearch_cli.detectors._pyramid import PyramidDetector
    from detsearch_cli.detectors.deformable_detr import DeformableDETR
    from detsearch_cli.recipe import detector_class

    kind = detector_class(recipe.detector)
    if kind.stages == 2:
        return {"rpn.": "loss", "regions.": "region_loss"}
    if issubclass(kind, (PyramidDetector, DeformableDETR)):
        return {"": "loss"}
    raise SpaceError(
        "aploss searches the losses of retinanet, fcos, atss, deformable_detr and faster_rcnn, got the detector "
        f"{recipe.detector.name}"
    )


def _known_curves(recipe: Recipe) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """For each slot what to see other curves beside: those published for its place, and a hand-made one."""
    from detsearch_cli.fragments import find_fragment
    from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

    two = len(places(recipe)) > 1
    name, fragment = "Faster R-CNN" if two else "RetinaNet", find_fragment(PUBLISHED[two])
    square = ParameterizedAP(curves="square").points()
    return {
        slot: {
            f"published for {name} on COCO": ParameterizedAP(curves=fragment[slot]["curves"]).points(),
            "square, made by hand": square,
        }
        for slot in places(recipe).values()
    }


def _losses(recipe: Recipe) -> dict[str, ParameterizedAP]:
    """Those of the recipe's losses that are this one and have curves, by slot."""
    from detsearch_cli.recipe import build_part
    from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

    found = {}
    for key, slot in (("loss", recipe.loss), ("region_loss", recipe.region_loss)):
        part = None if slot is None else build_part("slots.losses", slot, key)
        if isinstance(part, ParameterizedAP) and part.curves != "sigmoid":
            found[key] = part
    return found


def knots_table(loss: ParameterizedAP, slot: str) -> Table:
    """One row a knot, one column a function, in the order of Eq. 6."""
    from detsearch_cli.methods.aploss.figures import MEANINGS
    from detsearch_cli.methods.aploss.space import FUNCTIONS
    from detsearch_cli.report.page import Table

    points = loss.points()
    rows: list[list[str | int | float]] = [
        [str(number), *("" if point is None else f"{point[0]:.3f} {point[1]:.3f}" for point in knots)]
        for number, knots in enumerate(zip_longest(*points))
    ]
    caption = (
        f"Knots x y of the five functions of Eq. 6 ({'; '.join(MEANINGS)}). The gradient into the boxes is multiplied by "
        f"{loss.scale:.4g}; the localisation score is {loss.localisation}."
    )
    columns = ["knot", *FUNCTIONS]
    return Table(
        "Curves found" if slot == "loss" else "Curves found for regions", caption, columns, rows, heat=False
    )
