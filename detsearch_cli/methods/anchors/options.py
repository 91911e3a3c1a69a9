"""The options of `detsearch anchors`: where shapes start, and how they are fitted without training."""

from __future__ import annotations

from dataclasses import dataclass

from detsearch_cli.option import MOST_SHAPES, option


@dataclass(frozen=True)
class Options:
    """Where shapes start (Zhong et al. 2020, section 4.2.1)."""

    init: str | None = option(
        None,
        "Where shapes start: uniform, identical, kmeans, yolov2-voc, yolov2-coco, or a YAML file of fit; "
        "default: the detector's own.",
        metavar="START",
    )
    anchors: int | None = option(
        None, "Shapes of a cell; default: the detector's number.", min=1, max=MOST_SHAPES
    )


@dataclass(frozen=True)
class FitOptions(Options):
    """How shapes are fitted to boxes. init is for online clustering: k-means chooses its own seeds."""

    min_strides: float = option(0.0, "No side below this many strides of its level.", min=0, max=100)
    restarts: int = option(10, "k-means from so many seeds; the best counts.", min=1, max=10_000)
    online: bool = option(False, "Online clustering from --init instead of k-means.")
