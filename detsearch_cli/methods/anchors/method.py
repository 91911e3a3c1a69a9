"""Shapes that learn, beside the same shapes fixed: both as recipes, and what came of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import DataError, RecipeError
from detsearch_cli.methods.anchors.options import FitOptions, Options
from detsearch_cli.methods.base import Method, Shown

if TYPE_CHECKING:
    import numpy as np

    from detsearch_cli.data.splits import Resolved
    from detsearch_cli.data.types import Split
    from detsearch_cli.detectors.base import Detector
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.methods.anchors.inspect import ShapeFit, ShapeHistory
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.report.figures import Figure
    from detsearch_cli.search.space import Candidate

MOVED = 0.01
"""Part by which an initial side must move to be told of."""


class Anchors(Method):
    """Anchor box optimization. Gradient descent finds the shapes within the training, so there is no search.

    The baseline has the same initial shapes, fixed. The default detector is the paper's test-bed.
    """

    Options = Options
    side = "learned"
    defaults = {"detector": "yolov2"}  # noqa: RUF012
    train_help = (
        "Train with anchor shapes that learn; with --baseline also with the initial ones fixed, and compare."
    )
    show_help = (
        "Draw shapes over the ground truths in the plane of log width and height, and what each shape serves."
    )

    def start(self, recipe: Recipe) -> np.ndarray:
        """Initial shapes (L, K, 2) px. Raises RecipeError and DataError where there can be none."""
        from detsearch_cli.methods.anchors.starts import starting_shapes

        data, detector = opened(recipe)
        own, count = self.options.init, self.options.anchors
        return starting_shapes(own, detector, count, lambda: training_boxes(recipe, data), recipe.seed)

    def fragment(self, recipe: Recipe, candidate: Candidate) -> Fragment:
        """Priors that learn from the initial shapes. There is but one candidate, which says nothing."""
        # where in their cells the recipe's own priors lie, as the weights that it starts from want it
        own = recipe.priors.options if recipe.priors else {}
        placed = {key: own[key] for key in ("offset", "spread") if key in own}
        return {"priors": {"name": "learned", "init": self.start(recipe).tolist(), **placed}}

    def baseline(self, recipe: Recipe) -> Recipe:
        """The initial shapes fixed, within the bounds of learning, so that both sides begin alike."""
        from detsearch_cli.detectors import build
        from detsearch_cli.recipe import with_fragment

        data, _ = opened(recipe)
        learning = with_fragment(recipe, self.fragment(recipe, {}))
        return build(learning, len(data.train.classes)).deployed_recipe(learning)

    def notes(self, recipe: Recipe) -> Sequence[str]:
        """That initial shapes beyond the bounds of learning were brought within them, where they were."""
        import numpy as np

        from detsearch_cli.methods.anchors.tables import listed

        start, fixed = self.start(recipe), self.baseline(recipe)
        assert fixed.priors is not None
        begun = np.array(fixed.priors.options["shapes"]).reshape(start.shape)
        moved = int((np.abs(begun / start - 1) > MOVED).any(-1).sum())
        if not moved:
            return ()
        return [
            f"{moved} of {start.shape[0] * start.shape[1]} initial shapes leave the bounds of learning (a quarter of "
            f"the stride, the image's side) and begin on them: {listed(begun.reshape(-1, 2))}; so do the fixed ones"
        ]

    def trained(self, recipe: Recipe, runs: Sequence[Path]) -> Shown:
        """Initial and learned shapes, and how far apart the trainings ended."""
        from detsearch_cli.methods.anchors import tables
        from detsearch_cli.methods.anchors.inspect import read_history
        from detsearch_cli.recipe import detector_class

        histories = [read_history(run) for run in runs]
        first, _ = detector_class(recipe.detector).pyramid_levels(recipe)
        content = {"initial": self.start(recipe).tolist(), **tables.learned_content(histories)}
        notes = [f"next: detsearch anchors show --run {runs[0]}"]
        if len(histories) > 1:
            apart = 100 * content["spread"]
            notes.insert(
                0, f"the {len(histories)} trainings ended within {apart:.1f}% of each other in every side"
            )
        return Shown(content, [tables.learned(histories, first)], notes)

    def show(self, recipe: Recipe, runs: Sequence[Path], options: Any) -> Shown:
        """Shapes of the runs, or the recipe's alone. Raises RecipeError for runs of different counts."""
        from detsearch_cli.methods.anchors import tables
        from detsearch_cli.methods.anchors.inspect import check_counts, read_histories
        from detsearch_cli.methods.anchors.starts import own_shapes

        histories = read_histories(runs)
        data, detector = opened(recipe)
        sizes, own = training_boxes(recipe, data), own_shapes(detector)
        check_counts(histories, own)
        fits, drawn = pictures(sizes, histories, own, detector.levels, recipe.seed)
        table = tables.fits(fits, len(sizes), data.train.name)
        return Shown(tables.fits_content(fits), [table], (), drawn)

    def run_figures(self, run: Path, recipe: Recipe, train: Split) -> Sequence[Figure]:
        """The shapes' way and what each serves, for a run whose shapes learned."""
        from detsearch_cli.methods.anchors.fit import training_sizes
        from detsearch_cli.methods.anchors.inspect import has_history, read_history
        from detsearch_cli.recipe import detector_class

        if not has_history(run):
            return ()
        history, levels = read_history(run), detector_class(recipe.detector).pyramid_levels(recipe)
        sizes = training_sizes(train, recipe.augment)
        _, drawn = pictures(sizes, [history], history.initial, levels, recipe.seed)
        return list(drawn.values())


