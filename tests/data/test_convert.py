"""Converted sets hold the same images and boxes; what is read stays as it was, what is written is whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.data import convert as module
from detsearch_cli.data.convert import DRAFT, MARK, WRITERS, convert, split
from detsearch_cli.data.source import open_source
from detsearch_cli.data.types import Source, Split
from detsearch_cli.errors import DataError, OutputError, StorageError
from detsearch_cli.files import write_signed_json

from .samples import SAMPLES, bdd100k, coco, fingerprint, picture, voc, voc_xml, wider, write


def in_order(loaded: Split) -> Split:
    stems = [r.file.stem if r.file else "" for r in loaded.records]
    return loaded.take(sorted(range(len(loaded)), key=stems.__getitem__))


def assert_same(a: Split, b: Split, without_crowd: bool = False) -> None:
    """Same images and boxes, in order of file name, within the formats' rounding."""
    assert len(a) == len(b)
    a, b = in_order(a), in_order(b)
    for i, (x, y) in enumerate(zip(a.records, b.records, strict=True)):
        keep = ~x.crowd if without_crowd else np.ones(len(x.boxes), bool)
        assert [a.classes[n] for n in x.labels[keep]] == [b.classes[n] for n in y.labels]
        np.testing.assert_allclose(x.boxes[keep], y.boxes, atol=2e-3)
        np.testing.assert_array_equal(a.read(i), b.read(i))


@pytest.mark.parametrize("target", WRITERS)
@pytest.mark.parametrize("name", SAMPLES)
def test_a_round_trip_keeps_images_and_boxes(name: str, target: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path / "in")))
    before = fingerprint(tmp_path / "in")
    done = convert(source, tmp_path / "out", target)
    assert fingerprint(tmp_path / "in") == before
    again = open_source(str(tmp_path / "out"))
    assert (again.format, again.splits) == (target, source.splits)
    for part in source.splits:
        loaded = again.load(part)
        original = source.load(part)
        if target == "voc":
            assert [c for c in original.classes if c in loaded.classes] == sorted(
                loaded.classes, key=original.classes.index
            )
        else:
            assert loaded.classes == original.classes
        assert_same(original, loaded, without_crowd=target == "yolo")
        assert done.boxes[part] == sum(len(r.boxes) for r in loaded.records)
        assert done.images[part] == len(loaded)
        assert {d.kind for d in loaded.defects} <= {"crowd region"}


def test_coco_keeps_ids_area_crowd_and_difficult(tmp_path: Path) -> None:
    source = open_source(str(coco(tmp_path / "in")))
    convert(source, tmp_path / "out", "coco")
    a, b = source.load("train"), open_source(str(tmp_path / "out")).load("train")
    assert a.category_ids == b.category_ids
    assert [(r.image_id, r.area.tolist()) for r in a.records] == [
        (r.image_id, r.area.tolist()) for r in b.records
    ]
    write(
        tmp_path / "v" / "Annotations" / "a.xml",
        voc_xml([("cat", (1, 1, 9, 9))], difficult="<difficult>1</difficult>"),
    )
    picture(tmp_path / "v" / "JPEGImages" / "a.jpg")
    convert(open_source(str(tmp_path / "v")), tmp_path / "w", "coco")
    assert open_source(str(tmp_path / "w")).load("train").records[0].difficult.tolist() == [True]


def test_what_a_format_cannot_say_is_noted(tmp_path: Path) -> None:
    source = open_source(str(wider(tmp_path / "in")))
    assert convert(source, tmp_path / "yolo", "yolo").notes[0].startswith("2 crowd regions left out")
    assert (
        convert(source, tmp_path / "voc", "voc").notes[0].startswith("2 crowd regions written as difficult")
    )
    notes = convert(open_source(str(bdd100k(tmp_path / "bdd"))), tmp_path / "voc2", "voc").notes
    assert notes[1].startswith("8 classes without boxes are lost")


def test_classes_that_differ_in_case_alone_come_back_from_voc(tmp_path: Path) -> None:
    path = coco(tmp_path / "in") / "annotations"
    for file in path.iterdir():
        file.write_text(file.read_text().replace('"dog"', '"Cat"'))
    source = open_source(str(tmp_path / "in"))
    convert(source, tmp_path / "out", "voc")
    back = open_source(str(tmp_path / "out")).load("train")
    assert back.classes == ("Cat", "cat")
    assert back.defects == ()
    assert [r.labels.tolist() for r in back.records] == [[1], [0]]


