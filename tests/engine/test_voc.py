"""VOC average precision against public fixtures and a loop that follows the development kit line by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.data.types import Split
from detsearch_cli.engine import voc
from detsearch_cli.engine.detections import DetectionTable
from tests.engine.scoring_data import padilla_fixture, random_case, record, split_of, table_of


@pytest.mark.parametrize(
    ("min_iou", "expected"), [(0.1, 0.337198), (0.3, 0.245687), (0.5, 0.022222), (0.75, 0.0)]
)
def test_all_point_ap_agrees_with_the_published_fixture(
    shared_data: Path, min_iou: float, expected: float
) -> None:
    _, area = voc.average_precisions(*padilla_fixture(shared_data), min_iou=min_iou, inclusive=True)
    assert area[0] == pytest.approx(expected, abs=1e-6)


def test_eleven_point_ap_agrees_with_the_published_fixture(shared_data: Path) -> None:
    eleven, _ = voc.average_precisions(*padilla_fixture(shared_data), min_iou=0.3, inclusive=True)
    assert eleven[0] == pytest.approx(0.268398, abs=1e-6)


def objects_of(split: Split, label: int) -> int:
    return sum(int(((r.labels == label) & ~r.difficult & ~r.crowd).sum()) for r in split.records)


def claims_by_the_kit(
    split: Split, table: DetectionTable, label: int, end_pixel: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong detections of one class, best first, in the development kit's order of steps."""
    taken = [np.zeros(len(r.labels), bool) for r in split.records]
    rows = [i for i in np.argsort(-table.scores, kind="stable") if table.labels[i] == label]
    tp, fp = np.zeros(len(rows)), np.zeros(len(rows))
    for d, i in enumerate(rows):
        r = split.records[table.image[i]]
        best, chosen = -np.inf, -1
        for j in range(len(r.labels)):
            if r.labels[j] != label:
                continue
            a, b = table.boxes[i], r.boxes[j].astype(float)
            w = min(a[2], b[2]) - max(a[0], b[0]) + end_pixel
            h = min(a[3], b[3]) - max(a[1], b[1]) + end_pixel
            if w > 0 and h > 0:
                areas = [(x[2] - x[0] + end_pixel) * (x[3] - x[1] + end_pixel) for x in (a, b)]
                overlap = w * h / (sum(areas) - w * h)
                if overlap > best:
                    best, chosen = overlap, j
        if best >= 0.5:
            if not (r.difficult[chosen] or r.crowd[chosen]):
                tp[d], fp[d] = (0, 1) if taken[table.image[i]][chosen] else (1, 0)
                taken[table.image[i]][chosen] = True
        else:
            fp[d] = 1
    return tp, fp


def by_the_kit(split: Split, table: DetectionTable, label: int, end_pixel: float) -> tuple[float, float]:
    """One class's 11-point and area AP."""
    total = objects_of(split, label)
    if total == 0:
        return np.nan, np.nan
    tp, fp = claims_by_the_kit(split, table, label, end_pixel)
    recall, precision = np.cumsum(tp) / total, np.cumsum(tp) / np.maximum(np.cumsum(tp) + np.cumsum(fp), 1e-9)
    eleven = sum(max(precision[recall >= t - 1e-12], default=0.0) / 11 for t in np.linspace(0, 1, 11))
    padded_recall, padded = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(padded) - 2, -1, -1):
        padded[i] = max(padded[i], padded[i + 1])
    area = sum((padded_recall[i + 1] - padded_recall[i]) * padded[i + 1] for i in range(len(padded) - 1))
    return float(eleven), float(area)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_vectorised_ap_equals_the_kits_loop(seed: int, inclusive: bool) -> None:
    split, table = random_case(seed, ties=seed % 2 == 1)
    eleven, area = voc.average_precisions(split, table, inclusive=inclusive)
    for label in range(len(split.classes)):
        np.testing.assert_allclose(
            (eleven[label], area[label]), by_the_kit(split, table, label, float(inclusive))
        )


