"""Splits and detections for the scoring tests: the public fixtures, and random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from detsearch_cli.data.types import Record, Split
from detsearch_cli.engine.detections import DetectionTable


def record(
    image_id: int, boxes: Any, labels: Any, *, crowd: Any = None, difficult: Any = None, area: Any = None
) -> Record:
    """One 640 x 480 image with xyxy boxes; area is width x height unless given."""
    box = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(box)
    sides = box[:, 2:] - box[:, :2]
    flags = [np.zeros(count, bool) if f is None else np.array(f, bool) for f in (crowd, difficult)]
    areas = sides.prod(axis=1) if area is None else np.array(area, np.float64)
    return Record(
        image_id, Path(f"{image_id:06d}.jpg"), 480, 640, box, np.array(labels, np.int64), *flags, areas
    )


def split_of(*records: Record, classes: int = 2, category_ids: tuple[int, ...] | None = None) -> Split:
    names = tuple(f"class{i}" for i in range(classes))
    ids = category_ids or tuple(range(1, classes + 1))
    return Split("val", names, ids, records, (), lambda i: np.zeros((480, 640, 3), np.uint8))


def table_of(*rows: tuple[int, list[float], float, int]) -> DetectionTable:
    """Detections as (image row, xyxy, score, label)."""
    image, boxes, scores, labels = zip(*rows, strict=True)
    return DetectionTable(
        np.array(image), np.array(boxes, np.float64), np.array(scores, np.float64), np.array(labels)
    )


def random_case(
    seed: int, num_images: int = 30, classes: int = 4, ties: bool = False
) -> tuple[Split, DetectionTable]:
    """Crowds, difficult objects, images without objects or detections, a class without objects."""
    generator = np.random.default_rng(seed)
    records, parts = [], []
    for row in range(num_images):
        count = 0 if row % 7 == 3 else int(generator.integers(1, 9))
        sides = np.exp(generator.uniform(np.log(8), np.log(220), (count, 2)))
        corners = generator.uniform(0, 1, (count, 2)) * ([640, 480] - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1)
        labels = generator.integers(0, classes - 1, count)  # the last class has no objects
        crowd, difficult = generator.random((2, count)) < 0.12
        scale = generator.uniform(0.6, 1, count)  # COCO's area is that of the mask
        # descending ids: the order in the split is not the order of the ids
        records.append(
            record(
                900 - row, boxes, labels, crowd=crowd, difficult=difficult, area=sides.prod(axis=1) * scale
            )
        )
        if row % 7 == 5:
            continue
        picked = np.resize(generator.permutation(count), 3 * count)
        jitter = generator.normal(0, 0.12, (len(picked), 4)) * np.tile(sides[picked], 2)
        moved = np.clip(boxes[picked] + jitter, 0, 640)
        found = np.concatenate(
            [np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1
        )
        scores = generator.random(len(picked))
        label = np.where(
            generator.random(len(picked)) < 0.15, generator.integers(0, classes, len(picked)), labels[picked]
        )
        parts.append(
            DetectionTable(np.full(len(picked), row), found, scores.round(1) if ties else scores, label)
        )
    return split_of(*records, classes=classes), DetectionTable.concatenate(parts)


def coco_fixture(shared_data: Path, dtype: type = np.float64) -> tuple[Split, DetectionTable]:
    """The 100 COCO images of ap-fixtures/coco-eval, boxes stored as `dtype`."""
    folder = shared_data / "ap-fixtures" / "coco-eval"
    truth = json.loads((folder / "gts" / "sampled_gts_bbox_area.json").read_text())
    label = {c["id"]: i for i, c in enumerate(truth["categories"])}
    records = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in mine], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        no = np.zeros(len(mine), bool)
        crowd = np.array([a["iscrowd"] for a in mine], bool)
        labels = np.array([label[a["category_id"]] for a in mine], np.int64)
        area = np.array([a["area"] for a in mine], np.float64)
        size = (image["height"], image["width"])
        records.append(
            Record(image["id"], Path(image["file_name"]), *size, boxes.astype(dtype), labels, crowd, no, area)
        )
    names = tuple(c["name"] for c in truth["categories"])
    split = Split("val", names, tuple(label), tuple(records), (), lambda i: np.zeros((1, 1, 3), np.uint8))
    return split, DetectionTable.load(folder / "cocoapi_results.json", split)


def padilla_fixture(shared_data: Path) -> tuple[Split, DetectionTable]:
    """The 7 images of ap-fixtures/padilla; boxes are x y w h in pixel indices, x2 = x + w."""
    folder = shared_data / "ap-fixtures" / "padilla"
    records, rows = [], []
    for row, path in enumerate(sorted((folder / "groundtruths").glob("*.txt"))):
        boxes = [_xyxy(line.split()[1:]) for line in path.read_text().splitlines() if line.strip()]
        records.append(record(row + 1, boxes, [0] * len(boxes)))
        for line in (folder / "detections" / path.name).read_text().splitlines():
            if line.strip():
                _, score, *xywh = line.split()
                rows.append((row, _xyxy(xywh), float(score), 0))
    return split_of(*records, classes=1), table_of(*rows)


def _xyxy(xywh: list[str]) -> list[float]:
    x, y, w, h = map(float, xywh)
    return [x, y, x + w, y + h]
