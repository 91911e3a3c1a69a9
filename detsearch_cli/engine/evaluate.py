"""Scores detections: COCO's twelve numbers, VOC's two mean average precisions, and a row for every class.

All numbers are fractions; one that is undefined (no object of that size or class) is NaN, `null` in JSON.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detsearch_cli.data.types import Split
from detsearch_cli.engine import coco, voc
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.voc import OperatingPoint
from detsearch_cli.errors import EvaluationError
from detsearch_cli.files import finite

ALL, SMALL, MEDIUM, LARGE = range(4)
AP50_AT, AP75_AT = 0, 5
COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassRow:
    """One class: its objects that count (neither crowd nor difficult), the images they are in, its scores.

    F1: the highest, by VOC's rules at IoU .5, of the detections from the score F1_score on.
    """

    name: str
    images: int
    boxes: int
    AP: float
    AP50: float
    voc07_AP50: float
    voc_AP50: float
    F1: float
    F1_score: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    coco: the twelve numbers under COCO_KEYS. voc: voc07_mAP50 (11 points), voc_mAP50 (area).
    operating_point: the highest F1 over all classes, and the score from which on detections have it. per_class: one row a
    class. precision (10, 101, C), for the curves: interpolated precision at
    IoU .5:.05:.95, recall 0:.01:1, all areas, 100 detections an image; NaN for classes without objects.
    proposals: recall of a first stage (see ProposalRecall.to_json), None without one.
    """

    coco: dict[str, float]
    voc: dict[str, float]
    operating_point: OperatingPoint
    per_class: list[ClassRow]
    precision: np.ndarray
    proposals: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The numbers without the curves, NaN as None."""
        return {
            "coco": finite(self.coco),
            "voc": finite(self.voc),
            "operating_point": finite(asdict(self.operating_point)),
            "per_class": [finite(asdict(row)) for row in self.per_class],
            **({} if self.proposals is None else {"proposals": finite(self.proposals)}),
        }


def evaluate(split: Split, table: DetectionTable, evaluator: str = "faster") -> Evaluation:
    """Score `table` on `split` by "faster" (faster-coco-eval) or "pycocotools"; both give the same numbers.

    Crowd regions are COCO's (`iscrowd`); difficult objects are ignored in both metrics (see engine.coco).
    Raises EvaluationError for an empty split, for detections of unknown images or classes and for NaN.
    """
    if len(split) == 0:
        raise EvaluationError(f"split {split.name!r} has no images to score on; choose another split")
    table.check(split)  # what fits by chance would be scored without a word
    tables = coco.accumulate(split, table, evaluator)
    claims = voc.Claims.of(split, table)
    eleven, area = claims.average_precisions()
    return Evaluation(
        coco=_twelve(tables),
        voc={"voc07_mAP50": _mean(eleven), "voc_mAP50": _mean(area)},
        operating_point=claims.operating_point(),
        per_class=_rows(split, tables, claims),
        precision=tables.precision[:, :, :, ALL, -1],
        proposals=None if table.proposals is None else table.proposals.to_json(),
    )


def _twelve(tables: coco.Accumulated) -> dict[str, float]:
    """COCO's summary: means over everything that is defined."""
    p, r = tables.precision, tables.recall
    values = [
        p[..., ALL, -1],
        p[AP50_AT, ..., ALL, -1],
        p[AP75_AT, ..., ALL, -1],
        *(p[..., size, -1] for size in (SMALL, MEDIUM, LARGE)),
        *(r[..., ALL, detections] for detections in range(3)),
        *(r[..., size, -1] for size in (SMALL, MEDIUM, LARGE)),
    ]
    return {key: _mean(value) for key, value in zip(COCO_KEYS, values, strict=True)}


def _rows(split: Split, tables: coco.Accumulated, claims: voc.Claims) -> list[ClassRow]:
    objects = voc.Objects.of(split)
    eleven, area = claims.average_precisions()
    rows = []
    for label, name in enumerate(split.classes):
        mine = (objects.labels == label) & ~objects.ignored
        precision, point = tables.precision[:, :, label, ALL, -1], claims.operating_point(label)
        rows.append(
            ClassRow(
                name,
                images=len(np.unique(objects.image[mine])),
                boxes=int(mine.sum()),
                AP=_mean(precision),
                AP50=_mean(precision[AP50_AT]),
                voc07_AP50=float(eleven[label]),
                voc_AP50=float(area[label]),
                F1=point.F1,
                F1_score=point.score,
            )
        )
    return rows


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN if nothing is."""
    # not np.nanmean, which warns where nothing is defined
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
