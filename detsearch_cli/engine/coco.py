"""COCO's evaluators behind one silent function: faster-coco-eval, and pycocotools as its reference.

Objects marked `difficult` (VOC) are ignored, as VOC does: neither found nor missed. pycocotools knows only
`iscrowd` as a reason to ignore, and that also changes the overlap from IoU to intersection over detection.
So a difficult object keeps iscrowd = 0 and gets the area -1, which lies outside of every area range; both
evaluators ignore objects outside of the range, and match them by ordinary IoU, one detection each.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.truth import boxes_as_written
from detsearch_cli.errors import EvaluationError

EVALUATORS = ("faster", "pycocotools")
OUTSIDE_EVERY_RANGE = -1.0


@dataclass(frozen=True)
class Accumulated:
    """COCO's tables. T = 10 IoU thresholds .5:.95, R = 101 recalls, C classes in label order,
    A = 4 areas (all, small, medium, large), M = 3 detections an image (1, 10, 100); NaN where undefined.

    precision (T, R, C, A, M), recall (T, C, A, M).
    """

    precision: np.ndarray
    recall: np.ndarray


def accumulate(split: Split, table: DetectionTable, evaluator: str = "faster") -> Accumulated:
    """COCO's precision and recall tables. Raises EvaluationError for an unknown evaluator."""
    if evaluator not in EVALUATORS:
        raise EvaluationError(f"evaluator must be one of {', '.join(EVALUATORS)}, got {evaluator!r}")
    truth, found = datasets(split, table)
    if evaluator == "faster":
        from faster_coco_eval import COCO, COCOeval_faster

        run = COCOeval_faster(COCO(truth), COCO(found), "bbox")
        run.evaluate()
        run.accumulate()
    else:
        run = reference(truth, found)
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
    precision, recall = (np.array(run.eval[k], np.float64, order="C") for k in ("precision", "recall"))
    # both write -1 where nothing is defined; in a mean it would count as a score
    return Accumulated(np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall))


def reference(truth: dict[str, Any], found: dict[str, Any]) -> Any:
    """pycocotools' COCOeval of two data sets from `datasets`, not yet run; nothing is printed."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    both = []
    # it prints how long it took, and stdout is the one JSON document of `--json`
    with contextlib.redirect_stdout(io.StringIO()):
        for content in (truth, found):
            coco = COCO()
            coco.dataset = content
            coco.createIndex()
            both.append(coco)
        return COCOeval(both[0], both[1], "bbox")


def datasets(split: Split, table: DetectionTable) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and detections as COCO data sets; category id = label + 1, image id = its rank + 1.

    The ranks keep COCO's order of equal scores (ascending image id) while images may appear twice.
    """
    order = np.argsort([r.image_id for r in split.records], kind="stable")
    ids = np.empty(len(order), np.int64)
    ids[order] = np.arange(1, len(order) + 1)
    about = {
        "images": [
            {"id": i, "height": r.height, "width": r.width}
            for i, r in zip(ids.tolist(), split.records, strict=True)
        ],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(split.classes)],
    }
    return {**about, "annotations": _truth(split, ids)}, {**about, "annotations": _found(table, ids)}


def _truth(split: Split, ids: np.ndarray) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image_id, record in zip(ids.tolist(), split.records, strict=True):
        boxes = boxes_as_written(record)
        xywh = np.concatenate([boxes[:, :2], _sides(boxes)], axis=1).tolist()
        # `iscrowd` already makes a crowd region ignored, so it keeps the area that COCO gave it
        area = np.where(record.counted | record.crowd, record.area, OUTSIDE_EVERY_RANGE).tolist()
        for row, (box, label, crowd) in enumerate(
            zip(xywh, record.labels.tolist(), record.crowd.tolist(), strict=True)
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads a match with id 0 as no match
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": area[row],
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _found(table: DetectionTable, ids: np.ndarray) -> list[dict[str, Any]]:
    wh = _sides(table.boxes)
    columns = zip(
        ids[table.image].tolist(),
        (table.labels + 1).tolist(),
        np.concatenate([table.boxes[:, :2], wh], axis=1).tolist(),
        (wh[:, 0] * wh[:, 1]).tolist(),
        table.scores.tolist(),
        strict=True,
    )
    return [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": a, "score": s, "iscrowd": 0}
        for n, (i, c, b, a, s) in enumerate(columns, 1)
    ]


def _sides(boxes: np.ndarray) -> np.ndarray:
    """Widths and heights (N, 2) of xyxy boxes; rounded, because (x + w) - x is not w in the last bit.

    Real data has IoUs of exactly .6 and .8, where that bit decides about a match.
    """
    return np.round(boxes[:, 2:] - boxes[:, :2], 9)