@pytest.mark.parametrize("seed", range(4))
def test_the_operating_point_has_the_highest_f1_of_all_thresholds(seed: int) -> None:
    """Every distinct score tried as a threshold, each class alone and all with one."""
    split, table = random_case(seed, ties=seed % 2 == 1)
    claims = voc.Claims.of(split, table)
    labels = range(len(split.classes))
    for group in (*([label] for label in labels), list(labels)):
        tried = {}
        for least in np.unique(table.scores):
            kept = table.select(table.scores >= least)
            outcomes = [claims_by_the_kit(split, kept, label, 0.0) for label in group]
            right, wrong = (sum(o[i].sum() for o in outcomes) for i in (0, 1))
            total = sum(objects_of(split, label) for label in group)
            if total and right:
                tried[float(least)] = 2 * right / (total + right + wrong)
        point = claims.operating_point(group[0] if len(group) == 1 else None)
        if not tried:
            assert np.isnan(point.F1) and np.isnan(point.score)
            continue
        assert pytest.approx(max(tried.values())) == point.F1
        assert tried[point.score] == pytest.approx(point.F1)


def test_nothing_right_has_no_operating_point() -> None:
    split = split_of(record(1, [BOX], [0]), classes=1)
    away = table_of((0, [300, 300, 400, 400], 0.9, 0))
    for table in (away, away.select(np.zeros(1, bool))):
        assert np.isnan(voc.Claims.of(split, table).operating_point().score)


def test_pieces_of_the_pair_list_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(1)
    whole = voc.average_precisions(*case)
    monkeypatch.setattr(voc, "PAIRS_AT_ONCE", 7)
    np.testing.assert_array_equal(voc.average_precisions(*case), whole)


BOX, SHIFTED = [10.0, 10.0, 110.0, 110.0], [15.0, 10.0, 115.0, 110.0]


def test_second_detection_of_an_object_is_wrong() -> None:
    split = split_of(record(1, [BOX, [300, 300, 400, 400]], [0, 0]), classes=1)
    table = table_of((0, SHIFTED, 0.9, 0), (0, BOX, 0.8, 0), (0, [300, 300, 400, 400], 0.7, 0))
    _, area = voc.average_precisions(split, table)
    assert area[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_detection_never_falls_back_to_its_second_best_object() -> None:
    split = split_of(record(1, [BOX, SHIFTED], [0, 0]), classes=1)
    _, area = voc.average_precisions(split, table_of((0, BOX, 0.9, 0), (0, BOX, 0.8, 0)))
    assert area[0] == pytest.approx(0.5)


def test_any_number_of_detections_of_a_difficult_object_count_for_nothing() -> None:
    split = split_of(record(1, [BOX, [300, 300, 400, 400]], [0, 0], difficult=[1, 0]), classes=1)
    table = table_of((0, BOX, 0.9, 0), (0, SHIFTED, 0.8, 0), (0, [300, 300, 400, 400], 0.7, 0))
    eleven, area = voc.average_precisions(split, table)
    assert eleven[0] == area[0] == pytest.approx(1.0)


def test_class_with_difficult_objects_only_is_undefined() -> None:
    split = split_of(record(1, [BOX], [0], difficult=[1]), classes=1)
    assert np.isnan(voc.average_precisions(split, table_of((0, BOX, 0.9, 0)))).all()


def test_zero_area_boxes_overlap_nothing() -> None:
    split = split_of(record(1, [[10, 10, 10, 10]], [0]), classes=1)
    assert voc.average_precisions(split, table_of((0, [10, 10, 10, 10], 0.9, 0)))[1][0] == 0


def test_eleven_points_use_recall_levels_reached_exactly() -> None:
    recall = np.arange(1, 11) / 10
    assert voc.eleven_point(recall, np.ones(10)) == pytest.approx(1.0)
    assert voc.eleven_point(recall[:3], np.ones(3)) == pytest.approx(4 / 11)
