"""COCO's twelve numbers: faster-coco-eval against pycocotools, and our VOC evaluation beside them.

    python benchmarks/evaluate.py

Processor time of everything `evaluate` does between a table of detections and the numbers, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _scored_data import detections, ground_truth

from detsearch_cli.engine import coco, voc


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """What `call` gives, and its processor time."""
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


def main() -> None:
    columns = (
        "images",
        "classes",
        "detections",
        "pycocotools s",
        "faster s",
        "ratio",
        "largest gap",
        "VOC s",
    )
    print("  ".join(f"{c:>13}" for c in columns))
    for images, classes, an_image in ((200, 3, 80), (500, 20, 80), (2000, 20, 40)):
        split = ground_truth(images, classes, 7)
        table = detections(split, an_image, 0.15, 1)
        faster, quick = seconds(lambda s=split, t=table: coco.accumulate(s, t, "faster"))
        reference, slow = seconds(lambda s=split, t=table: coco.accumulate(s, t, "pycocotools"))
        _, voc_seconds = seconds(lambda s=split, t=table: voc.average_precisions(s, t))
        gap = np.nanmax(np.abs(faster.precision - reference.precision))
        row = (
            images,
            classes,
            len(table),
            f"{slow:.2f}",
            f"{quick:.2f}",
            f"{slow / quick:.1f}x",
            f"{gap:.1e}",
        )
        print("  ".join(f"{v:>13}" for v in (*row, f"{voc_seconds:.3f}")))


if __name__ == "__main__":
    main()
