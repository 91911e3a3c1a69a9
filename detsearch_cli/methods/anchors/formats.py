"""Fitted or learned shapes as YAML for this program and for other frameworks, each with how it is used there.

All take pixels of the training image, as we do. shapes (L, K, 2): w, h in px, finest level first; strides in px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml

from detsearch_cli.errors import RecipeError
from detsearch_cli.files import signed_yaml
from detsearch_cli.slots.priors.shapes import Shapes

DIGITS = 2
"""Decimals of a pixel."""
Strides = Sequence[int]


def check_format(format: str) -> None:
    """Raises RecipeError for a format that there is not."""
    if format not in FORMATS:
        raise RecipeError(f"--format is one of {', '.join(FORMATS)}, got {format!r}")


def to_yaml(shapes: np.ndarray, strides: Strides, format: str, about: str) -> str:
    """The file's text, `about` in its first line. Raises RecipeError for a format that there is not."""
    check_format(format)
    usage, content = FORMATS[format](np.asarray(shapes, dtype=np.float64).round(DIGITS), strides)
    lines = "".join(f"# {line}\n" for line in usage.splitlines())
    body = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    return signed_yaml(f"anchors fit: {about}", lines + body)


def fragment(shapes: np.ndarray, strides: Strides) -> tuple[str, dict[str, Any]]:
    """Fixed priors of a recipe."""
    return (
        "detsearch train --recipe THIS_FILE; to let them learn: detsearch anchors train --init THIS_FILE",
        Shapes.model_validate({"shapes": shapes.tolist()}).fragment(),
    )


def torchvision(shapes: np.ndarray, strides: Strides) -> tuple[str, dict[str, Any]]:
    """Its AnchorGenerator multiplies sizes by ratios, which no free list is; its cell_anchors take any list.

    sizes and aspect_ratios are written along because it counts the anchors of a cell by them.
    """
    half = shapes / 2
    sizes = np.sqrt(shapes.prod(-1)).round(DIGITS)
    usage = (
        "generator = torchvision.models.detection.anchor_utils.AnchorGenerator(sizes, aspect_ratios)\n"
        "generator.cell_anchors = [torch.tensor(level) for level in cell_anchors]"
    )
    return usage, {
        "sizes": sizes.tolist(),
        "aspect_ratios": [[1.0]] * len(sizes),
        "cell_anchors": np.concatenate((-half, half), -1).round(DIGITS + 1).tolist(),
    }


def ultralytics(shapes: np.ndarray, strides: Strides) -> tuple[str, dict[str, Any]]:
    """One row of w, h, w, h, ... a level, finest level first, as in YOLOv5's model files."""
    levels = ", ".join(f"P{int(stride).bit_length() - 1}/{stride}" for stride in strides)
    return (
        f"in a YOLOv3 or YOLOv5 model file, in place of its anchors; the rows are for {levels}",
        {"anchors": shapes.reshape(len(shapes), -1).tolist()},
    )


def mmdetection(shapes: np.ndarray, strides: Strides) -> tuple[str, dict[str, Any]]:
    """Its YOLOAnchorGenerator, the one that takes free lists, in the order of the heads: coarsest level first."""
    return (
        "the anchor_generator of a YOLO head; another head keeps the order of its feature maps: turn both lists",
        {
            "anchor_generator": {
                "type": "YOLOAnchorGenerator",
                "base_sizes": shapes[::-1].tolist(),
                "strides": [int(stride) for stride in reversed(strides)],
            }
        },
    )


FORMATS: dict[str, Callable[[np.ndarray, Strides], tuple[str, dict[str, Any]]]] = {
    "fragment": fragment,
    "torchvision": torchvision,
    "ultralytics": ultralytics,
    "mmdetection": mmdetection,
}
