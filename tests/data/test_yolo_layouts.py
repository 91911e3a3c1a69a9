"""YOLO folders as tools write them: darknet, CVAT, LabelImg, Windows, other machines; and what their yaml may say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detsearch_cli.data import checks
from detsearch_cli.data.source import open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import picture, write, yolo

LABEL = "1 .5 .5 .5 .5\n"


def load(root: Path, split: str = "train") -> Split:
    return open_source(str(root)).load(split)


def kinds(split: Split) -> list[str]:
    return [d.kind for d in split.defects]


def flat(root: Path, *names: str) -> Path:
    """Images with a label file beside each."""
    for name in names or ("a", "b"):
        picture(root / f"{name}.jpg")
        write(root / f"{name}.txt", LABEL)
    return root


# ---------------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "written", ["[cat, dog]", "{0: cat, 1: dog}", "{'0': cat, '1': dog}", "{1: dog, 0: cat}"]
)
def test_names_are_read_from_a_list_and_from_numbers_written_any_way(tmp_path: Path, written: str) -> None:
    write(yolo(tmp_path) / "data.yaml", f"train: images/train\nnames: {written}\n")
    assert load(tmp_path).classes == ("cat", "dog")


def test_a_name_is_the_text_that_was_written(tmp_path: Path) -> None:
    text = "train: images/train\nnc: 9\nnames: [yes, no, 010, 1.50, 2024-01-01, null, ~, 2020-99-99, on]\n"
    write(yolo(tmp_path) / "data.yaml", text)
    assert load(tmp_path).classes == (
        "yes",
        "no",
        "010",
        "1.50",
        "2024-01-01",
        "null",
        "~",
        "2020-99-99",
        "on",
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("names: [cat, ]\nnc: 2", "nc is 2 but 1 names"),
        ("names:\n- cat\n-\n- dog", "name of class 1 must be text, it is empty"),
        ("names: [cat, [dog]]", "name of class 1 must be text"),
        ("names: {yes: cat, no: dog}", "without gaps"),
        ("names: {a: cat}", "without gaps"),
        ("names: cat", "list of class names"),
        ("names:", "list of class names"),
        ("names: [cat, dog]\nnc: many", "nc is many but 2"),
        ("names: &a [*a]", "not valid YAML"),
        ("names: !!set {cat, dog}", "tag"),
        ("names: [cat, dog]\nkpt_shape: 17", "kpt_shape must be"),
        ("names: [cat, dog]\nkpt_shape: [17, 4]", "kpt_shape must be"),
        ("names: [cat, dog]\nkpt_shape: [1e9, 3]", "kpt_shape must be"),
        ("names: [cat, dog]\nval: {a: b}", "val must be a folder"),
        ("names: [cat, dog]\nval: [[a]]", "val must be a folder"),
    ],
)
def test_a_yaml_that_contradicts_itself_ends_in_one_sentence(tmp_path: Path, names: str, reason: str) -> None:
    write(yolo(tmp_path) / "data.yaml", f"train: images/train\n{names}\n")
    with pytest.raises(DataError, match=reason) as caught:
        load(tmp_path)
    assert "data.yaml" in str(caught.value)


def test_empty_lines_at_the_end_of_a_list_of_names_count_for_nothing(tmp_path: Path) -> None:
    write(flat(tmp_path) / "classes.txt", "cat\r\ndog\r\n\r\n  \n")
    assert load(tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("text", ["cat\n\ndog\n", "\ncat\ndog\n"])
def test_an_empty_line_between_names_is_refused_because_ids_would_shift(tmp_path: Path, text: str) -> None:
    write(flat(tmp_path) / "classes.txt", text)
    with pytest.raises(DataError, match=r"classes\.txt line [12] is empty"):
        load(tmp_path)


def test_a_name_listed_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    write(flat(tmp_path) / "classes.txt", "cat\ncat\n")
    with pytest.raises(DataError, match="'cat' stands for two ids"):
        load(tmp_path)


@pytest.mark.parametrize("place", ["train/labels", "train/images", "labels", "."])
@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_class_names_lie_where_annotation_tools_put_them(tmp_path: Path, place: str, name: str) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / f"{split}.jpg")
        write(tmp_path / split / "labels" / f"{split}.txt", LABEL)
    write(tmp_path / place / name, "dog\nperson\n")
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    for split in source.splits:
        assert source.load(split).classes == ("dog", "person")
        assert kinds(source.load(split)) == []


def test_lists_of_names_of_two_splits_go_on_or_contradict_each_other(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / f"{split}.jpg")
        write(tmp_path / split / "labels" / f"{split}.txt", LABEL)
    write(tmp_path / "train" / "labels" / "classes.txt", "dog\nperson\n")
    write(tmp_path / "val" / "labels" / "classes.txt", "dog\nperson\ncat\n")
    assert load(tmp_path).classes == load(tmp_path, "val").classes == ("dog", "person", "cat")
    write(tmp_path / "val" / "labels" / "classes.txt", "person\ndog\n")
    with pytest.raises(DataError, match="give different class names"):
        load(tmp_path)


def test_labels_without_names_end_in_one_sentence_that_says_where_to_write_them(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / f"{split}.jpg")
        write(tmp_path / split / "labels" / f"{split}.txt", LABEL)
    with pytest.raises(
        DataError, match=r"YOLO labels such as .*train\.txt, but no class names: write .*classes\.txt"
    ):
        open_source(str(tmp_path))


# ---------------------------------------------------------------------- key points and polygons


@pytest.mark.parametrize(("shape", "numbers"), [("[2, 2]", 4), ("[4, 3]", 12), ("['1', 2]", 2)])
def test_key_points_of_a_pose_set_are_no_corners(tmp_path: Path, shape: str, numbers: int) -> None:
    root = yolo(tmp_path)
    before = load(root).records[0].boxes.tolist()
    for path in sorted((root / "labels" / "train").iterdir()):
        write(path, path.read_text().strip() + " .9" * numbers + "\n")
    write(
        root / "data.yaml", f"train: images/train\nval: images/val\nkpt_shape: {shape}\nnames: [cat, dog]\n"
    )
    split = load(root)
    assert split.records[0].boxes.tolist() == before
    assert [(d.kind, d.handled) for d in split.defects] == [
        (checks.EXTRA_NUMBERS, "boxes read, key points passed over")
    ]
    assert kinds(load(root, "val")) == []  # said once


def test_a_line_that_is_neither_box_nor_pose_is_left_out_of_a_pose_set(tmp_path: Path) -> None:
    write(
        yolo(tmp_path) / "data.yaml",
        "train: images/train\nkpt_shape: [4, 3]\nnames: [cat, dog]\n",
    )
    write(tmp_path / "labels" / "train" / "train0.txt", "1 .25 .5 .5 .1 .75 .9\n" + LABEL)
    split = load(tmp_path)
    assert kinds(split) == [checks.EXTRA_NUMBERS, checks.BROKEN_LABEL]
    assert "line 1: expected class cx cy w h and 12 numbers of key points" in split.defects[1].detail
    assert len(split.records[0].boxes) == 1


def test_polygons_are_reported_once_a_split(tmp_path: Path) -> None:
    yolo(tmp_path)
    for name in ("train0", "train1"):
        write(tmp_path / "labels" / "train" / f"{name}.txt", "1 .25 .5 .5 .1 .75 .9\n" * 2)
    found = [d for d in load(tmp_path).defects if d.kind == checks.EXTRA_NUMBERS]
    assert [d.detail for d in found] == ["4 lines of seven or more numbers in this split"]
    assert "kpt_shape" in found[0].handled


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "9" * 5000, "٣", "1_0", "0x1", "1,5", "\0"])
@pytest.mark.parametrize("column", [0, 1, 4, 6])
def test_what_is_no_finite_number_in_ascii_leaves_its_line_out(
    tmp_path: Path, value: str, column: int
) -> None:
    yolo(tmp_path)
    words = ["1", ".5", ".5", ".2", ".2", ".3", ".3"][: 7 if column == 6 else 5]
    words[column] = value
    write(tmp_path / "labels" / "train" / "train0.txt", " ".join(words) + "\n" + LABEL)
    split = load(tmp_path)
    assert kinds(split) == [checks.BROKEN_LABEL]
    assert split.records[0].labels.tolist() == [1]


@pytest.mark.parametrize(("written", "kept"), [("1.0", True), ("1e0", True), ("1.5", False), ("1e30", False)])
def test_a_class_id_is_a_whole_number_however_it_is_written(tmp_path: Path, written: str, kept: bool) -> None:
    write(yolo(tmp_path) / "labels" / "train" / "train0.txt", f"{written} .5 .5 .2 .2\n")
    assert load(tmp_path).records[0].labels.tolist() == [1] * kept


@pytest.mark.parametrize("data", ["0 .5 .5 .1 .1".encode("utf-16"), b"\xff\x00\x01"])
def test_a_label_file_that_is_no_text_leaves_its_image_out(tmp_path: Path, data: bytes) -> None:
    (yolo(tmp_path) / "labels" / "train" / "train0.txt").write_bytes(data)
    split = load(tmp_path)
    assert kinds(split) == [checks.BROKEN_LABEL]
    assert split.defects[0].handled == "image left out"
    assert len(split) == 1


# ---------------------------------------------------------------------- where things lie


def test_what_cvat_and_darknet_write_is_read(tmp_path: Path) -> None:
    flat(tmp_path / "obj_train_data", "f0", "f1")
    write(tmp_path / "obj.names", "bolt\nnut\n")
    settings = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(tmp_path / "obj.data", settings)
    write(tmp_path / "train.txt", "data/obj_train_data/f0.jpg\ndata/obj_train_data/f1.jpg\n")
    source = open_source(str(tmp_path))
    assert (source.format, source.splits) == ("yolo", ("train",))
    split = source.load("train")
    assert split.classes == ("bolt", "nut")
    assert [r.labels.tolist() for r in split.records] == [[1], [1]]
    assert [(d.kind, d.detail) for d in split.defects] == [
        (checks.SPLIT_PROBLEM, "val: data/valid.txt does not exist")
    ]
    write(tmp_path / "obj.data", settings.replace("= 2", "= 3"))
    with pytest.raises(DataError, match=r"obj\.data: classes is 3 but 2 names"):
        open_source(str(tmp_path))


def test_list_files_beside_a_file_of_names_need_no_yaml(tmp_path: Path) -> None:
    flat(tmp_path / "pictures", "a", "b", "c")
    write(tmp_path / "coco.names", "cat\ndog\n")
    write(tmp_path / "train.txt", "pictures/a.jpg\npictures/b.jpg\n")
    write(tmp_path / "valid.txt", "pictures/c.jpg\n")
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    assert [len(source.load(s)) for s in source.splits] == [2, 1]


@pytest.mark.parametrize(
    "written",
    [
        "images\\train",
        "D:\\sets\\it\\images\\train",
        "/content/train2/it/images/train",
        "../../images/train",
        "x/train",
    ],
)
def test_a_folder_is_found_by_the_last_parts_of_its_path(tmp_path: Path, written: str) -> None:
    write(
        yolo(tmp_path) / "data.yaml",
        f"path: C:\\sets\ntrain: {written}\nval: images/val\nnames: [cat, dog]\n",
    )
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    assert len(source.load("train")) == 2
    moved = [d.detail for d in source.load("train").defects]
    assert moved == [] or written in moved[0]


def test_a_folder_of_another_split_is_never_taken_for_a_missing_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "images" / f"{name}.jpg")
        write(tmp_path / "labels" / f"{name}.txt", LABEL)
    picture(tmp_path / "train" / "images" / "t.jpg")
    write(tmp_path / "train" / "labels" / "t.txt", LABEL)
    text = "train: ../train/images\nval: ../valid/images\ntest: /x/test\nnames: [cat, dog]\n"
    write(tmp_path / "data.yaml", text)
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert kinds(source.load("train")) == [checks.SPLIT_PROBLEM] * 2


def test_images_of_a_list_are_found_by_their_last_part_where_it_is_there_once(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "images" / "val" / "train0.jpg").write_bytes(b"")
    lines = [
        "/data/other/train0.jpg",  # two of that name, and nothing says which
        "C:\\x\\train1.jpg",
        "/data/x/val/train1.jpg",  # the one of that name is of another split
    ]
    write(tmp_path / "list.txt", "\n".join(lines))
    write(tmp_path / "data.yaml", "train: list.txt\nnames: [cat, dog]\n")
    split = load(tmp_path)
    assert [r.file.name for r in split.records if r.file] == ["train1.jpg"]
    assert sorted(kinds(split)) == [checks.MISSING_IMAGE] * 2 + [checks.MOVED]


def test_lines_of_a_list_that_name_no_image_are_counted_and_not_shown(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "secret.txt", "password 1234\n")
    write(tmp_path / "list.txt", "images/train/train0.jpg\npassword 1234\n")
    write(tmp_path / "data.yaml", "train: list.txt\nval: secret.txt\nnames: [cat, dog]\n")
    split = load(tmp_path)
    assert [(d.kind, d.handled) for d in split.defects] == [
        (checks.SPLIT_PROBLEM, "val not offered"),
        (checks.BROKEN_LABEL, "line left out"),
    ]
    assert "password" not in str(split.defects)


@pytest.mark.parametrize("how", ["folder", "list", "missing"])
def test_a_split_without_images_is_reported_and_the_others_are_offered(tmp_path: Path, how: str) -> None:
    yolo(tmp_path)
    test = {"folder": "images/test", "list": "list.txt", "missing": "list.txt"}[how]
    (tmp_path / "images" / "test").mkdir()
    write(tmp_path / "list.txt", "nowhere.jpg\n" if how == "missing" else "\n")
    text = f"train: images/train\nval: images/val\ntest: {test}\nnames: [cat, dog]\n"
    write(tmp_path / "data.yaml", text)
    source = open_source(str(tmp_path))
    assert source.splits == ("train", "val")
    assert [(d.kind, d.handled) for d in source.load("train").defects] == [
        (checks.SPLIT_PROBLEM, "test not offered")
    ]


def test_a_split_without_a_single_label_file_is_said_in_one_line(tmp_path: Path) -> None:
    yolo(tmp_path)
    for path in (tmp_path / "labels" / "val").iterdir():
        path.unlink()
    split = load(tmp_path, "val")
    assert kinds(split) == [checks.IMAGE_ONLY, checks.IMAGE_ONLY, checks.SPLIT_PROBLEM]
    assert split.defects[-1].detail == "none of the 2 images of val has a label file"


def test_two_images_of_one_label_file_are_one_image(tmp_path: Path) -> None:
    yolo(tmp_path)
    picture(tmp_path / "images" / "train" / "train0.png", mode="L")
    split = load(tmp_path)
    assert [r.file.name for r in split.records if r.file] == ["train0.jpg", "train1.jpg"]
    assert [(d.kind, Path(d.file).name) for d in split.defects] == [(checks.DUPLICATE_ID, "train0.png")]


@pytest.mark.parametrize("name", ["data.yaml", "dataset.yml", "coco8.yaml"])
def test_the_line_of_a_mistake_in_the_yaml_reaches_the_user_whatever_its_name(
    tmp_path: Path, name: str
) -> None:
    (yolo(tmp_path) / "data.yaml").unlink()
    write(tmp_path / name, '# ours\npath: "C:\\Users\\me\\set"\ntrain: images/train\nnames: [cat, dog]\n')
    with pytest.raises(
        DataError, match=rf"{name} is not valid YAML: line 2: .* write / or leave the quotes out"
    ):
        open_source(str(tmp_path))


def test_a_broken_yaml_that_describes_no_set_is_none_of_our_business(tmp_path: Path) -> None:
    write(yolo(tmp_path) / "a-config.yaml", "jobs: [")
    (tmp_path / "._data.yaml").write_bytes(b"\x00\xff")
    assert len(load(tmp_path)) == 2


@pytest.mark.parametrize("written", ["/dev/zero", "pipe", '"a\\0b"', "q" * 5000, "../../../../etc/hostname"])
def test_what_is_no_folder_and_no_list_is_no_split(tmp_path: Path, written: str) -> None:
    os.mkfifo(yolo(tmp_path) / "pipe")
    write(tmp_path / "data.yaml", f"train: images/train\nval: {written}\nnames: [cat, dog]\n")
    source = open_source(str(tmp_path))
    assert source.splits == ("train",)
    assert kinds(source.load("train")) == [checks.SPLIT_PROBLEM]


def test_a_list_of_another_format_in_any_encoding_is_looked_past(tmp_path: Path) -> None:
    flat(tmp_path)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    assert len(load(tmp_path)) == 2


NFC, NFD = "K\u00e4fer", "Ka\u0308fer"


@pytest.mark.parametrize(("image", "label"), [(NFD, NFC), (NFC, NFD)])
def test_names_of_either_unicode_form_are_one_name(tmp_path: Path, image: str, label: str) -> None:
    picture(tmp_path / "images" / "train" / f"{image}.jpg")
    picture(tmp_path / "images" / "val" / f"{image}2.jpg")
    write(tmp_path / "labels" / "train" / f"{label}.txt", LABEL)
    write(tmp_path / "labels" / "val" / f"{label}2.txt", LABEL)
    write(tmp_path / "val.txt", f"C:\\x\\images\\val\\{label}2.jpg\n")
    write(tmp_path / "data.yaml", "train: images/train\nval: val.txt\nnames: [cat, dog]\n")
    train, val = load(tmp_path), load(tmp_path, "val")
    assert [r.labels.tolist() for r in (*train.records, *val.records)] == [[1], [1]]
    assert kinds(train) == []


def test_a_label_that_is_there_twice_is_reported(tmp_path: Path) -> None:
    write(yolo(tmp_path) / "labels" / "train" / "train0.txt", LABEL * 2)
    assert kinds(load(tmp_path)) == [checks.DUPLICATE_LABEL]
