"""VOC folders: their layouts, and every defect their labels can have."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.data import checks
from detsearch_cli.data.formats import _layout
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


def raw(root: Path, data: bytes) -> Split:
    """A set of one sound label file and one of these bytes."""
    one(root, voc_xml([("dog", (1, 1, 9, 9))]))
    picture(root / "JPEGImages" / "b.jpg")
    (root / "Annotations" / "b.xml").write_bytes(data)
    return load(root)


XML = voc_xml([("车", (11, 6, 30, 25))])


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gb2312", "gb2312"),
        ("gbk", "gbk"),
        ("gb2312", "gb18030"),  # tools write characters that the declared one lacks
        ("shift_jis", "shift_jis"),
        ("utf-8", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-8"),  # .NET declares what it had in memory
        (None, "utf-8-sig"),
        (None, "utf-16"),
    ],
)
def test_a_label_file_is_read_in_the_encoding_it_declares(
    tmp_path: Path, declared: str | None, encoding: str
) -> None:
    name = {"shift_jis": "車", "gb18030": "車㐀"}.get(encoding, "车")
    head = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    split = raw(tmp_path, (head + XML.replace("车", name)).encode(encoding))
    assert kinds(split) == []
    assert split.classes == ("dog", name)
    assert split.records[1].boxes.tolist() == [[10, 5, 30, 25]]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'<?xml version="1.0" encoding="nosuch"?><annotation/>', "unknown encoding 'nosuch'"),
        (b'<?xml version="1.0" encoding="hex"?><annotation/>', "encoding hex"),
        (b'<?xml version="1.0" encoding="punycode"?><annotation/>', "no encoding of XML"),
        (XML.encode("gbk"), "not text in the encoding utf-8"),
        (b'<?xml version="1.0" encoding="ascii"?>' + XML.encode(), "not text in the encoding ascii"),
        (b"<annotation>" + b"<a>" * 100_000, "not valid XML"),
        (b'<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>', "entities"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>'.encode("utf-16"), "entities"),
        (b"<annotation>&e;</annotation>", "undefined entity"),
        (b"<annotation>\0</annotation>", "not valid XML"),
        (b"", "not valid XML"),
        (b" " * 8_000_001, "at most 8000000"),
    ],
)
def test_a_label_file_that_cannot_be_read_leaves_its_image_out(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    split = raw(tmp_path, data)
    assert kinds(split) == [checks.BROKEN_LABEL]
    assert reason in split.defects[0].detail
    assert len(split) == 1


def test_a_label_file_of_a_million_elements_inside_each_other_is_no_crash(tmp_path: Path) -> None:
    depth = 300_000
    split = raw(tmp_path, b"<annotation>" + b"<object>" * depth + b"</object>" * depth + b"</annotation>")
    assert (f"{depth - 1} objects inside other elements", "left out") in [
        (d.detail, d.handled) for d in split.defects
    ]


def test_a_named_pipe_among_the_labels_is_a_broken_label(tmp_path: Path) -> None:
    one(tmp_path, voc_xml([("cat", (1, 1, 9, 9))]))
    picture(tmp_path / "JPEGImages" / "pipe.jpg")
    os.mkfifo(tmp_path / "Annotations" / "pipe.xml")
    assert kinds(load(tmp_path)) == [checks.BROKEN_LABEL]


BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"
SIZE = "<size><width>40</width><height>30</height></size>"


@pytest.mark.parametrize(
    "xml",
    [
        f'<annotation xmlns="http://example.com/voc">{SIZE}<object><name>cat</name><difficult>0</difficult>{BOX}'
        "</object></annotation>",
        f'<v:annotation xmlns:v="urn:v">{SIZE}<object><name>cat</name><difficult>0</difficult>{BOX}</object>'
        "</v:annotation>",
        f"<!DOCTYPE annotation>\n<annotation>{SIZE}<object><name> cat\n</name><difficult> 0 </difficult>{BOX}"
        "</object></annotation>",
        f'\n  <?xml version="1.0"?><annotation>{SIZE}<object><difficult>no</difficult>{BOX}<name>cat</name>'
        "</object></annotation>",
    ],
)
def test_namespace_doctype_order_and_space_change_nothing(tmp_path: Path, xml: str) -> None:
    split = one(tmp_path, xml)
    assert kinds(split) == []
    assert split.classes == ("cat",)
    assert split.records[0].boxes.tolist() == [[10, 5, 30, 25]]


@pytest.mark.parametrize(
    ("body", "detail", "boxes"),
    [
        (f"<object><name>cat</name>{BOX}{BOX}</object>", "cat has 2 bndbox", 1),
        (f"<object><name>cat</name><name>dog</name>{BOX}</object>", "cat has 2 name", 1),
        (f"<object><name>cat</name>{BOX.replace('<xmin>', '<xmin>3</xmin><xmin>')}</object>", "2 xmin", 1),
        (f"<objects><object><name>cat</name>{BOX}</object></objects>", "1 objects inside other", 0),
        (BOX, "1 bndbox in other places", 0),
        (f"<object><name>cat</name>{BOX}<parts>{BOX}</parts></object>", "1 bndbox in other places", 1),
    ],
)
def test_what_is_not_read_has_a_line_in_the_report(
    tmp_path: Path, body: str, detail: str, boxes: int
) -> None:
    sound = f"<object><name>dog</name><difficult>0</difficult>{BOX}</object>"
    split = one(tmp_path, f"<annotation>{SIZE}{sound}{body}</annotation>")
    assert any(detail in d.detail for d in split.defects if d.kind == checks.BROKEN_LABEL)
    assert len(split.records[0].boxes) == 1 + boxes


@pytest.mark.parametrize(
    ("written", "difficult", "reported"),
    [
        ("1", True, False),
        ("true", True, False),
        ("Yes", True, False),
        ("0", False, False),
        ("false", False, False),
        ("Unspecified", False, True),
        ("2", False, True),
        ("0.0", False, True),
    ],
)
def test_only_1_true_and_yes_mean_difficult(
    tmp_path: Path, written: str, difficult: bool, reported: bool
) -> None:
    split = one(tmp_path, voc_xml([("cat", (1, 1, 9, 9))], difficult=f"<difficult>{written}</difficult>"))
    assert split.records[0].difficult.tolist() == [difficult]
    assert [d.handled for d in split.defects] == ["taken as not difficult"] * reported


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "9" * 5000, "٣", "1_0", "1,5", "0x1", "", "1 2"])
@pytest.mark.parametrize("field", ["xmin", "width"])
def test_what_is_no_finite_number_in_ascii_is_reported(tmp_path: Path, field: str, value: str) -> None:
    xml = voc_xml([("cat", (11, 6, 30, 25)), ("cat", (1, 1, 9, 9))])
    right = f"<{field}>{11 if field == 'xmin' else 40}</{field}>"
    split = one(tmp_path, xml.replace(right, f"<{field}>{value}</{field}>"))
    assert kinds(split) == [checks.BROKEN_LABEL if field == "xmin" else checks.SIZE]


@pytest.mark.parametrize(
    "layout", ["{split}/images {split}/annotations", "images/{split} annotations/{split}"]
)
def test_labels_in_a_folder_of_their_own_for_each_split(tmp_path: Path, layout: str) -> None:
    for split in ("train", "valid"):
        images, labels = layout.format(split=split).split()
        picture(tmp_path / images / f"{split}.jpg")
        write(tmp_path / labels / f"{split}.xml", voc_xml([("cat", (11, 6, 30, 25))]))
    images = layout.format(split="test").split()[0]
    picture(tmp_path / images / "t.jpg")
    source = open_source(str(tmp_path))
    assert (source.format, source.splits) == ("voc", ("train", "val"))
    assert source.load("val").records[0].boxes.tolist() == [[10, 5, 30, 25]]
    assert [(d.kind, d.handled) for d in source.load("train").defects] == [
        (checks.SPLIT_PROBLEM, "test not offered")
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "nowhere\n", "a\0b\n", "z" * 5000])
def test_a_list_that_leads_to_no_label_leaves_the_other_splits_usable(tmp_path: Path, text: str) -> None:
    voc(tmp_path)
    write(tmp_path / "ImageSets" / "Main" / "test.txt", text)
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    assert [(d.kind, d.handled) for d in source.load("train").defects] == [
        (checks.SPLIT_PROBLEM, "test not offered")
    ]


@pytest.mark.parametrize(
    ("filename", "reason"),
    [("a.jpg", "is the one that the XML names"), ("C:\\x\\a.jpg", "XML names"), ("other", "comes first")],
)
def test_a_mask_of_the_same_stem_is_not_taken_for_the_picture(
    tmp_path: Path, filename: str, reason: str
) -> None:
    xml = voc_xml([("cat", (1, 1, 9, 9))]).replace("<size>", f"<filename>{filename}</filename><size>")
    picture(tmp_path / "JPEGImages" / "a.png", mode="L")
    split = one(tmp_path, xml)
    assert [r.file.name for r in split.records if r.file] == ["a.jpg"]
    assert [(d.kind, Path(d.file).name) for d in split.defects] == [(checks.DUPLICATE_ID, "a.png")]
    assert reason in split.defects[0].detail


def test_a_file_name_in_a_label_leads_out_of_no_folder(tmp_path: Path) -> None:
    picture(tmp_path / "secret.jpg")
    xml = voc_xml([("cat", (1, 1, 9, 9))])
    one(tmp_path / "set", xml)
    outside = xml.replace("<size>", "<filename>../../secret.jpg</filename><size>")
    write(tmp_path / "set" / "Annotations" / "b.xml", outside)
    split = load(tmp_path / "set")
    assert len(split) == 1
    assert kinds(split) == [checks.MISSING_IMAGE]


def test_foreign_xml_among_the_labels_is_looked_past(tmp_path: Path) -> None:
    write(tmp_path / "Annotations" / "a-project.xml", "<project/>")
    write(tmp_path / "Annotations" / "._hidden.xml", "\0\0")
    picture(tmp_path / "JPEGImages" / "b.jpg")
    write(tmp_path / "Annotations" / "b.xml", voc_xml([("cat", (1, 1, 9, 9))]))
    assert len(load(tmp_path)) == 1


@pytest.mark.parametrize(("image", "label"), [("Ka\u0308fer", "K\u00e4fer"), ("K\u00e4fer", "Ka\u0308fer")])
def test_names_of_either_unicode_form_are_one_name(tmp_path: Path, image: str, label: str) -> None:
    picture(tmp_path / "JPEGImages" / f"{image}.jpg")
    write(tmp_path / "Annotations" / f"{label}.xml", voc_xml([("cat", (1, 1, 9, 9))]))
    write(tmp_path / "ImageSets" / "Main" / "train.txt", f"{image}\n")
    split = load(tmp_path)
    assert (len(split), kinds(split)) == (1, [])


def test_a_set_in_which_no_list_leads_to_a_label_says_so(tmp_path: Path) -> None:
    voc(tmp_path)
    for name in ("train", "val"):
        write(tmp_path / "ImageSets" / "Main" / f"{name}.txt", "nowhere\n")
    with pytest.raises(DataError, match="VOC without a split that can be used: none of its 1 ids has an XML"):
        open_source(str(tmp_path))


def test_a_pipe_in_the_place_of_the_class_names_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(DataError, match=r"classes\.txt is a pipe"):
        _layout.listed_classes(tmp_path)
