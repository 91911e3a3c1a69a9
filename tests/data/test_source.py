"""Data sets open by folder, by name, or the error says what was looked for and what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from detsearch_cli.data.source import NAMED, join, open_source
from detsearch_cli.errors import DataError

from .samples import coco, voc, write, yolo


def test_a_wrong_path_says_what_is_there(tmp_path: Path) -> None:
    coco(tmp_path / "cocoa")
    with pytest.raises(DataError, match=r"no data at .*has cocoa/.* nor one of .*voc07"):
        open_source(str(tmp_path / "coco"))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match=r"a\.json is a file; give the folder"):
        open_source(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("files", "closest"),
    [
        ({}, "it is empty"),
        ({"song.mp3": ""}, r"it has song\.mp3"),
        ({"a/b.jpg": "", "c.png": ""}, r"it has 2 images such as .*c\.png, but no labels"),
        ({"a.json": '{"shapes": [], "imagePath": "a.jpg"}'}, r"a\.json is labelme's json"),
        (
            {"a.json": '{"images": [], "labels": 3}'},
            r"a\.json holds the keys \['images', 'labels'\], but COCO",
        ),
        ({"a.json": "[1, 2]"}, r"a\.json holds no object, but COCO needs"),
        ({"a.json": '{"images": '}, r"a\.json is not valid JSON.* cut short"),
        ({"a.csv": ""}, r"a\.csv is a table"),
        ({"a.zip": ""}, r"a\.zip is packed; unpack it"),
        ({"a.xml": "<note/>"}, r"a\.xml is XML, but VOC's"),
    ],
)
def test_a_folder_that_is_no_set_says_in_short_what_comes_closest(
    tmp_path: Path, files: dict[str, str], closest: str
) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(DataError, match=f"not a data set of a known format: .*{closest}") as caught:
        open_source(str(tmp_path))
    said = str(caught.value)
    assert said.endswith(
        "; looked for BDD100K json, Brainwash, COCO json, FDDB, Pascal VOC, WIDER FACE, YOLO txt "
        "(docs/formats.md shows their layouts)"
    )
    assert len(said.replace(str(tmp_path), "")) < 400


def test_a_folder_around_a_set_names_the_set(tmp_path: Path) -> None:
    coco(tmp_path / "download" / "set")
    with pytest.raises(DataError, match=r"download/set is one \(coco\), so give that folder"):
        open_source(str(tmp_path))


def test_a_folder_of_two_formats_is_refused_until_one_is_named(tmp_path: Path) -> None:
    voc(tmp_path)
    yolo(tmp_path)
    with pytest.raises(DataError, match="can be read as voc and yolo; say which, as voc:"):
        open_source(str(tmp_path))
    assert open_source(f"yolo:{tmp_path}").format == "yolo"
    with pytest.raises(DataError, match=r"not a data set of that format: .*; looked for FDDB: ellipse lists"):
        open_source(f"fddb:{tmp_path}")


@pytest.mark.parametrize("name", NAMED)
def test_a_named_set_that_is_missing_says_which_files_belong_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETSEARCH_DATA", raising=False)
    with pytest.raises(DataError, match=r"\$DETSEARCH_DATA, which is not set; expected .* with "):
        open_source(name)
    monkeypatch.setenv("DETSEARCH_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"not under \$DETSEARCH_DATA; expected .* with .*, found an empty folder"
    ):
        open_source(name)


def test_names_are_looked_up_under_detsearch_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco(tmp_path / "coco")
    voc(tmp_path / "my-own")
    monkeypatch.setenv("DETSEARCH_DATA", str(tmp_path))
    assert open_source("coco").splits == ("train", "val")
    assert open_source("my-own").format == "voc"


def test_options_of_embedded_sets_are_key_value(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="key=value, each key once"):
        open_source("shapes:images")
    with pytest.raises(DataError, match="key=value, each key once"):
        open_source("shapes:images=3,images=4")


def test_splits_of_different_classes_cannot_be_joined(tmp_path: Path) -> None:
    a = open_source(str(voc(tmp_path / "a"))).load("train")
    b = open_source(str(coco(tmp_path / "b"))).load("train")
    with pytest.raises(DataError, match="different classes"):
        join([a, b], "both")


def test_images_of_joined_splits_are_read_from_their_own(tmp_path: Path) -> None:
    source = open_source(str(voc(tmp_path)))
    parts = [source.load("train"), source.load("val")]
    both = join(parts, "train+val")
    for index in range(4):
        assert (both.read(index) == parts[index // 2].read(index % 2)).all()
    with pytest.raises(IndexError):
        both.read(4)
    assert (both.take([3, 0]).read(0) == parts[1].read(1)).all()
