"""VOC folders: their layouts, and every defect their labels can have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.data import checks
from detsearch_cli.data.source import load_split, open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import picture, voc, voc_xml, write


def load(root: Path, split: str = "train") -> Split:
    return open_source(str(root)).load(split)


def one(root: Path, xml: str, **image: object) -> Split:
    """A set of one image and one label file."""
    picture(root / "JPEGImages" / "a.jpg", **image)  # type: ignore[arg-type]
    write(root / "Annotations" / "a.xml", xml)
    return load(root)


def kinds(split: Split) -> list[str]:
    return [d.kind for d in split.defects]


def test_inclusive_pixels_become_continuous(tmp_path: Path) -> None:
    split = one(tmp_path, voc_xml([("cat", (1, 1, 40, 30)), ("cat", (40, 30, 40, 30))]))
    assert split.records[0].boxes.tolist() == [[0, 0, 40, 30]]
    assert kinds(split) == [checks.ZERO_AREA]


def test_counting_from_zero_is_no_defect(tmp_path: Path) -> None:
    split = one(tmp_path, voc_xml([("cat", (0, 0, 39, 29))]))
    assert split.records[0].boxes.tolist() == [[0, 0, 39, 29]]
    assert kinds(split) == []


@pytest.mark.parametrize(
    ("box", "kind", "kept"),
    [
        ((-5, 1, 20, 20), checks.OUTSIDE, [[0, 0, 20, 20]]),
        ((11, 11, 60, 20), checks.OUTSIDE, [[10, 10, 40, 20]]),
        ((50, 1, 60, 20), checks.OUTSIDE, []),
        ((5, 5, 5, 20), checks.ZERO_AREA, []),
        ((30, 25, 11, 6), checks.SWAPPED, [[10, 5, 30, 25]]),
        (("nan", 1, 20, 20), checks.BROKEN_LABEL, []),
        (("wide", 1, 20, 20), checks.BROKEN_LABEL, []),
    ],
)
def test_bad_boxes_are_clipped_ordered_or_left_out(
    tmp_path: Path, box: tuple[float, float, float, float], kind: str, kept: list[list[float]]
) -> None:
    split = one(tmp_path, voc_xml([("cat", (1, 1, 9, 9)), ("cat", box)]))
    assert kinds(split) == [kind]
    assert split.defects[0].file == (tmp_path / "Annotations" / "a.xml").as_posix()
    assert split.records[0].boxes.tolist() == [[0, 0, 9, 9], *kept]


@pytest.mark.parametrize("size", [(80, 60), (0, 0), None])
def test_a_contradicting_size_field_gives_way_to_the_image(
    tmp_path: Path, size: tuple[int, int] | None
) -> None:
    split = one(tmp_path, voc_xml([("cat", (1, 1, 9, 9))], size=size))
    assert kinds(split) == [checks.SIZE]
    assert (split.records[0].width, split.records[0].height) == (40, 30)


def test_difficult_is_kept_and_its_absence_recorded(tmp_path: Path) -> None:
    split = one(tmp_path, voc_xml([("cat", (1, 1, 9, 9))], difficult="<difficult>1</difficult>"))
    assert split.records[0].difficult.tolist() == [True]
    split = one(tmp_path, voc_xml([("cat", (1, 1, 9, 9)), ("cat", (2, 2, 9, 9))], difficult=""))
    assert split.records[0].difficult.tolist() == [False, False]
    assert kinds(split) == [checks.NO_DIFFICULT]


def test_boxes_of_the_stored_frame_turn_with_an_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = one(tmp_path / "stored", voc_xml([("cat", (1, 1, 10, 5))], size=(40, 30)), exif=exif)
    assert (stored.records[0].width, stored.records[0].height) == (30, 40)
    assert stored.records[0].boxes.tolist() == [[25, 0, 30, 10]]
    shown = one(tmp_path / "shown", voc_xml([("cat", (1, 1, 10, 5))], size=(30, 40)), exif=exif)
    assert shown.records[0].boxes.tolist() == [[0, 0, 10, 5]]
    assert kinds(stored) == kinds(shown) == [checks.EXIF]


def test_modes_other_than_rgb_are_recorded(tmp_path: Path) -> None:
    assert kinds(one(tmp_path, voc_xml([("cat", (1, 1, 9, 9))]), mode="L")) == ["grey image"]


def test_spellings_of_one_class_are_one_class(tmp_path: Path) -> None:
    voc(tmp_path)
    write(tmp_path / "Annotations" / "val0.xml", voc_xml([("Cat ", (1, 1, 9, 9)), ("cat", (2, 2, 9, 9))]))
    split = load(tmp_path, "val")
    assert split.classes == ("cat", "dog")
    assert split.records[0].labels.tolist() == [0, 0]
    assert kinds(split) == [checks.CLASS_SPELLING]
    assert load(tmp_path, "train").classes == ("cat", "dog")


def test_names_that_differ_in_case_are_two_classes_when_each_is_used_in_earnest(tmp_path: Path) -> None:
    voc(tmp_path)
    for split in ("train", "val"):
        letters = [("a", (1, 1, 9, 9)), ("A", (5, 5, 12, 12))]
        write(tmp_path / "Annotations" / f"{split}0.xml", voc_xml(letters))
    split = load(tmp_path, "train")
    assert split.classes == ("A", "a", "dog")
    assert split.records[0].labels.tolist() == [1, 0]
    assert [(d.kind, d.handled[:19]) for d in split.defects] == [
        (checks.CLASS_SPELLING, "kept as two classes")
    ]


def test_a_list_of_classes_keeps_rare_spellings_apart_and_joins_the_rest(tmp_path: Path) -> None:
    voc(tmp_path)
    letters = [("a", (1, 1, 9, 9))] * 20 + [("A", (5, 5, 12, 12))]
    write(tmp_path / "Annotations" / "val0.xml", voc_xml(letters))
    assert load(tmp_path, "val").classes == ("a", "cat", "dog")
    write(tmp_path / "classes.txt", "a\nA\n")
    split = load(tmp_path, "val")
    assert split.classes == ("A", "a", "cat", "dog")
    assert checks.CLASS_SPELLING not in kinds(split)
    write(tmp_path / "classes.txt", "A\n")
    assert load(tmp_path, "val").classes == ("A", "cat", "dog")


def test_a_likely_typo_is_reported_in_the_file_that_has_it(tmp_path: Path) -> None:
    voc(tmp_path)
    write(tmp_path / "Annotations" / "train0.xml", voc_xml([("helmet", (1, 1, 9, 9))] * 200))
    write(tmp_path / "Annotations" / "val0.xml", voc_xml([("helmt", (1, 1, 9, 9))]))
    split = load(tmp_path, "val")
    assert split.classes == load(tmp_path, "train").classes == ("dog", "helmet", "helmt")
    assert [(d.kind, Path(d.file).name) for d in split.defects] == [(checks.CLASS_SPELLING, "val0.xml")]
    assert "may be a typo of 'helmet'" in split.defects[0].detail


def test_files_without_partner_and_doubles_are_recorded(tmp_path: Path) -> None:
    voc(tmp_path)
    picture(tmp_path / "JPEGImages" / "lonely.jpg")
    write(tmp_path / "Annotations" / "ghost.xml", voc_xml([("cat", (1, 1, 9, 9))]))
    (tmp_path / "Annotations" / "train1.xml").unlink()
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "train0\ntrain0\ntrain1\nnowhere\n")
    split = load(tmp_path)
    assert [(d.kind, Path(d.file).name) for d in split.defects] == [
        (checks.DUPLICATE_ID, "train.txt"),
        (checks.IMAGE_ONLY, "train1.jpg"),
        (checks.MISSING_IMAGE, "nowhere.xml"),
        (checks.LABEL_ONLY, "ghost.xml"),
        (checks.IMAGE_ONLY, "lonely.jpg"),
    ]
    assert len(split) == 1
    assert kinds(load(tmp_path, "val")) == []


def test_a_broken_label_file_leaves_its_image_out(tmp_path: Path) -> None:
    voc(tmp_path)
    write(tmp_path / "Annotations" / "train0.xml", "<annotation><object>")
    split = load(tmp_path)
    assert len(split) == 1
    assert kinds(split) == [checks.BROKEN_LABEL]


def test_a_part_of_an_object_is_no_object_and_its_name_no_class(tmp_path: Path) -> None:
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    part = f"<part><name>hand</name><bndbox>{corners}</bndbox></part>"
    xml = voc_xml([("cat", (1, 1, 9, 9))]).replace("</object>", f"{part}</object>")
    split = one(tmp_path, xml)
    assert split.classes == ("cat",)
    assert len(split.records[0].boxes) == 1


def test_two_years_mean_07_plus_12_trainval_against_07_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devkit = tmp_path / "VOCdevkit"
    for year in ("2007", "2012"):
        root = voc(devkit / f"VOC{year}")
        lists = root / "ImageSets" / "Main"
        write(lists / "trainval.txt", "train0\ntrain1\nval0\nval1\n")
        write(lists / "cat_train.txt", "train0  1\ntrain1 -1\n")
        write(lists / "test.txt", "test0\n")
    picture(devkit / "VOC2007" / "JPEGImages" / "test0.jpg")
    write(devkit / "VOC2007" / "Annotations" / "test0.xml", voc_xml([("bird", (1, 1, 9, 9))]))
    monkeypatch.setenv("DETSEARCH_DATA", str(tmp_path))
    for spec in ("voc", str(devkit)):
        source = open_source(spec)
        assert source.splits == ("train", "test")
        train, test = source.load("train"), source.load("test")
        assert (len(train), len(test)) == (8, 1)
        assert train.classes == test.classes == ("bird", "cat", "dog")
        assert {r.file.parts[-3] for r in train.records if r.file} == {"VOC2007", "VOC2012"}
    assert open_source("voc07").splits == ("train", "val", "test")
    assert len(load_split(open_source("voc12"), "train+val")) == 4


def test_trainval_alone_is_train(tmp_path: Path) -> None:
    voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "train.txt").rename(lists / "trainval.txt")
    (lists / "val.txt").rename(lists / "test.txt")
    assert open_source(str(tmp_path)).splits == ("train", "test")


def test_labels_beside_images_in_split_folders(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / split / f"{split}.jpg")
        write(tmp_path / split / f"{split}.xml", voc_xml([("cat", (11, 6, 30, 25))]))
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    np.testing.assert_array_equal(source.load("val").records[0].boxes, [[10, 5, 30, 25]])
    assert source.load("train").defects == ()


def test_strict_names_the_first_defect_and_the_count(tmp_path: Path) -> None:
    one(tmp_path, voc_xml([("cat", (1, 1, 9, 9)), ("cat", (5, 5, 5, 9)), ("cat", (-9, 1, 9, 9))]))
    with pytest.raises(DataError, match=r"strict: .* has 2 defects, the first is zero-area box in .*a\.xml"):
        open_source(str(tmp_path)).load("train", strict=True)


def test_strict_accepts_sound_data(tmp_path: Path) -> None:
    assert len(open_source(str(voc(tmp_path))).load("train", strict=True)) == 2
