"""COCO folders: their layouts, and every defect their json can have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.data import checks
from detsearch_cli.data.source import load_split, open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import coco, coco_json, picture, write


def changed(root: Path, change: Callable[[dict[str, Any]], None], split: str = "train") -> Split:
    """The sample with its json changed."""
    coco(root)
    path = root / "annotations" / f"instances_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return open_source(str(root)).load(split)


def kinds(split: Split) -> list[str]:
    return [d.kind for d in split.defects]


def test_category_ids_stay_and_labels_are_contiguous(tmp_path: Path) -> None:
    split = open_source(str(coco(tmp_path))).load("train")
    assert (split.classes, split.category_ids) == (("cat", "dog"), (3, 7))
    assert [r.labels.tolist() for r in split.records] == [[0], [1]]
    assert [r.area.tolist() for r in split.records] == [[300.0], [300.0]]


def test_crowd_regions_are_kept_flagged_and_counted(tmp_path: Path) -> None:
    split = changed(tmp_path, lambda c: c["annotations"][0].update(iscrowd=1))
    assert split.records[0].crowd.tolist() == [True]
    assert kinds(split) == [checks.CROWD]


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ({"category_id": 5}, checks.UNKNOWN_CLASS),
        ({"category_id": None}, checks.UNKNOWN_CLASS),
        ({"bbox": [1, 1, 0, 5]}, checks.ZERO_AREA),
        ({"bbox": [1, 1, -4, 5]}, checks.ZERO_AREA),
        ({"bbox": [100, 1, 5, 5]}, checks.OUTSIDE),
        ({"bbox": [1, 1, 5]}, checks.BROKEN_LABEL),
        ({"bbox": "1 1 5 5"}, checks.BROKEN_LABEL),
        ({"bbox": [1, 1, math.nan, 5]}, checks.BROKEN_LABEL),
        ({"image_id": 99}, checks.LABEL_ONLY),
    ],
)
def test_unusable_annotations_are_left_out_and_recorded(
    tmp_path: Path, update: dict[str, Any], kind: str
) -> None:
    split = changed(tmp_path, lambda c: c["annotations"][0].update(update))
    assert kinds(split) == [kind]
    assert [len(r.boxes) for r in split.records] == [0, 1]


def test_duplicate_ids_are_recorded(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "file_name": "train1.jpg"})
        content["annotations"].append(dict(content["annotations"][0]))

    split = changed(tmp_path, change)
    assert kinds(split) == [checks.DUPLICATE_ID, checks.DUPLICATE_ID, checks.DUPLICATE_LABEL]
    assert [len(r.boxes) for r in split.records] == [2, 1]


def test_images_in_no_json_are_recorded_once(tmp_path: Path) -> None:
    coco(tmp_path)
    picture(tmp_path / "train2017" / "lonely.jpg")
    source = open_source(str(tmp_path))
    assert [(d.kind, Path(d.file).name) for d in source.load("train").defects] == [
        (checks.IMAGE_ONLY, "lonely.jpg")
    ]
    assert source.load("val").defects == ()


def test_ids_that_are_no_numbers_are_numbered_anew(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for item in content["images"]:
            item["id"] = f"image-{item['id']}"
        for item in content["annotations"]:
            item["image_id"] = f"image-{item['image_id']}"

    split = changed(tmp_path, change)
    assert [r.image_id for r in split.records] == [1, 2]
    assert [len(r.boxes) for r in split.records] == [1, 1]


def test_a_truncated_json_names_file_and_position(tmp_path: Path) -> None:
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:150])
    with pytest.raises(
        DataError, match=r"instances_train2017\.json is not valid JSON: .*character \d+ of 150"
    ):
        open_source(str(tmp_path)).load("train")


@pytest.mark.parametrize("content", ["[]", '{"images": 3}', '{"images": [{}], "annotations": {}}', "\x00"])
def test_json_that_is_no_coco_is_refused(tmp_path: Path, content: str) -> None:
    coco(tmp_path)
    write(tmp_path / "annotations" / "instances_train2017.json", content)
    with pytest.raises(DataError, match=r"instances_train2017\.json"):
        open_source(str(tmp_path)).load("train")


def test_an_empty_json_is_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    write(tmp_path / "annotations" / "instances_train2017.json", "")
    with pytest.raises(DataError, match="cut short"):
        open_source(str(tmp_path)).load("train")


def test_splits_whose_categories_contradict_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"category id 3 is 'cat' in .* but 'cta' in"):
        changed(tmp_path / "a", lambda c: c["categories"][1].update(name="cta"), "val")
    with pytest.raises(DataError, match=r"category 'cat' has id 3 in .* and 4 in"):
        changed(tmp_path / "b", lambda c: c["categories"][1].update(id=4), "val")


def test_categories_of_every_split_count(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 5, "name": "bird [small]"})

    changed(tmp_path, change, "val")
    assert open_source(str(tmp_path)).load("train").classes == ("cat", "bird [small]", "dog")


def test_shared_image_folder_and_train_val_test_names(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for i in range(2):
            picture(tmp_path / "images" / f"{split}{i}.jpg")
        write(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(coco_json(split)))
    write(tmp_path / "annotations" / "captions_train.json", "{}")
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val", "test")
    assert source.load("test").defects == ()


def test_roboflow_layout(tmp_path: Path) -> None:
    for folder, split in (("train", "train"), ("valid", "val")):
        for i in range(2):
            picture(tmp_path / folder / f"{split}{i}.jpg")
        write(tmp_path / folder / "_annotations.coco.json", json.dumps(coco_json(split)))
    source = open_source(str(tmp_path))
    assert (source.format, source.splits) == ("coco", ("train", "val"))
    assert len(source.load("val")) == 2


def test_one_json_without_a_split_name_is_train(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / "data" / f"x{i}.jpg")
    write(tmp_path / "labels.json", json.dumps(coco_json("x")))
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert len(source.load("train")) == 2


def test_the_later_year_wins_and_equal_claims_are_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    write(tmp_path / "annotations" / "instances_train2014.json", "{}")
    assert len(open_source(str(tmp_path)).load("train")) == 2
    for name in ("instances_train_cats.json", "instances_train_dogs.json"):
        write(tmp_path / "b" / "annotations" / name, json.dumps(coco_json("train")))
    with pytest.raises(DataError, match="several files for split 'train'"):
        open_source(str(tmp_path / "b"))


def test_joined_splits_get_new_ids_where_they_clash(tmp_path: Path) -> None:
    source = open_source(str(coco(tmp_path)))
    both = load_split(source, "train+val")
    assert [r.image_id for r in both.records] == [1, 2, 3, 4]
    assert (both.read(3) == source.load("val").read(1)).all()
    with pytest.raises(DataError, match="different names joined"):
        load_split(source, "train+train")
