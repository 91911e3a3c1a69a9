"""Paired bootstrap of an AP difference: matches counted once against pycocotools run again for every draw.

    python benchmarks/compare.py

500 images, 80 detections an image, both detectors, 1000 resamples, processor time. The alternative is timed
on a few draws (duplicated images given to pycocotools) and multiplied; the AP of those draws is compared.
"""

from __future__ import annotations

import contextlib
import io
import time

import numpy as np
from _scored_data import detections, ground_truth

from detsearch_cli.data.types import Split
from detsearch_cli.engine import coco
from detsearch_cli.engine.compare import paired_bootstrap, resampled
from detsearch_cli.engine.detections import DetectionTable

RESAMPLES, DRAWS_TIMED = 1000, 2


def drawn(split: Split, table: DetectionTable, counts: np.ndarray) -> tuple[Split, DetectionTable]:
    """The data set in which image i is there counts[i] times, with its detections."""
    rows = np.repeat(np.arange(len(split)), counts)
    parts = []
    for copy, row in enumerate(rows):
        mine = table.select(table.image == row)
        parts.append(DetectionTable(np.full(len(mine), copy), mine.boxes, mine.scores, mine.labels))
    return split.take(rows.tolist()), DetectionTable.concatenate(parts)


def pycocotools_ap(split: Split, table: DetectionTable) -> tuple[float, float]:
    """AP, and the seconds it took for all areas and 100 detections only, as in the bootstrap."""
    run = coco.reference(*coco.datasets(split, table))
    run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [100]
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"]
    return float(precision[precision > -1].mean()), time.process_time() - started


def main() -> None:
    columns = ("classes", "detections", "detsearch s", "rerunning s", "ratio", "largest gap")
    print("  ".join(f"{c:>12}" for c in columns))
    for classes, objects in ((3, 13), (20, 7), (80, 7)):
        split = ground_truth(500, classes, objects)
        a, b = (detections(split, 80, noise, seed) for noise, seed in ((0.16, 1), (0.15, 2)))
        started = time.process_time()
        paired_bootstrap(split, a, b, resamples=RESAMPLES)
        ours = time.process_time() - started
        weights = np.random.default_rng(0).multinomial(500, np.full(500, 1 / 500), size=DRAWS_TIMED)
        timed = [pycocotools_ap(*drawn(split, a, w)) for w in weights]
        gap = np.abs(resampled(split, a, weights) - [ap for ap, _ in timed]).max()
        theirs = 2 * RESAMPLES * float(np.mean([seconds for _, seconds in timed]))
        row = (classes, len(a), f"{ours:.2f}", f"{theirs:.0f}", f"{theirs / ours:.0f}x", f"{gap:.1e}")
        print("  ".join(f"{v:>12}" for v in row))


if __name__ == "__main__":
    main()
