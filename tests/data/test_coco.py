"""COCO folders: their layouts, and every defect their json can have."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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


def test_one_id_may_be_written_as_number_text_or_float(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = "1"
        content["annotations"][0] |= {"image_id": 1.0, "category_id": "3"}
        content["annotations"][1] |= {"image_id": "2", "category_id": 7.0}

    split = changed(tmp_path, change)
    assert [r.image_id for r in split.records] == [1, 2]
    assert [r.labels.tolist() for r in split.records] == [[0], [1]]
    assert [(d.kind, d.detail) for d in split.defects] == [
        (checks.BROKEN_LABEL, "1 image ids are written as text")
    ]


def test_ids_of_64_bits_stay_what_they_are(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = 2**62 + 1

    assert [r.image_id for r in changed(tmp_path, change).records] == [2**62 + 1, 2]


@pytest.mark.parametrize(
    ("value", "crowd", "reported"),
    [
        *((v, False, 0) for v in (0, "0", None, False)),
        *((v, True, 0) for v in (1, "1", True)),
        *((v, False, 1) for v in ("x", 2, [0])),
    ],
)
def test_iscrowd_is_read_by_its_meaning_and_other_values_are_reported(
    tmp_path: Path, value: object, crowd: bool, reported: int
) -> None:
    split = changed(tmp_path, lambda c: c["annotations"][0].update(iscrowd=value))
    assert split.records[0].crowd.tolist() == [crowd]
    assert kinds(split).count(checks.BROKEN_LABEL) == reported


@pytest.mark.parametrize("side", [math.nan, math.inf, 10**400, "40", [], True])
def test_a_size_that_is_no_number_is_reported_and_the_images_taken(tmp_path: Path, side: object) -> None:
    split = changed(tmp_path, lambda c: c["images"][0].update(width=side))
    assert kinds(split) == [checks.SIZE]
    assert (split.records[0].width, split.records[0].height) == (40, 30)


def test_segmentations_without_bbox_give_their_bounds_and_are_reported_once(tmp_path: Path) -> None:
    from pycocotools import mask

    pixels = np.zeros((30, 40), np.uint8, order="F")
    pixels[5:25, 10:30] = 1
    packed = mask.encode(pixels)
    runs = [10 * 30 + 5, *[20, 10] * 19, 20, 10 * 30 + 5]

    def change(content: dict[str, Any]) -> None:
        first, second = content["annotations"]
        del first["bbox"], second["bbox"]
        first["segmentation"] = [[10, 5, 30, 5, 20, 12], [12, 25, 13, 24, 14, 7.5]]
        second["segmentation"] = {"size": [30, 40], "counts": packed["counts"].decode()}
        content["annotations"].append({**second, "id": 9, "segmentation": {"size": [30, 40], "counts": runs}})
        content["annotations"][-1]["category_id"] = 3

    split = changed(tmp_path, change)
    assert [b.tolist() for r in split.records for b in r.boxes] == [[10, 5, 30, 25]] * 3
    assert kinds(split) == [checks.NO_BOX]


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [30, 40], "counts": "oooo"},
        {"size": [30, 40], "counts": "P" * 50},
        {"size": [0, 40], "counts": [3, 4]},
        {"size": [10**9, 10**9], "counts": [3, 4]},
        {"size": [30, 40], "counts": [3, 4]},
        {"size": [30, 40], "counts": [-3, 1203]},
        {"size": [30, 40], "counts": [1200]},
        [[1, 2, 3]],
        [[1, 2, 3, 4, math.nan, 6]],
        [["1", "2", "3", "4", "5", "6"]],
        "x",
    ],
)
def test_a_segmentation_without_bounds_is_reported(tmp_path: Path, segmentation: object) -> None:
    def change(content: dict[str, Any]) -> None:
        del content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = segmentation

    split = changed(tmp_path, change)
    assert kinds(split) == [checks.BROKEN_LABEL]
    assert [len(r.boxes) for r in split.records] == [0, 1]


def test_one_file_under_two_ids_is_one_image_with_the_boxes_of_both(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "id": 100})
        double = {**content["annotations"][0], "id": 100, "image_id": 100}
        content["annotations"] += [double, {**double, "id": 101, "bbox": [1, 2, 3, 4], "area": 11}]

    split = changed(tmp_path, change)
    assert kinds(split) == [checks.DUPLICATE_ID]
    assert [r.image_id for r in split.records] == [1, 2]
    assert split.records[0].boxes.tolist() == [[10, 5, 30, 25], [1, 2, 4, 6]]


def test_a_label_that_is_repeated_is_reported_and_kept(tmp_path: Path) -> None:
    split = changed(tmp_path, lambda c: c["annotations"].append({**c["annotations"][0], "id": 50}))
    assert kinds(split) == [checks.DUPLICATE_LABEL]
    assert [len(r.boxes) for r in split.records] == [2, 1]
    other_class = changed(
        tmp_path / "b",
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 50, "category_id": 7}),
    )
    assert other_class.defects == ()


def test_one_area_for_all_boxes_is_replaced_by_their_own(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"].append({**content["annotations"][0], "id": 50, "bbox": [1, 1, 5, 6]})
        for item in content["annotations"]:
            item["area"] = 1.0

    split = changed(tmp_path, change)
    assert kinds(split) == [checks.BROKEN_LABEL]
    assert [r.area.tolist() for r in split.records] == [[400, 30], [400]]


def rooted(content: dict[str, Any]) -> None:
    """As Roboflow exports: category 0 is named after the project and the parent of all others."""
    for category in content["categories"]:
        category["supercategory"] = "cat"
    content["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})


def test_a_root_category_without_boxes_is_no_class(tmp_path: Path) -> None:
    coco(tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        content = json.loads(path.read_text())
        rooted(content)
        path.write_text(json.dumps(content))
    source = open_source(str(tmp_path))
    split = source.load("train")
    assert (split.classes, split.category_ids) == (("cat", "dog"), (3, 7))
    assert kinds(split) == [checks.ROOT_CATEGORY]
    assert source.load("val").defects == ()


def test_a_root_category_with_a_box_in_any_split_is_a_class(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        rooted(content)
        content["categories"][0]["name"] = "animal"
        for category in content["categories"][1:]:
            category["supercategory"] = "animal"

    changed(tmp_path, change)
    assert open_source(str(tmp_path)).load("train").classes == ("animal", "cat", "dog")
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    assert open_source(str(tmp_path)).load("train").classes == ("animal", "cat", "dog")


def test_names_that_differ_in_blanks_alone_are_reported(tmp_path: Path) -> None:
    split = changed(tmp_path, lambda c: c["categories"].append({"id": 9, "name": "cat "}))
    assert (split.classes, kinds(split)) == (("cat", "dog", "cat "), [checks.CLASS_SPELLING])


def test_a_long_file_is_recognised_wherever_its_lists_are(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "x0.jpg")
    content = coco_json("x")
    rows = [{**content["images"][0], "id": i, "pad": "-" * 900} for i in range(200)]
    whole = {"images": rows, "categories": content["categories"], "annotations": [], "info": "-" * 70_000}
    write(tmp_path / "result.json", json.dumps(whole))
    assert open_source(str(tmp_path)).format == "coco"


@pytest.mark.parametrize(
    "layout", ["{}/labels.json {}/data", "{}/anything.json {}", "{}/annotations/a.json {}/images"]
)
def test_one_json_a_split_folder_is_found_under_any_name(tmp_path: Path, layout: str) -> None:
    for folder, split in (("train", "train"), ("validation", "val")):
        json_file, images = layout.format(folder, folder).split()
        for i in range(2):
            picture(tmp_path / images / f"{split}{i}.jpg")
        write(tmp_path / json_file, json.dumps(coco_json(split)))
    source = open_source(str(tmp_path))
    assert (source.format, source.splits) == ("coco", ("train", "val"))
    assert [len(source.load(s)) for s in source.splits] == [2, 2]
    assert source.load("train").defects == ()


def test_an_empty_split_is_reported_and_the_others_stay_usable(tmp_path: Path) -> None:
    coco(tmp_path)
    empty = {"images": [], "annotations": [], "categories": coco_json("x")["categories"]}
    write(tmp_path / "annotations" / "instances_test2017.json", json.dumps(empty))
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    split = source.load("train")
    assert [(d.kind, d.handled) for d in split.defects] == [(checks.SPLIT_PROBLEM, "test not offered")]


@pytest.mark.parametrize("path", ["/mnt/other/set/{}", "D:\\sets\\a\\images\\{}", "../../elsewhere/{}"])
def test_a_path_of_another_machine_is_found_by_its_last_part(tmp_path: Path, path: str) -> None:
    def change(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["file_name"] = path.format(image["file_name"])

    split = changed(tmp_path, change)
    assert [r.file for r in split.records] == [tmp_path / "train2017" / f"train{i}.jpg" for i in range(2)]
    assert kinds(split) == [checks.MOVED]


def test_a_last_part_that_is_there_twice_is_told_apart_by_its_folders_or_missing(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        picture(tmp_path / "photos" / folder / "x0.jpg")
    picture(tmp_path / "photos" / "x1.jpg")
    content = coco_json("x")
    content["images"][0]["file_name"] = "/elsewhere/b/x0.jpg"
    content["images"][1]["file_name"] = "/elsewhere/x1.jpg"
    write(tmp_path / "labels.json", json.dumps(content))
    split = open_source(str(tmp_path)).load("train")
    assert [r.file for r in split.records] == [
        tmp_path / "photos" / "b" / "x0.jpg",
        tmp_path / "photos" / "x1.jpg",
    ]
    content["images"][0]["file_name"] = "/elsewhere/c/x0.jpg"
    write(tmp_path / "labels.json", json.dumps(content))
    assert checks.MISSING_IMAGE in kinds(open_source(str(tmp_path)).load("train"))


def test_an_image_of_another_split_never_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    coco(tmp_path)
    (tmp_path / "train2017" / "train0.jpg").unlink()
    picture(tmp_path / "val2017" / "train0.jpg")
    path = tmp_path / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace("train0.jpg", "/mnt/other/train0.jpg"))
    split = open_source(str(tmp_path)).load("train")
    assert [r.file for r in split.records] == [tmp_path / "train2017" / "train1.jpg"]
    assert checks.MISSING_IMAGE in kinds(split)


def test_names_match_in_either_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "K\u00e4fer.jpg", "Ka\u0308fer.jpg"

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = composed
        (tmp_path / "train2017" / "train0.jpg").rename(tmp_path / "train2017" / decomposed)

    split = changed(tmp_path, change)
    assert [len(r.boxes) for r in split.records] == [1, 1]
    assert split.defects == ()


def test_a_file_that_lost_its_end_is_no_reason_to_search_it_again_and_again(tmp_path: Path) -> None:
    coco(tmp_path)
    text = '{"images": [], "annotations": [], "categories": [' + "[1]," * 20_000
    write(tmp_path / "annotations" / "instances_train2017.json", text)
    started = time.process_time()
    with pytest.raises(DataError, match="not valid JSON"):
        open_source(str(tmp_path)).load("val")
    assert time.process_time() - started < 2