def test_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / "in" / "images" / str(i) / "img.jpg", size=(40 + i, 30))
        text = f"{i}/img\n1\n10 10 0 20 15  1\n"
        write(tmp_path / "in" / "FDDB-folds" / f"FDDB-fold-0{i}-ellipseList.txt", text)
    source = open_source(str(tmp_path / "in"))
    for target in WRITERS:
        convert(source, tmp_path / target, target)
        assert_same(source.load("train"), open_source(str(tmp_path / target)).load("train"))


def test_rotated_images_are_written_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "in" / "JPEGImages" / "a.jpg", exif=exif)
    write(tmp_path / "in" / "Annotations" / "a.xml", voc_xml([("cat", (1, 1, 10, 5))]))
    source = open_source(str(tmp_path / "in"))
    convert(source, tmp_path / "out", "coco")
    after = open_source(str(tmp_path / "out")).load("train")
    assert after.defects == ()
    assert_same(source.load("train"), after)


def test_nothing_is_overwritten_and_the_source_is_never_written_to(tmp_path: Path) -> None:
    source = open_source(str(voc(tmp_path / "in")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to("full")
    before = fingerprint(tmp_path)
    for name in ("full", "link"):
        with pytest.raises(OutputError, match="is not empty"):
            convert(source, tmp_path / name, "coco")
    with pytest.raises(OutputError, match="is a file"):
        convert(source, tmp_path / "full" / "mine.txt", "coco")
    with pytest.raises(OutputError, match="never written to"):
        convert(source, tmp_path / "in" / "new", "coco")
    with pytest.raises(DataError, match="can write coco, voc, yolo, not 'kitti'"):
        convert(source, tmp_path / "out", "kitti")
    with pytest.raises(DataError, match="no split 'test'"):
        convert(source, tmp_path / "out", "coco", ["test"])
    assert fingerprint(tmp_path) == before
    (tmp_path / "empty").mkdir()
    convert(source, tmp_path / "empty", "coco")
    assert (tmp_path / "empty" / "annotations").is_dir()
    assert (tmp_path / "empty").stat().st_mode == (tmp_path / "full").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_to_an_empty_or_a_new_folder_stays_a_link(exists: bool, tmp_path: Path) -> None:
    source = open_source(str(voc(tmp_path / "in")))
    if exists:
        (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    convert(source, tmp_path / "link", "coco")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "annotations").is_dir()


def test_what_is_put_into_the_folder_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(voc(tmp_path / "in")))
    copy = module.shutil.copyfile

    def late(a: Path, b: Path) -> None:
        write(tmp_path / "out" / "mine.txt", "mine")
        copy(a, b)

    monkeypatch.setattr(module.shutil, "copyfile", late)
    with pytest.raises(StorageError, match="not empty"):
        convert(source, tmp_path / "out", "coco")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def draft(folder: Path, name: str, process: int, host: str | None = None, kind: str = DRAFT) -> Path:
    """An unfinished folder of `process` beside the target `name`."""
    path = folder / f".{name}.{process}.x_1.part"
    write(path / "set" / "train" / "a.txt", "half")
    write_signed_json(path / MARK, kind, {"process": process, "host": host or socket.gethostname()})
    return path


def test_exactly_the_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    source = open_source(str(voc(tmp_path / "in")))
    dead = subprocess.Popen(["true"])
    dead.wait()
    removed = [draft(tmp_path, "out", dead.pid), draft(tmp_path, "out", os.getpid())]
    alive = os.getppid()
    kept = [
        draft(tmp_path, "out", alive),
        draft(tmp_path, "other", dead.pid),
        draft(tmp_path, "out.x", dead.pid),
        draft(tmp_path / "far", "out", dead.pid, host="elsewhere"),
        draft(tmp_path / "far", "out", dead.pid + 1, kind="study"),
    ]
    unmarked = tmp_path / f".out.{dead.pid + 2}.a.part"
    write(unmarked / "mine.txt", "mine")
    write(unmarked / MARK, f'{{"process": {dead.pid + 2}}}')
    link = tmp_path / f".out.{dead.pid + 3}.a.part"
    link.symlink_to(draft(tmp_path / "far", "linked", dead.pid))
    before = [fingerprint(path) for path in kept]
    convert(source, tmp_path / "out", "coco")
    convert(source, tmp_path / "far" / "out", "coco")
    assert not any(path.exists() for path in removed)
    assert [fingerprint(path) for path in kept] == before
    assert all(path.exists() for path in (*kept, unmarked / "mine.txt", link / "set"))


def test_a_folder_of_the_user_named_like_a_draft_is_not_touched(tmp_path: Path) -> None:
    source = open_source(str(voc(tmp_path / "in")))
    mine = [tmp_path / f".out.{os.getpid()}.part", tmp_path / f".out.{os.getpid()}.abc.part"]
    for path in mine:
        write(path / "mine.txt", "mine")
    convert(source, tmp_path / "out", "coco")
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out", *(p.name for p in mine)}
    assert all((path / "mine.txt").read_text() == "mine" for path in mine)


def test_two_threads_do_not_remove_the_drafts_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy, begun = open_source(str(voc(tmp_path / "in"))), module.shutil.copyfile, threading.Barrier(2)

    def together(a: Path, b: Path) -> None:
        if not b.parent.parent.joinpath("met").exists():  # each waits once, in the middle of its draft
            b.parent.parent.joinpath("met").touch()
            begun.wait(timeout=30)
        copy(a, b)

    monkeypatch.setattr(module.shutil, "copyfile", together)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(convert, source, tmp_path / "out", "coco") for _ in range(2)]
    errors = [str(task.exception()) for task in tasks if task.exception() is not None]
    assert len(errors) == 1 and "not empty" in errors[0]
    assert open_source(str(tmp_path / "out")).splits == source.splits
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


