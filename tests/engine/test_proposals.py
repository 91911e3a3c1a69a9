"""Recall of proposals against pycocotools without classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detsearch_cli.data.types import Record, Split
from detsearch_cli.engine import coco
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import evaluate
from detsearch_cli.engine.proposals import COUNTS, ProposalRecall

SIDE = 400


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, SIDE - 60, (count, 2)).round()
    return np.concatenate([corner, corner + rng.uniform(10, 60, (count, 2)).round()], 1)


def record(number: int, boxes: np.ndarray, rng: np.random.Generator, *, ignored: bool) -> Record:
    crowd, difficult = (rng.random((2, len(boxes))) < 0.15) & ignored
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    labels = rng.integers(0, 2, len(boxes))
    return Record(number, None, SIDE, SIDE, boxes.astype(np.float32), labels, crowd, difficult, area)


def scene(ignored: bool) -> tuple[Split, list[np.ndarray]]:
    """Images of many near-duplicates, so that it matters who takes which object."""
    rng = np.random.default_rng(0)
    truth = [random_boxes(rng, count) for count in (12, 0, 5, 30)]
    records = tuple(record(i, boxes, rng, ignored=ignored) for i, boxes in enumerate(truth, 1))
    proposals = []
    for boxes in truth:
        near = np.repeat(boxes, 20, 0)
        near = near + rng.normal(0, 3, near.shape)
        found = np.concatenate([near, random_boxes(rng, 900)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        proposals.append(rng.permutation(found))
    return Split(
        "val", ("a", "b"), (1, 2), records, (), lambda i: np.zeros((SIDE, SIDE, 3), np.uint8)
    ), proposals


def table_of(proposals: list[np.ndarray]) -> DetectionTable:
    image = np.repeat(np.arange(len(proposals)), [len(p) for p in proposals])
    scores = np.concatenate([-np.arange(len(p), dtype=np.float64) for p in proposals])
    return DetectionTable(image, np.concatenate(proposals), scores, np.zeros(len(image), np.int64))


@pytest.mark.parametrize("ignored", [False, True])
def test_recall_equals_pycocotools_without_classes(ignored: bool) -> None:
    split, proposals = scene(ignored)
    run = coco.reference(*coco.datasets(split, table_of(proposals)))
    run.params.useCats, run.params.maxDets = 0, list(COUNTS)
    run.evaluate()
    run.accumulate()
    expected = run.eval["recall"][:, 0, 0, :].T  # counts x thresholds
    parts = [ProposalRecall.of(r, p) for r, p in zip(split.records, proposals, strict=True)]
    found = ProposalRecall.total(parts)
    assert found is not None
    np.testing.assert_allclose(found.found / found.objects, expected)
    shown = found.to_json()
    assert shown["AR100"] == pytest.approx(expected[1].mean()) and 0 < shown["AR50"] < shown["AR1000"] < 1
    assert shown["recall50"] == pytest.approx(expected[0, 0])


def test_perfect_proposals_find_everything_and_none_find_nothing() -> None:
    split, _ = scene(False)
    whole = split.records[0]
    assert ProposalRecall.of(whole, whole.boxes.astype(np.float64)).to_json()["AR50"] == 1
    assert ProposalRecall.of(whole, np.zeros((0, 4))).to_json()["recall1000"] == 0


def test_recall_without_objects_is_undefined_and_shown_as_null() -> None:
    split, proposals = scene(False)
    nothing = ProposalRecall.of(split.records[1], proposals[1])
    assert nothing.objects == 0 and all(map(math.isnan, nothing.to_json().values()))
    table = DetectionTable(
        *(getattr(DetectionTable.empty(), k) for k in ("image", "boxes", "scores", "labels")), nothing
    )
    assert evaluate(split, table).to_json()["proposals"]["AR100"] is None


def test_tables_of_shares_add_up() -> None:
    split, proposals = scene(True)
    parts = [ProposalRecall.of(r, p) for r, p in zip(split.records, proposals, strict=True)]
    empty = DetectionTable.empty()
    shares = [DetectionTable(empty.image, empty.boxes, empty.scores, empty.labels, part) for part in parts]
    joined = DetectionTable.concatenate(shares).proposals
    whole = ProposalRecall.total(parts)
    assert joined is not None and whole is not None
    assert (joined.found == whole.found).all() and joined.objects == whole.objects
    assert DetectionTable.concatenate([empty]).proposals is None
    assert "proposals" not in evaluate(split, empty).to_json()
