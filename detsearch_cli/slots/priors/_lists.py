"""Lists of anchor shapes: written out, or by the names the paper gives its initialisations.

Source: Zhong et al. 2020 (anchor box optimization), section 4.2.1, for `uniform` and `identical`; the
configuration files of darknet for YOLOv2's k-means centres, in cells of 32 px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from detsearch_cli.errors import RecipeError
from detsearch_cli.option import MOST_SHAPES

Shape = tuple[float, float]
Name = Literal["uniform", "identical", "yolov2-voc", "yolov2-coco"]

UNIFORM: tuple[Shape, ...] = ((3, 3), (3, 9), (9, 9), (9, 3), (6, 6))
"""Width and height in strides."""
IDENTICAL: Shape = (5, 5)
DARKNET_STRIDE = 32
DARKNET: dict[str, tuple[Shape, ...]] = {
    "yolov2-voc": ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071)),
    "yolov2-coco": (
        (0.57273, 0.677385),
        (1.87446, 2.06253),
        (3.33843, 5.47434),
        (7.88282, 3.52778),
        (9.77052, 9.16828),
    ),
}  # fmt: skip


def _read(value: Any) -> Any:
    """One list for all levels becomes the first of a list of lists. Raises ValueError saying what it takes."""
    if value is None or (isinstance(value, str) and value in get_args(Name)):
        return value
    lists = value
    # [[w, h], ...] or [[[w, h], ...], ...]: the depth tells which
    if _is_list(value) and value and all(_is_list(v) and v and not _is_list(v[0]) for v in value):
        lists = (value,)
    if not (_is_list(lists) and all(_is_list(level) and all(map(_is_shape, level)) for level in lists)):
        raise ValueError(
            f"it takes a list of [width, height] in px, one such list a level, or one of {', '.join(get_args(Name))}"
        )
    _check(lists)
    return tuple(tuple((float(w), float(h)) for w, h in level) for level in lists)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return (
        _is_list(value)
        and len(value) == 2
        and all(isinstance(side, int | float) and not isinstance(side, bool) for side in value)
    )


def _check(lists: Sequence[Sequence[Shape]]) -> None:
    """Raises ValueError unless every level has as many shapes, and every side is a positive number."""
    counts = [len(shapes) for shapes in lists]
    if not counts or min(counts) == 0 or len(set(counts)) > 1:
        raise ValueError(
            f"every level needs as many shapes, and at least one, because all levels share one head; "
            f"the lists have {', '.join(map(str, counts)) or 'no'} shapes"
        )
    if counts[0] > MOST_SHAPES:
        raise ValueError(f"a cell has at most {MOST_SHAPES} shapes, the list has {counts[0]}")
    for side in (side for shapes in lists for shape in shapes for side in shape):
        if not (math.isfinite(side) and side > 0):
            raise ValueError(f"a width or height must be a positive number of pixels, found {side:g}")


Lists = tuple[tuple[Shape, ...], ...]
"""Width and height in px: one list for all levels, or one a level."""
Choice = Annotated[Name | Lists, BeforeValidator(_read)]
OptionalChoice = Annotated[Name | Lists | None, BeforeValidator(_read)]


def check_levels(key: str, lists: Lists, levels: tuple[int, int]) -> None:
    """Raises RecipeError unless there is one list, or one for each of the detector's levels."""
    wanted = levels[1] - levels[0] + 1
    if len(lists) not in (1, wanted):
        raise RecipeError(
            f"{key} must be one list of shapes for all levels or one for each of the detector's {wanted} "
            f"levels, got {len(lists)} lists; fit them again with the detector's neck.levels"
        )


def named(name: Name, stride: int, count: int) -> list[Shape]:
    """Shapes in px of a named list at a level of this stride; `identical` has `count` of them."""
    if name == "identical":
        return [(IDENTICAL[0] * stride, IDENTICAL[1] * stride)] * count
    if name == "uniform":
        return [(width * stride, height * stride) for width, height in UNIFORM]
    return [(width * DARKNET_STRIDE, height * DARKNET_STRIDE) for width, height in DARKNET[name]]


def count_of(value: Name | Lists, count: int) -> int:
    """Shapes of a cell."""
    if not isinstance(value, str):
        return len(value[0])
    return count if value == "identical" else len(named(value, 1, count))
