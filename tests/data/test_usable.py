"""What cannot be decoded is left out before a training, the same for every process, and an outage is no verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detsearch_cli.data import usable as module
from detsearch_cli.data.checks import TRUNCATED_IMAGE
from detsearch_cli.data.convert import convert
from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import resolve
from detsearch_cli.data.usable import left_out, usable
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Data

from .samples import coco, picture


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the verdicts, which are kept however fast they were found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_KEEPING", -1.0)
    return tmp_path / "cache" / "detsearch" / "images"


def cut(path: Path, keep: int = -300) -> Path:
    path.write_bytes(path.read_bytes()[:keep])
    return path


def test_a_truncated_image_is_left_out_and_named_everywhere(tmp_path: Path) -> None:
    broken = cut(coco(tmp_path / "set") / "train2017" / "train0.jpg")
    found = resolve(Data(source=str(tmp_path / "set")), open_source(str(tmp_path / "set")))
    assert [r.file.name for r in found.train.records if r.file] == ["train1.jpg"]
    assert found.train.read(0).shape == (30, 40, 3)
    assert [(d.kind, d.file, d.handled) for d in found.train.defects] == [
        (TRUNCATED_IMAGE, str(broken), "image left out")
    ]
    assert len(found.notes) == 1 and str(broken) in found.notes[0] and "truncated" in found.notes[0]
    made = convert(open_source(str(tmp_path / "set")), tmp_path / "copy", "yolo")
    assert made.images == {"train": 1, "val": 2} and str(broken) in made.notes[0]


def test_strict_refuses_it(tmp_path: Path) -> None:
    cut(coco(tmp_path / "set") / "train2017" / "train0.jpg")
    with pytest.raises(DataError, match=r"strict: .*truncated image.*train0\.jpg"):
        resolve(Data(source=str(tmp_path / "set"), strict=True), open_source(str(tmp_path / "set")))


def test_a_broken_image_does_not_deal_the_others_anew(tmp_path: Path) -> None:
    folder = coco(tmp_path / "set")
    names = [f"more{i}.jpg" for i in range(12)]
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    for number, name in enumerate(names, 10):
        picture(folder / "train2017" / name)
        content["images"].append({"id": number, "file_name": name, "width": 40, "height": 30})
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    data = Data(source=str(folder), val_fraction=0.3)

    def files() -> list[set[str]]:
        found = resolve(data, open_source(str(folder)))
        return [{r.file.name for r in split.records if r.file} for split in (found.train, found.val)]

    before = files()
    cut(folder / "train2017" / names[5])
    assert files() == [part - {names[5]} for part in before]


def test_verdicts_are_kept_and_a_changed_file_is_looked_at_again(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cut(coco(tmp_path / "set") / "train2017" / "train0.jpg")
    load = lambda: open_source(str(tmp_path / "set")).load("train")  # noqa: E731
    assert len(usable(load())) == 1
    looked: list[Path] = []
    monkeypatch.setattr(module, "check_image", looked.append)
    assert len(usable(load())) == 1 and looked == []
    picture(file)
    assert len(usable(load())) == 2 and looked == [file]
    (only,) = kept.iterdir()
    for damaged in (
        "",
        "[]",
        '{"decoder": 1}',
        only.read_text().replace('"train1.jpg": [', '"train1.jpg": [[],'),
    ):
        only.write_text(damaged)
        assert len(usable(load())) == 2


def test_a_file_that_vanished_is_an_outage_and_no_verdict(tmp_path: Path, kept: Path) -> None:
    split = open_source(str(coco(tmp_path / "set"))).load("train")
    (tmp_path / "set" / "train2017" / "train0.jpg").unlink()
    with pytest.raises(DataError, match=r"train0\.jpg was there a moment ago"):
        usable(split)
    assert not kept.exists()
    picture(tmp_path / "set" / "train2017" / "train0.jpg")
    assert usable(split) is split and left_out([split]) == []


def test_a_home_that_cannot_be_written_to_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    split = open_source(str(coco(tmp_path / "set"))).load("train")
    assert usable(split) is split


def test_a_split_without_any_image_left_is_refused(tmp_path: Path) -> None:
    split = open_source(str(coco(tmp_path / "set"))).load("train")
    for file in (tmp_path / "set" / "train2017").iterdir():
        cut(file)
    with pytest.raises(
        DataError, match=r"none of the 2 images of 'train' can be decoded; the first, .*truncated"
    ):
        usable(split)
