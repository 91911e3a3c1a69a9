"""The options of `detsearch assign`: how ground truths are grouped, and how candidates are ranked."""

from __future__ import annotations

from dataclasses import dataclass

from detsearch_cli.option import MOST_BOXES, MOST_STEPS, option
from detsearch_cli.slots.assigners._dynamic_defaults import ALPHA, MIN_IOU


@dataclass(frozen=True)
class Options:
    """What is searched (HPS-Det, sections 3.1 and 4.2).

    min_iou: at the default of .1, ATSS's anchors of 8 strides offer no candidate to objects below 2.5
    strides, which a lower min_iou serves.
    """

    bins: str | None = option(
        None,
        "Aspect bins of each pyramid level, as 3,3,3,3,3 (default: 3 each) or 1,1,1,1,1; "
        "or one number for all levels: 5, 3 or 1.",
    )
    edges: str | None = option(
        None, "Aspect-ratio (height / width) bin edges; default: the paper's, as 1/2,2."
    )
    max_count: int | None = option(
        None, "Largest count; default: 80 for RetinaNet, 25 for FCOS, 32 for ATSS.", min=1, max=MOST_BOXES
    )
    alpha: float = option(ALPHA, "Weight of the IoU loss when ranking candidates.", min=0, max=1e6)
    min_iou: float = option(MIN_IOU, "IoU above which an anchor is a candidate.", min=0, max=0.99)


@dataclass(frozen=True)
class ShowOptions:
    """What `assign show` looks at."""

    images: int = option(100, "Images that are counted.", min=1, max=MOST_STEPS)
    samples: int = option(4, "Images drawn with their positives.", min=0, max=20)
