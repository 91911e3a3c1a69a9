"""YOLO folders: their layouts, and every defect their labels can have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.data import checks
from detsearch_cli.data.source import open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import picture, write, yolo


def load(root: Path, split: str = "train") -> Split:
    return open_source(str(root)).load(split)


def kinds(split: Split) -> list[str]:
    return [d.kind for d in split.defects]


def test_fewer_names_than_class_ids_is_an_error_naming_the_line(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "train1.txt", "0 .5 .5 .2 .2\n2 .5 .5 .2 .2\n")
    with pytest.raises(
        DataError, match=r"train1\.txt line 2: class id 2 has no name, .*data\.yaml names only 2"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("nc: 3\nnames: [cat, dog]", "nc is 3 but 2 names"),
        ("names: [cat, cat]", "'cat' stands for two ids"),
        ("names: {0: cat, 2: dog}", "without gaps"),
        ("names: []", "list of class names"),
    ],
)
def test_names_that_would_shift_labels_are_refused(tmp_path: Path, names: str, reason: str) -> None:
    yolo(tmp_path)
    write(tmp_path / "data.yaml", f"train: images/train\nval: images/val\n{names}\n")
    with pytest.raises(DataError, match=reason):
        load(tmp_path)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 .5 .5 .2", checks.BROKEN_LABEL),
        ("cat .5 .5 .2 .2", checks.BROKEN_LABEL),
        ("-1 .5 .5 .2 .2", checks.BROKEN_LABEL),
        ("0.5 .5 .5 .2 .2", checks.BROKEN_LABEL),
        ("0 nan .5 .2 .2", checks.BROKEN_LABEL),
        ("0 .5 .5 0 .2", checks.ZERO_AREA),
        ("0 20 15 10 10", checks.OUTSIDE),
    ],
)
def test_unusable_lines_are_left_out_and_recorded(tmp_path: Path, line: str, kind: str) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "train0.txt", f"{line}\n\n1 .5 .5 .2 .2\n")
    split = load(tmp_path)
    assert kinds(split) == [kind]
    assert split.records[0].labels.tolist() == [1]


def test_a_polygon_becomes_its_bounding_box(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "train0.txt", "1 .25 .5 .5 .1 .75 .9\n")
    np.testing.assert_allclose(load(tmp_path).records[0].boxes, [[10, 3, 30, 27]], rtol=1e-6)


def test_rounding_at_the_border_is_no_defect(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "train0.txt", "0 0.500001 .5 1.000001 1\n")
    split = load(tmp_path)
    assert kinds(split) == []
    np.testing.assert_allclose(split.records[0].boxes, [[0, 0, 40, 30]], atol=1e-4)


def test_files_without_partner_are_recorded_and_backgrounds_kept(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels" / "train" / "train0.txt").unlink()
    write(tmp_path / "labels" / "train" / "ghost.txt", "0 .5 .5 .2 .2\n")
    split = load(tmp_path)
    assert [(d.kind, Path(d.file).name) for d in split.defects] == [
        (checks.IMAGE_ONLY, "train0.jpg"),
        (checks.LABEL_ONLY, "ghost.txt"),
    ]
    assert [len(r.boxes) for r in split.records] == [0, 1]


def test_list_files_and_doubles_in_them(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(
        tmp_path / "list.txt", "./images/train/train1.jpg\nimages/train/train0.jpg\nimages/train/train1.jpg\n"
    )
    write(tmp_path / "data.yaml", "train: list.txt\nval: [images/val]\nnames: {0: cat, 1: dog}\n")
    split = load(tmp_path)
    assert [r.file.name for r in split.records if r.file] == ["train1.jpg", "train0.jpg"]
    assert kinds(split) == [checks.DUPLICATE_ID]


def test_roboflow_paths_and_a_promised_split_that_is_missing(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / "images" / f"{split}.jpg")
        write(tmp_path / split / "labels" / f"{split}.txt", "0 .5 .5 .5 .5\n")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cat']\n"
    write(tmp_path / "data.yaml", text)
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    assert kinds(source.load("train")) == [checks.SPLIT_PROBLEM]
    assert len(source.load("val").records[0].boxes) == 1


def test_validating_on_the_training_images_is_not_offered(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert source.load("train").defects[0].detail == "val is the same images as train"


def test_labels_beside_images_with_classes_txt(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / f"{split}.jpg")
        write(tmp_path / split / f"{split}.txt", "1 .5 .5 .5 .5\n")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    source = open_source(str(tmp_path))
    assert (source.format, source.splits) == ("yolo", ("train", "test"))
    assert source.load("test").records[0].labels.tolist() == [1]


def test_the_label_folder_is_the_last_images_in_the_path(tmp_path: Path) -> None:
    root = yolo(tmp_path / "images" / "set")
    assert [len(r.boxes) for r in load(root).records] == [1, 1]


def test_a_broken_data_yaml_is_named(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "data.yaml", "names: [cat, dog\ntrain: {")
    with pytest.raises(DataError, match=r"data\.yaml is not valid YAML"):
        open_source(str(tmp_path))


def test_a_yaml_with_names_alone_makes_no_data_set(tmp_path: Path) -> None:
    write(tmp_path / "people.yaml", "names: [ann, bob]\n")
    picture(tmp_path / "portrait.jpg")
    with pytest.raises(DataError, match="not a data set of a known format"):
        open_source(str(tmp_path))
