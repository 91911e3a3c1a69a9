"""Pictures: where the lines are, and that nothing a data set may hold breaks them."""

from __future__ import annotations

import numpy as np
import pytest

from detsearch_cli.data.drawing import LEFT_OUT, PALETTE, contact_sheet, draw
from detsearch_cli.data.types import Record, Split


def split(sizes: list[tuple[int, int]], boxes: list[list[float]], **flags: bool) -> Split:
    records = []
    for number, (height, width) in enumerate(sizes):
        count = len(boxes)
        records.append(
            Record(
                number + 1, None, height, width, np.array(boxes, dtype=np.float32).reshape(-1, 4),
                np.arange(count) % 2, np.full(count, flags.get("crowd", False)), np.zeros(count, dtype=bool),
                np.ones(count),
            )
        )  # fmt: skip
    read = lambda i: np.full((*sizes[i], 3), 90, dtype=np.uint8)  # noqa: E731
    return Split("train", ("cat", "dog"), (1, 2), tuple(records), (), read)


def test_a_box_is_outlined_on_its_own_outermost_pixels_and_the_image_is_untouched() -> None:
    image = np.zeros((40, 50, 3), dtype=np.uint8)
    drawn = draw(image, np.array([[10.0, 5.0, 18.0, 15.0]]), None, ())
    rows, columns = np.nonzero((drawn == PALETTE[0]).all(-1))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 5, 18, 15)
    assert (drawn[6:14, 11:17] == 0).all()
    assert not image.any()
    assert drawn.dtype == np.uint8 and drawn.shape == image.shape


def test_classes_have_colours_and_large_boxes_names() -> None:
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    boxes = np.array([[50, 50, 200, 200], [220, 60, 380, 280]])
    drawn = draw(image, boxes, np.array([0, 1]), ("cat", "dog"), np.array([0.9, 0.4]))
    for colour in PALETTE[:2]:
        assert np.count_nonzero((drawn == colour).all(-1)) > 600, "the outline and the name's ground"
    unnamed = draw(image, boxes, np.array([0, 1]), ("", ""))
    assert np.count_nonzero((drawn != unnamed).any(-1)) > 300


@pytest.mark.parametrize(
    "box", [[-20, -20, 500, 500], [39, 39, 40, 40], [10, 10, 10, 10], [0.2, 0.2, 0.4, 0.4], [60, 60, 80, 80]]
)
def test_boxes_at_and_beyond_the_border_can_be_drawn(box: list[float]) -> None:
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    assert (
        draw(image, np.array([box]), np.array([0]), ("a class with a long name",), np.array([1.0])).shape
        == image.shape
    )


def test_no_boxes_leave_the_image_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    assert np.array_equal(draw(image, np.zeros((0, 4)), np.zeros(0, dtype=int), ("a",), np.zeros(0)), image)


def test_a_sheet_has_a_tile_for_each_image_of_any_shape() -> None:
    data = split([(40, 80), (80, 40), (500, 500), (3, 200)], [[2, 1, 30, 3]])
    sheet = contact_sheet(data, [0, 1, 2, 3], columns=3, tile=64)
    assert sheet.shape[1] == 3 * 68 + 4
    assert 2 * 68 < sheet.shape[0] < 2 * 68 + 60
    assert contact_sheet(data, [2], columns=6, tile=64).shape[1] == 72
    assert contact_sheet(data, [], columns=6, tile=64).ndim == 3


def test_what_training_leaves_out_is_grey() -> None:
    normal, crowd = (
        contact_sheet(split([(64, 64)], [[10, 10, 50, 50]], crowd=c), [0], 1, 64) for c in (False, True)
    )
    assert not (normal[22:] == LEFT_OUT).all(-1).any()
    assert np.count_nonzero((crowd[22:] == LEFT_OUT).all(-1)) >= 150
