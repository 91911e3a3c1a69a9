"""The confusion matrix: every object once, every detection once, ignored ones never."""

from __future__ import annotations

import numpy as np
import pytest

from detsearch_cli.engine.confusion import confusion_matrix
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.errors import EvaluationError
from tests.engine.scoring_data import random_case, record, split_of, table_of

A, B, FAR = [10, 10, 110, 110], [200, 10, 300, 110], [400, 300, 500, 400]
NEAR_A = [20, 10, 120, 110]  # IoU with A: 9/11


def test_found_confused_missed_and_invented_objects_land_in_their_cells() -> None:
    split = split_of(record(1, [A, B, FAR], [0, 1, 1]), record(2, [], []))
    table = table_of((0, A, 0.9, 0), (0, B, 0.9, 0), (1, A, 0.9, 1))
    assert confusion_matrix(split, table).tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_an_object_is_paired_once_and_with_its_largest_overlap() -> None:
    split = split_of(record(1, [A], [0]))
    table = table_of((0, NEAR_A, 0.9, 1), (0, A, 0.3, 0))
    assert confusion_matrix(split, table).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_the_surer_of_equal_overlaps_is_paired() -> None:
    split = split_of(record(1, [A], [0]))
    table = table_of((0, A, 0.3, 1), (0, A, 0.9, 0))
    assert confusion_matrix(split, table).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_detections_below_the_score_do_not_exist() -> None:
    split, table = split_of(record(1, [A], [0])), table_of((0, A, 0.3, 0))
    assert confusion_matrix(split, table, min_score=0.3)[0, 0] == 1
    assert confusion_matrix(split, table, min_score=0.31).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_difficult_objects_and_crowds_count_for_nothing() -> None:
    region, inside = [200, 100, 600, 400], [300, 200, 350, 250]
    crowd = split_of(record(1, [A, region], [0, 0], crowd=[0, 1]))
    table = table_of((0, A, 0.9, 0), (0, inside, 0.9, 1))
    assert confusion_matrix(crowd, table).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    hard = split_of(record(1, [A, region], [0, 0], difficult=[0, 1]))
    assert confusion_matrix(hard, table).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert confusion_matrix(hard, table_of((0, region, 0.9, 1))).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_rows_hold_every_object_that_counts(seed: int) -> None:
    split, table = random_case(seed)
    counts = confusion_matrix(split, table)
    objects = [r.labels[~r.difficult & ~r.crowd] for r in split.records]
    expected = np.bincount(np.concatenate(objects), minlength=len(split.classes))
    assert counts[:-1].sum(axis=1).tolist() == expected.tolist()
    assert counts[-1, -1] == 0
    assert counts[:, :-1].sum() <= (table.scores >= 0.25).sum()


def test_nothing_found_means_everything_missed() -> None:
    split, _ = random_case(0)
    counts = confusion_matrix(split, DetectionTable.empty())
    assert counts[:, :-1].sum() == 0 and counts[:, -1].sum() > 0


def test_impossible_overlaps_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"in \(0, 1\], got 0"):
        confusion_matrix(split_of(record(1, [A], [0])), DetectionTable.empty(), min_iou=0)
