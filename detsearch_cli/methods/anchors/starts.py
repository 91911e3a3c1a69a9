"""Where shapes start: the paper's initialisations, k-means, or a list from a file.

Source: Zhong et al. 2020 (anchor box optimization), section 4.2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np

from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.methods.anchors.fit import fit_levels
from detsearch_cli.recipe import Slot, build_part, read_fragment
from detsearch_cli.slots.priors import _lists
from detsearch_cli.slots.priors.shapes import Shapes

LISTS: tuple[str, ...] = get_args(_lists.Name)
KMEANS = "kmeans"


def own_shapes(detector: Detector) -> np.ndarray:
    """The detector's anchors, (L, K, 2) w, h in px, initial ones where they learn. Raises RecipeError for points."""
    if detector.prior_grid.ranges(detector.levels) is not None:
        raise RecipeError(
            "anchor shapes need a detector that predicts boxes from anchors, this one predicts distances from "
            "points; use --detector yolov2, retinanet or another with anchors"
        )
    return np.array(detector.prior_grid.level_boxes(detector.levels), dtype=np.float64)


def starting_shapes(
    wanted: str | None, detector: Detector, count: int | None, boxes: Callable[[], np.ndarray], seed: int
) -> np.ndarray:
    """(L, K, 2) px: `wanted` is a name of LISTS, `kmeans`, a YAML file, or None for the detector's own.

    count: shapes of a cell, None for as many as the detector has. boxes: gives the sizes (N, 2) px that k-means
    fits. Raises RecipeError for a list of another length, a name or a file that there is not.
    """
    own = own_shapes(detector)
    each = count or own.shape[1]
    if wanted is None:
        found = own
    elif wanted == KMEANS:
        found, _ = fit_levels(boxes(), detector.strides, each, seed=seed)
    elif wanted in LISTS:
        found = _levels(Shapes.model_validate({"shapes": wanted, "count": each}), detector)
    else:
        found = _levels(_from_file(Path(wanted), each), detector)
    if count is not None and found.shape[1] != count:
        raise RecipeError(
            f"--anchors {count} needs as many initial shapes, {wanted or 'the detector'} has {found.shape[1]}; "
            f"leave --anchors away, or take --init identical or kmeans"
        )
    return found


def _levels(grid: Shapes, detector: Detector) -> np.ndarray:
    return np.array(grid.level_boxes(detector.levels), dtype=np.float64)


def _from_file(path: Path, count: int) -> Shapes:
    """The shapes of a fragment as `anchors fit` and a training write it."""
    if not path.is_file():
        raise RecipeError(
            f"--init is one of {', '.join(LISTS)}, {KMEANS} or a YAML file of `detsearch anchors fit`, "
            f"got {str(path)!r}"
        )
    priors: Any = read_fragment(path).get("priors")
    named = priors if isinstance(priors, dict) else {}
    shapes = named.get("shapes", named.get("init"))
    if named.get("name") not in ("shapes", "learned") or shapes is None:
        raise RecipeError(f"{path} holds no priors with shapes; `detsearch anchors fit` writes such a file")
    try:
        slot = {"name": "shapes", "shapes": shapes, "count": named.get("count", count)}
        made = build_part("slots.priors", Slot.model_validate(slot), "priors")
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    assert isinstance(made, Shapes)
    return made
