"""A run tells what changed in its data, and never scores on what it was trained on without saying it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from detsearch_cli.data.source import open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.detectors import build
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine import fingerprint
from detsearch_cli.engine.score import detect_and_note
from detsearch_cli.errors import CheckpointError, DataError
from detsearch_cli.recipe import Recipe
from tests.data.samples import picture, yolo
from tests.recipes import small


def data(folder: Path) -> Resolved:
    return resolve(recipe(folder).data, open_source(str(folder)))


def recipe(folder: Path) -> Recipe:
    return small(data={"source": str(folder)}, test={"score_threshold": 0.0, "max_detections": 5})


def a_run(folder: Path, of: Path, kept: bool = True) -> Path:
    """What a training leaves, without the training."""
    torch.manual_seed(0)
    found = data(of)
    ckpt.save_weights(folder / ckpt.LAST, build(recipe(of), 2), recipe(of), found.train.classes)
    if kept:
        fingerprint.keep(folder, found.train, found.val)
    return folder


def changed(run: Path, folder: Path) -> str:
    found = data(folder)
    return fingerprint.changes(run, found.train, found.val) or ""


def test_what_was_added_removed_and_labelled_anew_is_counted(tmp_path: Path) -> None:
    folder, run = yolo(tmp_path / "set"), tmp_path / "run"
    run.mkdir()
    found = data(folder)
    fingerprint.keep(run, found.train, found.val)
    assert changed(run, folder) == ""
    picture(folder / "images" / "train" / "new.jpg")
    (folder / "labels" / "train" / "new.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (folder / "labels" / "train" / "train1.txt").write_text("0 0.2 0.2 0.1 0.1\n")
    assert "(train: 1 added, 1 with other labels)" in changed(run, folder)
    (folder / "images" / "val" / "val0.jpg").unlink()
    picture(folder / "images" / "val" / "val1.jpg", quality=30)
    assert "; val: 1 removed, 1 with other pixels)" in changed(run, folder)
    fingerprint.keep(run, data(folder).train, data(folder).val)  # it tells of the beginning
    assert changed(run, folder) != ""


def test_data_that_moved_is_the_same_data(tmp_path: Path) -> None:
    folder, run = yolo(tmp_path / "set"), tmp_path / "run"
    run.mkdir()
    found = data(folder)
    fingerprint.keep(run, found.train, found.val)
    assert changed(run, Path(shutil.move(folder, tmp_path / "moved"))) == ""


@pytest.mark.parametrize("content", ["", "[]", '{"train": 3}', '{"train": {"a": [1]}, "val": {}}'])
def test_a_damaged_fingerprint_is_told(tmp_path: Path, content: str) -> None:
    folder = yolo(tmp_path / "set")
    (tmp_path / ckpt.DATA).write_text(content)
    with pytest.raises(CheckpointError, match=r"data\.json .*; restore it, or remove it"):
        changed(tmp_path, folder)


@pytest.mark.parametrize("kept", [True, False])
def test_eval_says_that_it_scores_what_was_trained_on(tmp_path: Path, kept: bool) -> None:
    folder = yolo(tmp_path / "set")
    run = a_run(tmp_path / "run", folder, kept)
    assert detect_and_note(run, None, "val", ckpt.LAST, "cpu").notes == ()
    (note,) = detect_and_note(run, str(folder), "train", ckpt.LAST, "cpu").notes
    assert note.startswith("2 of the 2 images of 'train' are trained on as well")
    other = yolo(tmp_path / "other")
    picture(other / "images" / "val" / "val0.jpg", quality=30)
    shutil.copy(folder / "images" / "train" / "train1.jpg", other / "images" / "val" / "val1.jpg")
    (note,) = detect_and_note(run, str(other), "val", ckpt.LAST, "cpu").notes
    assert note.startswith("1 of the 2 images of 'val' are trained on as well") and "val1.jpg" in note


def test_eval_says_what_changed_and_what_is_left_out(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set")
    run = a_run(tmp_path / "run", folder)
    broken = folder / "images" / "val" / "val0.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    found = detect_and_note(run, None, "val", ckpt.LAST, "cpu")
    assert len(found.split) == 1 and "val0.jpg" in found.notes[0] and "left out" in found.notes[0]
    assert "val: 1 removed" in found.notes[1]


def test_data_that_moved_away_are_asked_for(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "set")
    run = a_run(tmp_path / "run", folder)
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(DataError, match=r"not at .*set any more; give --data with the place"):
        detect_and_note(run, None, None, ckpt.LAST, "cpu")
    assert detect_and_note(run, str(tmp_path / "moved"), "val", ckpt.LAST, "cpu").notes == ()


def test_the_file_is_signed(tmp_path: Path) -> None:
    found = data(yolo(tmp_path / "set"))
    fingerprint.keep(tmp_path, found.train, found.val)
    content = json.loads((tmp_path / ckpt.DATA).read_text())
    assert content["detsearch"] == "data" and set(content["train"]) == {"train0.jpg", "train1.jpg"}
