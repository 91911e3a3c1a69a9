"""Synthetic ground truths, and detections like a trained detector's, for the scoring benchmarks."""

from __future__ import annotations

import numpy as np

from detsearch_cli.data.types import Record, Split
from detsearch_cli.engine.detections import DetectionTable


def ground_truth(num_images: int, num_classes: int, mean_objects: float, seed: int = 0) -> Split:
    """`num_images` of 640 x 480 px; Poisson many objects of 16 to 200 px; no pictures behind them."""
    generator = np.random.default_rng(seed)
    records = []
    for image_id in range(1, num_images + 1):
        count = generator.poisson(mean_objects)
        sides = np.exp(generator.uniform(np.log(16), np.log(200), (count, 2)))
        corners = generator.uniform(0, 1, (count, 2)) * ([640, 480] - sides)
        boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
        labels = generator.integers(0, num_classes, count)
        no = np.zeros(count, bool)
        records.append(Record(image_id, None, 480, 640, boxes, labels, no, no, sides.prod(axis=1)))
    names = tuple(f"class{i}" for i in range(num_classes))
    return Split(
        "val", names, tuple(range(1, num_classes + 1)), tuple(records), (), lambda i: np.zeros((0, 0, 3))
    )


def detections(split: Split, an_image: int, noise: float, seed: int) -> DetectionTable:
    """`an_image` detections an image: objects jittered by `noise` of their size, and clutter."""
    generator = np.random.default_rng(seed)
    parts = []
    for row, record in enumerate(split.records):
        near = min(an_image // 2, 3 * len(record.labels))
        objects = (
            generator.permutation(np.resize(np.arange(len(record.labels)), near))
            if near
            else np.zeros(0, int)
        )
        boxes = record.boxes[objects].astype(np.float64)
        sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        offset = np.clip(
            noise * generator.exponential(size=(near, 1)) * generator.normal(size=(near, 4)), -0.45, 0.45
        )
        corners = generator.uniform(0, 400, (an_image - near, 2))
        clutter = np.concatenate([corners, corners + generator.uniform(16, 80, corners.shape)], axis=1)
        # unclipped: equal scores have no order that two evaluators must share
        surety = 0.8 - 2 * np.abs(offset).mean(axis=1) + generator.normal(0, 0.15, near)
        parts.append(
            DetectionTable(
                np.full(an_image, row),
                np.concatenate([boxes + offset * sizes, clutter]),
                np.concatenate([surety, generator.uniform(0.05, 0.5, an_image - near)]),
                np.concatenate(
                    [record.labels[objects], generator.integers(0, len(split.classes), an_image - near)]
                ),
            )
        )
    return DetectionTable.concatenate(parts)
