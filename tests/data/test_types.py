"""Records: which objects a score counts, and which a detector is trained on."""

from __future__ import annotations

import numpy as np

from detsearch_cli.data.types import Record

BOXES = np.array([[0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8], [3, 3, 3, 8]], np.float32)


def test_crowd_and_difficult_objects_are_not_counted_and_empty_ones_not_trained_on() -> None:
    crowd = np.array([False, True, False, True, False])
    difficult = np.array([False, False, True, True, False])
    record = Record(1, None, 9, 9, BOXES, np.zeros(5, np.int64), crowd, difficult, np.full(5, 64.0))
    assert record.counted.tolist() == [True, False, False, False, True]
    assert record.trainable.tolist() == [True, False, False, False, False]


def test_an_image_without_objects_has_none_of_either() -> None:
    none = np.zeros(0)
    record = Record(1, None, 9, 9, none.reshape(0, 4), none, none.astype(bool), none.astype(bool), none)
    assert record.counted.shape == record.trainable.shape == (0,)
