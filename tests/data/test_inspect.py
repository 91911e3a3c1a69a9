"""Counts and histograms of `inspect`, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detsearch_cli.data import checks
from detsearch_cli.data.inspect import Bin, inspect
from detsearch_cli.data.source import open_source

from .samples import coco, picture, voc_xml, wider, write


def test_counts_and_histograms(tmp_path: Path) -> None:
    boxes = {"a": [("cat", (1, 1, 8, 8)), ("dog", (1, 1, 16, 4)), ("dog", (1, 1, 40, 10))], "b": []}
    for name, objects in boxes.items():
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        write(tmp_path / "Annotations" / f"{name}.xml", voc_xml(objects))  # type: ignore[arg-type]
    found = inspect(open_source(str(tmp_path)).load("train"))
    assert (found.images, found.empty_images, found.boxes, found.crowd, found.difficult) == (2, 1, 3, 0, 0)
    assert (found.widths, found.heights) == ((40, 40, 40), (30, 30, 30))
    assert [(c.name, c.images, c.boxes, c.median_size) for c in found.classes] == [
        ("cat", 1, 1, 8.0),
        ("dog", 1, 2, 14.0),
    ]
    assert found.sizes == (Bin(8, 16, 2), Bin(16, 32, 1))
    assert [b.count for b in found.aspects] == [1, 0, 2]
    assert found.aspects[0].low == pytest.approx(2**-0.5)
    assert found.boxes_per_image == (Bin(0, 1, 1), Bin(1, 2, 0), Bin(2, 3, 0), Bin(3, 5, 1))
    assert found.coco_sizes == {"small": 3, "medium": 0, "large": 0}


def test_crowd_regions_are_counted_apart(tmp_path: Path) -> None:
    found = inspect(open_source(str(wider(tmp_path))).load("train"))
    assert (found.boxes, found.crowd) == (2, 1)
    assert sum(b.count for b in found.sizes) == sum(c.boxes for c in found.classes) == 2
    assert found.defect_counts == {checks.CROWD: 1}


def test_truncated_images_are_found_by_decoding_alone(tmp_path: Path) -> None:
    split = open_source(str(coco(tmp_path))).load("train")
    file = split.records[0].file
    assert file is not None
    file.write_bytes(file.read_bytes()[:-300])
    assert inspect(split, decode=False).defects == ()
    found = inspect(split)
    assert [(d.kind, d.file) for d in found.defects] == [(checks.TRUNCATED_IMAGE, file.as_posix())]


def test_an_inspection_is_json(tmp_path: Path) -> None:
    found = inspect(open_source(str(coco(tmp_path))).load("train"))
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["classes"][0] == {"name": "cat", "images": 1, "boxes": 1, "median_size": 20.0}


def test_a_split_without_boxes_can_be_inspected(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    found = inspect(open_source(str(tmp_path)).load("train"))
    assert (found.boxes, found.empty_images, found.sizes, found.aspects) == (0, 2, (), ())
    assert json.dumps(found.to_json(), allow_nan=False)
