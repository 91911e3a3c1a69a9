"""How a candidate of the search becomes a fragment: a loss whose curves it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from detsearch_cli.errors import RecipeError, SpaceError
from detsearch_cli.methods.aploss.options import Options
from detsearch_cli.methods.base import Method, Shown

if TYPE_CHECKING:
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.page import Table
    from detsearch_cli.search.space import Candidate, Product
    from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

LOSS = "parameterized_ap"


class APLoss(Method):
    """The paper's search. The baseline, trial 0, is the recipe as given: the detector's own loss, mostly.

    For detectors of one stage with a feature pyramid. The paper searches both losses of a two-stage detector at once, and
    those of Deformable DETR; neither has a place for this loss here yet.
    """

    Options = Options
    sampler = "ppo2"
    search_help = "Find the curves of highest AP; trial 0 is the recipe as given."
    train_help = "Train with searched curves; with --baseline also the recipe as given, and compare."
    show_help = "The curves of the loss as a table and a picture."

    def space(self, recipe: Recipe) -> Product:
        """Two numbers for each inner knot, and a scale. Raises SpaceError for a detector or an option that does not fit."""
        from detsearch_cli.detectors._pyramid import PyramidDetector
        from detsearch_cli.methods.aploss.space import space
        from detsearch_cli.recipe import detector_class
        from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

        if not issubclass(detector_class(recipe.detector), PyramidDetector):
            raise SpaceError(
                f"aploss searches the one loss of retinanet, fcos or atss, got the detector {recipe.detector.name}"
            )
        kinds = get_args(ParameterizedAP.model_fields["localisation"].annotation)
        if self.options.localisation not in kinds:
            raise SpaceError(
                f"the localisation score is one of {', '.join(kinds)}, got {self.options.localisation!r}"
            )
        return space(self.options.segments, self.options.shared, not self.options.no_scale)

    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """The whole loss slot. Raises SpaceError outside the space."""
        from detsearch_cli.methods.aploss.space import SCALE, curves

        self.space(recipe).check(candidate)
        loss = {
            "name": LOSS,
            "curves": curves(candidate, self.options.segments),
            "scale": float(candidate.get(SCALE, 1.0)),
            "localisation": self.options.localisation,
            "over": "batch",
            "through_denominator": False,
        }
        return {"loss": loss}

    def tables(self, recipe: Recipe) -> Sequence[Table]:
        """The knots of each curve."""
        loss = _loss(recipe)
        return [knots_table(loss)] if loss is not None else ()

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
        loss = _loss(recipe)
        if loss is None:
            raise RecipeError(
                "aploss show needs curves: give --study, or --recipe with a fragment such as best.yaml (an empty one "
                "means that nothing better than the recipe as given was found)"
            )
        points = loss.points()
        content = {"curves": points, "scale": loss.scale, "localisation": loss.localisation}
        return Shown(content, [knots_table(loss)], (), {"curves": figures.curves(points)})


def _loss(recipe: Recipe) -> ParameterizedAP | None:
    """The recipe's loss, where it is this one and has curves."""
    from detsearch_cli.recipe import build_part
    from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP

    if recipe.loss is None:
        return None
    loss = build_part("slots.losses", recipe.loss, "loss")
    return loss if isinstance(loss, ParameterizedAP) and loss.curves != "sigmoid" else None


def knots_table(loss: ParameterizedAP) -> Table:
    """One row a function: its points, in the order of Eq. 6."""
    from detsearch_cli.methods.aploss.figures import NAMES
    from detsearch_cli.methods.aploss.space import FUNCTIONS
    from detsearch_cli.report.page import Table

    points = loss.points()
    widest = max(len(curve) for curve in points)
    rows: list[list[str | int | float]] = []
    for name, curve in zip(FUNCTIONS, points, strict=True):
        cells = [f"{x:.3f} {y:.3f}" for x, y in curve]
        rows.append([name, *cells, *[""] * (widest - len(cells))])
    caption = (
        f"Knots x y of the five functions of Eq. 6 ({'; '.join(NAMES)}). The gradient into the boxes is multiplied by "
        f"{loss.scale:.4g}; the localisation score is {loss.localisation}."
    )
    columns = ["function", *(f"knot {k}" for k in range(widest))]
    return Table("Curves found", caption, columns, rows, heat=False)
