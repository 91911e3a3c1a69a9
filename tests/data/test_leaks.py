"""The same image in what is trained on and in what is scored is found by content, in every format, and said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from detsearch_cli.data import leaks
from detsearch_cli.data.convert import split as deal
from detsearch_cli.data.inspect import inspect
from detsearch_cli.data.leaks import ACROSS, TWICE, copies, found_twice, trained_on
from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import resolve
from detsearch_cli.data.types import Source
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Data

from .samples import SAMPLES, picture, yolo


def parts(source: Source) -> Iterator[Path]:
    """An image of train and one of val."""
    for name in ("train", "val"):
        file = source.load(name).records[0].file
        assert file is not None
        yield file


@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "fddb"])  # it has but one split
def test_a_copy_of_a_training_image_in_val_is_reported_in_every_format(tmp_path: Path, name: str) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    for file in tmp_path.rglob("val/empty.jpg"):
        picture(file, quality=50)
    train, val = (source.load(split) for split in ("train", "val"))
    assert copies((train, val)) == []
    ours, theirs = parts(source)
    shutil.copy(ours, theirs)
    train, val = (source.load(split) for split in ("train", "val"))
    assert copies((train, val)) == [[(0, 0), (1, 0)]]
    (defect,) = [d for d in inspect(val, decode=False, before=[train]).defects if d.kind == ACROSS]
    assert (defect.file, defect.detail) == (theirs.as_posix(), f"in train as {ours.as_posix()}")
    (note,) = resolve(Data(source=str(tmp_path)), source).notes
    assert note.startswith(f"1 of the {len(val)} images of 'val' are trained on as well")
    assert theirs.as_posix() in note and ours.as_posix() in note


def test_strict_training_refuses_it(tmp_path: Path) -> None:
    source = open_source(str(yolo(tmp_path)))
    shutil.copy(*parts(source))
    with pytest.raises(DataError, match="strict: 1 of the 2 images of 'val' are trained on"):
        resolve(Data(source=str(tmp_path), strict=True), source)


def test_one_file_in_two_splits_is_found_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_source(str(yolo(tmp_path))).load("train")
    monkeypatch.setattr(leaks, "open_regular", None)
    assert copies((train, replace(train, name="val"))) == [[(0, 0), (1, 0)], [(0, 1), (1, 1)]]
    said = trained_on(train, replace(train, name="val"))
    assert said is not None and said.startswith("2 of the 2 images of 'val'")


def test_files_of_one_size_and_end_are_told_apart_by_the_rest(tmp_path: Path) -> None:
    source = open_source(str(yolo(tmp_path)))
    train, val = (source.load(split) for split in ("train", "val"))
    ours, theirs = parts(source)
    for file, first in ((ours, b"a"), (theirs, b"b")):
        file.write_bytes(first + bytes(2 * leaks.TAIL))
    assert copies((train, val)) == []
    theirs.write_bytes(ours.read_bytes())
    assert copies((train, val)) == [[(0, 0), (1, 0)]]
    os.unlink(theirs)  # noqa: PTH108
    assert copies((train, val)) == []


def test_an_image_twice_in_one_split_is_reported_and_dealing_says_where_it_went(tmp_path: Path) -> None:
    source = open_source(str(yolo(tmp_path / "set")))
    folder = tmp_path / "set" / "images" / "train"
    shutil.copy(folder / "train0.jpg", folder / "train1.jpg")
    (defect,) = found_twice(source.load("train"))
    assert defect.kind == TWICE and defect.file.endswith("train1.jpg") and "train0.jpg" in defect.detail
    made = [deal(source, tmp_path / f"out{seed}", (0.5, 0.0, 0.5), seed).notes for seed in range(6)]
    assert any(
        "1 of the 2 images of 'test' are in 'train' as well" in note for notes in made for note in notes
    )
    assert any(not notes for notes in made)


def test_rendered_images_are_the_same_where_they_are_rendered_alike() -> None:
    train = open_source("shapes:images=4,val=2,size=32").load("train")
    again = replace(open_source("shapes:images=4,val=2,size=32").load("train"), name="val")
    assert len(copies((train, again))) == 4
    assert copies((train, open_source("shapes:images=4,val=2,size=32").load("val"))) == []
