"""Real data sets have the images, boxes and defects that their README counts."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.data.source import open_source

# folder: format, (images, boxes) of each split, classes, defects
EXPECTED = {
    "bccd": ("voc", {"train": (218, 2895), "val": (36, 512), "test": (110, 1479)}, 3, {"zero-area box": 2}),
    "voc-animals": ("voc", {"train": (360, 705), "val": (60, 113), "test": (180, 353)}, 16, {}),
    "heads": ("voc", {"train": (240, 1053), "val": (40, 153), "test": (120, 540)}, 2, {"zero-area box": 2}),
    "masks": ("voc", {"train": (89, 585), "val": (14, 117), "test": (46, 251)}, 2, {"zero-area box": 1}),
    "deeppcb": (
        "coco",
        {"train": (240, 1605), "val": (40, 268), "test": (120, 773)},
        6,
        {"grey image": 393},
    ),
    "coco-tiny": ("coco", {"train": (80, 705), "val": (80, 815)}, 80, {"crowd region": 17}),
    "cartoon-faces": (
        "coco",
        {"train": (126, 272), "val": (21, 44), "test": (63, 137)},
        1,
        {"grey image": 210},
    ),
    "coco128-yolo": (
        "yolo",
        {"train": (128, 929), "val": (128, 898)},
        80,
        {"grey image": 2, "image without label": 2, "label without image": 2},
    ),
    "wider": ("wider", {"train": (250, 1310), "val": (150, 2461)}, 1, {"crowd region": 96}),
    # Two of the ten folds are there, and 47 of the images they name.
    "fddb": (
        "fddb",
        {"train": (47, 81)},
        1,
        {"missing image": 528, "image without label": 236, "box outside image": 3, "grey image": 1},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_are_those_of_the_readme(name: str, shared_data: Path) -> None:
    format_name, counts, classes, defects = EXPECTED[name]
    source = open_source(str(shared_data / name))
    assert source.format == format_name
    loaded = {s: source.load(s) for s in source.splits}
    assert {s: (len(d), sum(len(r.boxes) for r in d.records)) for s, d in loaded.items()} == counts
    assert {len(d.classes) for d in loaded.values()} == {classes}
    assert Counter(d.kind for s in loaded.values() for d in s.defects) == defects


def test_coco_boxes_are_those_pycocotools_reads(shared_data: Path) -> None:
    from pycocotools.coco import COCO

    api = COCO(str(shared_data / "coco-tiny" / "annotations" / "instances_val2017.json"))
    split = open_source(str(shared_data / "coco-tiny")).load("val")
    assert list(split.category_ids) == sorted(api.getCatIds())
    for record in split.records:
        items = api.imgToAnns[record.image_id]
        expected = np.array([i["bbox"] for i in items]).reshape(-1, 4)
        expected[:, 2:] += expected[:, :2]
        np.testing.assert_allclose(record.boxes, expected, atol=0.05)
        assert [split.category_ids[n] for n in record.labels] == [i["category_id"] for i in items]
        assert record.crowd.tolist() == [bool(i["iscrowd"]) for i in items]
        np.testing.assert_allclose(record.area, [i["area"] for i in items])


def test_loading_takes_under_a_millisecond_of_cpu_an_image(shared_data: Path) -> None:
    source = open_source(str(shared_data / "voc-animals"))
    rates = []
    for _ in range(3):
        start = time.process_time()
        rates.append(len(source.load("train")) / (time.process_time() - start))
    assert max(rates) > 1000