def opened(recipe: Recipe) -> tuple[Resolved, Detector]:
    """The recipe's data and its untrained detector."""
    from detsearch_cli.detectors import build
    from detsearch_cli.engine.trial import load_data

    data = load_data(recipe.data)
    return data, build(recipe, len(data.train.classes))


def training_boxes(recipe: Recipe, data: Resolved) -> np.ndarray:
    """Sizes (N, 2) px of the training boxes, as the network sees them. Raises DataError where there are none."""
    from detsearch_cli.methods.anchors.fit import training_sizes

    sizes = training_sizes(data.train, recipe.augment)
    if not len(sizes):
        raise DataError(
            f"anchor shapes need boxes, none of the {len(data.train)} images of {data.train.name!r} has one that "
            f"is neither crowd nor difficult; check the annotations with `detsearch data inspect`"
        )
    return sizes


def pictures(
    sizes: np.ndarray,
    histories: Sequence[ShapeHistory],
    own: np.ndarray,
    levels: tuple[int, int],
    seed: int,
) -> tuple[list[ShapeFit], dict[str, Figure]]:
    """Every set of shapes against the boxes, and the pictures by the names of their files.

    sizes (N, 2), own (L, K, 2): the detector's anchors, drawn where no shapes learned; px.
    """
    from detsearch_cli.methods.anchors import figures
    from detsearch_cli.methods.anchors.fit import fit_levels
    from detsearch_cli.methods.anchors.inspect import inspect

    fixed = {} if histories else {"detector's own": own}
    strides = [2**level for level in range(levels[0], levels[1] + 1)]
    with contextlib.suppress(DataError):  # k-means is left out where there are too few boxes for it
        fixed["k-means"], _ = fit_levels(sizes, strides, own.shape[1], seed=seed)
    initial = [(f"{history.name}, initial", history.initial) for history in histories]
    fits = inspect(sizes, [*initial, *fixed.items(), *((h.name, h.learned) for h in histories)])
    plane = figures.plane(sizes, fixed, histories, levels[0])
    return fits, {"plane": plane, "shares": figures.shares(fits, levels[0])}


def fit(recipe: Recipe, options: FitOptions) -> tuple[Shown, np.ndarray, tuple[int, ...], str]:
    """Shapes fitted to the training boxes: (what is to see, shapes (L, K, 2) px, strides, how in words).

    Raises RecipeError for options that contradict each other, DataError for boxes that do not suffice.
    """
    from detsearch_cli.methods.anchors import tables
    from detsearch_cli.methods.anchors.fit import fit_levels, quality
    from detsearch_cli.methods.anchors.starts import own_shapes

    if options.init is not None and not options.online:
        raise RecipeError(
            f"--init {options.init} is for --online: k-means chooses its own seeds; leave --init away"
        )
    data, detector = opened(recipe)
    before, sizes, runs = own_shapes(detector), training_boxes(recipe, data), None
    if options.online:
        shapes, how = _online(recipe, detector, sizes, options), "online clustering"
    else:
        shapes, result = fit_levels(
            sizes,
            detector.strides,
            options.anchors or before.shape[1],
            seed=recipe.seed,
            restarts=options.restarts,
            min_strides=options.min_strides,
        )
        runs, how = result.runs, f"k-means, best of {options.restarts}"
    rows = quality(sizes, before.reshape(-1, 2)), quality(sizes, shapes.reshape(-1, 2))
    strides = detector.strides
    shown = Shown(
        tables.fit_content(shapes, strides, rows, runs),
        [tables.fitted(recipe, shapes, strides, sizes), tables.by_size(rows)],
        tables.below_a_stride(shapes, strides),
    )
    about = f"{how}, {len(sizes)} boxes of {data.train.name}, image size {tables.sides(recipe)}"
    return shown, shapes, strides, about


def _online(recipe: Recipe, detector: Detector, sizes: np.ndarray, options: FitOptions) -> np.ndarray:
    """Shapes (L, K, 2) px that online clustering leads to."""
    import numpy as np

    from detsearch_cli.methods.anchors.online import cluster_online
    from detsearch_cli.methods.anchors.starts import starting_shapes
    from detsearch_cli.slots.priors.learned import Learned

    start = starting_shapes(options.init, detector, options.anchors, lambda: sizes, recipe.seed)
    grid = detector.prior_grid
    learning = grid if isinstance(grid, Learned) else Learned()
    least = (np.array(detector.strides) * options.min_strides).repeat(start.shape[1])
    result = cluster_online(sizes, start.reshape(-1, 2), learning, seed=recipe.seed, least=least)
    return result.shapes.reshape(start.shape)
