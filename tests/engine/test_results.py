"""Results files of other programs: which image an id means, and boxes that fit another convention."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detsearch_cli.data.source import load_split, open_source
from detsearch_cli.data.types import Record, Split
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.results import doubt, read_results
from detsearch_cli.errors import EvaluationError
from tests.engine.scoring_data import record, split_of, table_of


def split_named(*names: str, ids: list[int] | None = None, own_ids: bool = False) -> Split:
    """A split of files with these names; ids: 1, 2, ... unless given."""
    numbers = ids or list(range(1, len(names) + 1))
    records: list[Record] = [
        replace(record(i, [], []), file=Path(name)) for i, name in zip(numbers, names, strict=True)
    ]
    return replace(split_of(*records), own_ids=own_ids)


def entry(image_id: object, box: object = (1, 2, 3, 4), **more: object) -> dict[str, object]:
    return {"image_id": image_id, "category_id": 1, "bbox": box, "score": 0.5, **more}


def write(folder: Path, entries: list[dict[str, object]]) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(entries))
    return path


def rows(folder: Path, split: Split, *image_ids: object) -> list[int]:
    found = read_results(write(folder, [entry(i) for i in image_ids]), split).image
    return [int(row) for row in found]


def test_whole_numbers_that_only_name_files_name_them(tmp_path: Path) -> None:
    split = split_named("0.jpg", "0007.jpg", "12.jpg")
    assert rows(tmp_path, split, 0, 7, 12, 7.0) == [0, 1, 2, 1]


def test_whole_numbers_that_are_only_counted_ids_are_these(tmp_path: Path) -> None:
    assert rows(tmp_path, split_named("a.jpg", "b.jpg", "3.jpg"), 1, 2, 2.0) == [0, 1, 1]


def test_numbers_that_fit_two_readings_are_refused_unless_both_mean_the_same(tmp_path: Path) -> None:
    with pytest.raises(
        EvaluationError, match=r"entry 1: image_id 2 may be the number of 10\.jpg or the name of 2\.jpg"
    ):
        rows(tmp_path, split_named("1.jpg", "10.jpg", "2.jpg"), 1, 2)
    assert rows(tmp_path, split_named("1.jpg", "2.jpg", "3.jpg"), 3, 2) == [2, 1]


def test_in_a_coco_set_a_number_is_an_id_and_a_text_may_be_one(tmp_path: Path) -> None:
    split = split_named("0.jpg", "1.jpg", "x.jpg", ids=[1, 2, 3], own_ids=True)
    assert rows(tmp_path, split, 1, 2) == [0, 1]
    assert rows(tmp_path, split, "3", "2") == [2, 1]
    assert rows(tmp_path, split, "x.jpg", "0") == [2, 0]
    # 0 is no id, so that all are names
    assert rows(tmp_path, split, 0, 1) == [0, 1]
    with pytest.raises(EvaluationError, match=r"image_id '1' may be the id of 0\.jpg or the name of 1\.jpg"):
        rows(tmp_path, split, "1")


def test_numbers_of_which_each_reading_fits_some_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="image_id must be one of split 'val'"):
        rows(tmp_path, split_named("a.jpg", "7.jpg"), 1, 7)


def test_what_is_saved_of_files_named_by_numbers_is_read_back_by_name(tmp_path: Path) -> None:
    split = split_named("1.jpg", "10.jpg", "2.jpg")
    saved = table_of((1, [0, 0, 5, 5], 0.5, 0), (2, [0, 0, 5, 5], 0.25, 1))
    saved.save(tmp_path / "own.json", split)
    assert [e["image_id"] for e in json.loads((tmp_path / "own.json").read_text())] == ["10.jpg", "2.jpg"]
    assert read_results(tmp_path / "own.json", split).image.tolist() == [1, 2]
    assert DetectionTable.load(tmp_path / "own.json", split).image.tolist() == [1, 2]
    # as they were saved before: counted ids, which this program knows as its own
    assert DetectionTable.load(write(tmp_path, [entry(2)]), split).image.tolist() == [1]


def test_a_byte_order_mark_and_numbers_as_text_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(1, category_id="2"), entry(1, category_id=1.0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_results(path, split_named("a.jpg")).labels.tolist() == [1, 0]


CORNERS = [[400, 100, 600, 300], [10, 300, 90, 470], [500, 20, 630, 450], [30, 30, 90, 90]]


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        (CORNERS, "fit as x1, y1, x2, y2"),
        ([[x / 640, y / 480, w / 640, h / 480] for x, y, w, h in CORNERS], "fractions of the image"),
        ([[x, y, x2 - x, y2 - y] for x, y, x2, y2 in CORNERS], None),
        ([[-5, -5, 700, 500], [600, 400, 60, 90]], None),
        ([], None),
    ],
)
def test_boxes_of_another_convention_are_told(
    tmp_path: Path, boxes: list[list[float]], says: str | None
) -> None:
    split = split_named("a.jpg")
    said = doubt(read_results(write(tmp_path, [entry(1, box) for box in boxes]), split), split)
    assert said is None if says is None else said is not None and says in said


def test_results_are_scored_where_pictures_are_missing(tmp_path: Path) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (4, 9)],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 2, 30, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(content))
    split = load_split(open_source(str(tmp_path)), "val", pictures=False)
    assert split.own_ids and [(r.width, r.height) for r in split.records] == [(64, 48)] * 2
    assert rows(tmp_path, split, 9, 4) == [1, 0]
    np.testing.assert_array_equal(split.records[1].boxes, [[1, 2, 31, 22]])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(
    derandomize=True,
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(field=st.sampled_from(["image_id", "category_id", "bbox", "score", ""]), value=ANYTHING)
def test_any_value_in_any_field_is_read_whole_or_refused(tmp_path: Path, field: str, value: object) -> None:
    entries = [entry(1), {**entry(2), field: value} if field else value]
    split = split_named("1.jpg", "b.jpg")
    try:
        found = DetectionTable.of_columns(read_results(write(tmp_path, entries), split))  # type: ignore[arg-type]
    except EvaluationError as refused:
        assert "results.json, entry 1: " in str(refused)
        return
    found.check(split)
    assert len(found) == 2