KILLED = """
import os, signal, sys
from pathlib import Path
from detsearch_cli.data import convert as module
from detsearch_cli.data.source import open_source
module.shutil.copyfile = lambda a, b: os.kill(os.getpid(), signal.SIGKILL)
module.convert(open_source(sys.argv[1]), Path(sys.argv[2]), "coco")
"""


def test_after_a_kill_the_same_command_leaves_the_new_folder_alone(tmp_path: Path) -> None:
    voc(tmp_path / "in")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "in", tmp_path / "out"])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out.*.part"))) == 1
    convert(open_source(str(tmp_path / "in")), tmp_path / "out", "coco")
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(voc(tmp_path / "in")))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="No space left on device; nothing was left behind"):
        convert(source, tmp_path / "out", "yolo")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def thirty(root: Path) -> Source:
    for i in range(30):
        picture(root / "JPEGImages" / f"{i:02d}.jpg", size=(8, 8))
        write(root / "Annotations" / f"{i:02d}.xml", voc_xml([("cat", (1, 1, 4 + i % 4, 4))], size=(8, 8)))
    return open_source(str(root))


def test_split_divides_every_image_once_and_by_seed(tmp_path: Path) -> None:
    source = thirty(tmp_path / "in")
    done = split(source, tmp_path / "a", seed=1)
    assert done.images == {"train": 21, "val": 3, "test": 6}
    parts = [open_source(str(tmp_path / "a")).load(s) for s in ("train", "val", "test")]
    names = [r.file.stem for p in parts for r in p.records if r.file]
    assert sorted(names) == [f"{i:02d}" for i in range(30)]
    for name, seed in (("b", 1), ("c", 2)):
        split(source, tmp_path / name, seed=seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


def test_split_joins_splits_whose_ids_clash(tmp_path: Path) -> None:
    split(open_source(str(coco(tmp_path / "in"))), tmp_path / "out", (0.5, 0.0, 0.5))
    again = open_source(str(tmp_path / "out"))
    assert again.splits == ("train", "test")
    assert {r.image_id for s in again.splits for r in again.load(s).records} == {1, 2, 3, 4}
    assert again.load("train").category_ids == (3, 7)


@pytest.mark.parametrize("fractions", [(0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_fractions_that_are_none_are_refused(tmp_path: Path, fractions: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="fractions are train, val, test"):
        split(open_source(str(coco(tmp_path / "in"))), tmp_path / "out", fractions)


def test_too_few_images_for_the_fractions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not suffice"):
        split(open_source(str(coco(tmp_path / "in"))), tmp_path / "out", (0.9, 0.05, 0.05))


def test_written_coco_is_read_by_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    convert(open_source(str(coco(tmp_path / "in"))), tmp_path / "out", "coco")
    path = tmp_path / "out" / "annotations" / "instances_train.json"
    api = COCO(str(path))
    assert len(api.getImgIds()) == 2
    assert [a["bbox"] for a in api.loadAnns(api.getAnnIds())] == [[10, 5, 20, 20]] * 2
    assert json.loads(path.read_text())["images"][0]["width"] == 40
