"""WIDER FACE, FDDB, Brainwash and BDD100K: what is particular to each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.data import checks
from detsearch_cli.data.formats.fddb import ellipse_box
from detsearch_cli.data.source import open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import bdd100k, brainwash, fddb, picture, wider, write


def load(root: Path, split: str = "train") -> Split:
    return open_source(str(root)).load(split)


def kinds(split: Split) -> list[str]:
    return [d.kind for d in split.defects]


def test_invalid_faces_are_ignored_regions(tmp_path: Path) -> None:
    split = load(wider(tmp_path))
    assert split.classes == ("face",)
    assert split.records[0].crowd.tolist() == [False, True]
    assert kinds(split) == [checks.CROWD]


def test_an_image_without_faces_may_have_a_row_of_zeros_or_none(tmp_path: Path) -> None:
    wider(tmp_path)
    path = tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    names = ["0--Parade/val0.jpg", "0--Parade/val1.jpg"]
    for empty in ("0\n0 0 0 0 0 0 0 0 0 0\n", "0\n"):
        write(path, f"{names[0]}\n{empty}{names[1]}\n1\n1 2 3 4 0 0 0 0 0 0\n")
        split = load(tmp_path, "val")
        assert [r.boxes.tolist() for r in split.records] == [[], [[1, 2, 4, 6]]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg\n3\n1 1 2 2\n", r"cut short: a\.jpg \(line 1\) has 1 of 3 faces"),
        ("a.jpg\n", "line 2: expected the number of faces of a.jpg, found the end of the file"),
        ("a.jpg\n1\n1 1 x 2\n", "line 3: a face is at least x y w h"),
    ],
)
def test_a_wider_list_that_breaks_its_pattern_names_the_line(tmp_path: Path, text: str, reason: str) -> None:
    wider(tmp_path)
    write(tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt", text)
    with pytest.raises(DataError, match=rf"wider_face_train_bbx_gt\.txt.*{reason}"):
        load(tmp_path)


def test_an_ellipse_box_touches_the_outline_on_all_sides() -> None:
    rng = np.random.default_rng(0)
    turn = np.linspace(0, 2 * math.pi, 20001)
    for major, minor, angle, cx, cy in rng.uniform([20, 5, -2, 50, 50], [90, 60, 2, 300, 300], (50, 5)):
        x = cx + major * np.cos(turn) * math.cos(angle) - minor * np.sin(turn) * math.sin(angle)
        y = cy + major * np.cos(turn) * math.sin(angle) + minor * np.sin(turn) * math.cos(angle)
        expected = [x.min(), y.min(), x.max(), y.max()]
        np.testing.assert_allclose(ellipse_box(major, minor, angle, cx, cy), expected, atol=1e-4)


def test_an_ellipse_that_leaves_the_image_is_clipped(tmp_path: Path) -> None:
    fddb(tmp_path)
    path = tmp_path / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt"
    write(path, "2002/img_0\n1\n10 8 0 5 15  1\n")
    split = load(tmp_path)
    assert split.records[0].boxes.tolist() == [[0, 7, 15, 23]]
    assert kinds(split) == [checks.OUTSIDE]


def test_fddb_lists_that_break_their_pattern_name_the_line(tmp_path: Path) -> None:
    fddb(tmp_path)
    path = tmp_path / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt"
    write(path, "2002/img_0\n1\n10 8 0\n")
    with pytest.raises(DataError, match="line 3: an ellipse is two radii"):
        load(tmp_path)
    for line in ("10 8 nan 5 15 1", "10 8 inf 5 15 1", "10 8 5 15 1", "10 -8 0 5 15 1", "10 8 0 5 1_5 1"):
        write(path, f"2002/img_0\n1\n{line}\n")
        with pytest.raises(DataError, match="line 3: an ellipse is two radii"):
            load(tmp_path)
    for count in ("²", "٣", "-1", "1.5"):
        write(path, f"2002/img_0\n{count}\n10 8 0 5 15 1\n")
        with pytest.raises(DataError, match="line 2: expected the number of faces"):
            load(tmp_path)
    write(path, "2002/img_0\n2\n10 8 0 5 15 1\n")
    with pytest.raises(DataError, match="has 1 of 2 faces"):
        load(tmp_path)


def test_fddb_images_in_no_fold_are_recorded(tmp_path: Path) -> None:
    picture(fddb(tmp_path) / "images" / "2002" / "img_9.jpg")
    assert kinds(load(tmp_path)) == [checks.IMAGE_ONLY]


def test_idl_lines_with_scores_without_boxes_and_with_swapped_corners(tmp_path: Path) -> None:
    brainwash(tmp_path)
    lines = ['"shots/train0.png";', '"shots/train1.png": (9, 8, 1, 2):0.75, (1.5, 2, 3, 4):-1;']
    write(tmp_path / "brainwash_train.idl", "\n".join(lines))
    split = load(tmp_path)
    assert [r.boxes.tolist() for r in split.records] == [[], [[1, 2, 9, 8], [1.5, 2, 3, 4]]]
    assert split.defects == ()


@pytest.mark.parametrize(
    "line", ["shots/train0.png: (1, 2, 3, 4)", '"shots/train0.png": (1, 2, 3', '"a": 1 2 3 4;']
)
def test_an_idl_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    brainwash(tmp_path)
    write(tmp_path / "brainwash_train.idl", f'"shots/train0.png";\n{line}\n')
    with pytest.raises(DataError, match=r"brainwash_train\.idl line 2: expected"):
        load(tmp_path)


def test_brainwash_images_in_no_list_are_recorded_once(tmp_path: Path) -> None:
    picture(brainwash(tmp_path) / "shots" / "lonely.png")
    assert kinds(load(tmp_path)) == [checks.IMAGE_ONLY]
    assert kinds(load(tmp_path, "val")) == []


def test_bdd_has_its_ten_classes_crowds_and_empty_frames(tmp_path: Path) -> None:
    split = load(bdd100k(tmp_path))
    assert split.classes[:3] == ("pedestrian", "rider", "car") and len(split.classes) == 10
    assert [r.labels.tolist() for r in split.records] == [[2, 0], [2], []]
    assert split.records[0].crowd.tolist() == [False, True]


def test_bdd_labels_outside_the_ten_are_left_out_and_lanes_passed_over(tmp_path: Path) -> None:
    bdd100k(tmp_path)
    path = tmp_path / "labels" / "det_20" / "det_train.json"
    frames = json.loads(path.read_text())
    box = {"x1": 1, "y1": 1, "x2": 9, "y2": 9}
    frames[2]["labels"] = [
        {"category": "trailer", "box2d": box},
        {"category": "lane", "poly2d": []},
        {"category": "car", "box2d": {"x1": 1}},
        {"category": "car", "box2d": {"x1": 9, "y1": 9, "x2": 1, "y2": 1}},
    ]
    path.write_text(json.dumps(frames))
    split = load(tmp_path)
    assert kinds(split) == [checks.CROWD, checks.UNKNOWN_CLASS, checks.BROKEN_LABEL, checks.SWAPPED]
    assert split.records[2].boxes.tolist() == [[1, 1, 9, 9]]


def test_the_older_bdd_files_have_their_own_classes(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "100k" / "val" / "a.jpg")
    labels = [
        {"category": "motor", "box2d": {"x1": 1, "y1": 1, "x2": 9, "y2": 9}},
        {"category": "drivable area", "poly2d": []},
    ]
    path = tmp_path / "labels" / "bdd100k_labels_images_val.json"
    write(path, json.dumps([{"name": "a.jpg", "labels": labels}]))
    source = open_source(str(tmp_path))
    assert source.splits == ("val",)
    split = source.load("val")
    assert split.classes[split.records[0].labels[0]] == "motor" and len(split.classes) == 10


@pytest.mark.parametrize("pattern", ["det_v2_{}_release.json", "bdd100k_labels_images_det20_{}.json"])
def test_bdd_files_are_found_under_the_names_of_every_release(tmp_path: Path, pattern: str) -> None:
    bdd100k(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "labels" / "det_20" / f"det_{split}.json").rename(
            tmp_path / "labels" / pattern.format(split)
        )
    assert open_source(str(tmp_path)).splits == ("train", "val")
    assert [r.labels.tolist() for r in load(tmp_path).records] == [[2, 0], [2], []]


@pytest.mark.parametrize(
    ("labels", "detail"),
    [
        ("x", "labels of train1.jpg must be a list"),
        ([3], "a label of train1.jpg must be an object"),
        ([{"category": "car", "box2d": "x"}], "needs numbers x1, y1, x2, y2"),
        ([{"category": "car", "box2d": {"x1": 10**400, "y1": 1, "x2": 9, "y2": 9}}], "needs numbers"),
        ([{"category": "car", "box2d": {"x1": True, "y1": 1, "x2": 9, "y2": 9}}], "needs numbers"),
        ([{"category": ["car"], "box2d": {"x1": 1, "y1": 1, "x2": 9, "y2": 9}}], r"\['car'\] in train1.jpg"),
        (
            [{"category": "car", "box2d": {"x1": 1, "y1": 1, "x2": 9, "y2": 9}, "attributes": "no!"}],
            "crowd in train1.jpg must be true or false, got 'no!'",
        ),
    ],
)
def test_bdd_fields_of_another_type_are_reported(tmp_path: Path, labels: object, detail: str) -> None:
    path = bdd100k(tmp_path) / "labels" / "det_20" / "det_train.json"
    frames = json.loads(path.read_text())
    frames[1]["labels"] = labels
    path.write_text(json.dumps(frames))
    split = load(tmp_path)
    assert [len(r.boxes) for r in split.records[::2]] == [2, 0]
    assert any(re.search(detail, d.detail) for d in split.defects)


def test_a_crowd_attribute_in_words_is_read_by_its_meaning(tmp_path: Path) -> None:
    path = bdd100k(tmp_path) / "labels" / "det_20" / "det_train.json"
    frames = json.loads(path.read_text())
    frames[0]["labels"][0]["attributes"] = {"crowd": "true"}
    frames[0]["labels"][1]["attributes"] = {"crowd": "false"}
    path.write_text(json.dumps(frames))
    assert load(tmp_path).records[0].crowd.tolist() == [True, False]


def test_an_empty_list_is_reported_and_not_offered(tmp_path: Path) -> None:
    write(wider(tmp_path / "w") / "wider_face_split" / "wider_face_val_bbx_gt.txt", "\n")
    write(brainwash(tmp_path / "b") / "brainwash_test.idl", "")
    write(bdd100k(tmp_path / "d") / "labels" / "det_20" / "det_val.json", "[]\n")
    for name, rest in (("w", ("train",)), ("b", ("train", "val")), ("d", ("train",))):
        source = open_source(str(tmp_path / name))
        assert source.splits == rest
        assert checks.SPLIT_PROBLEM in kinds(source.load("train"))


@pytest.mark.parametrize("make", [bdd100k, brainwash, fddb, wider])
def test_names_of_images_match_in_either_unicode_form(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Composed in the lists, as most tools write, and decomposed on disk, as macOS stores them."""
    make(tmp_path)
    composed, decomposed = "K\u00e4fer", "Ka\u0308fer"
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix in (".json", ".idl", ".txt"):
            text = path.read_text().replace("train", composed).replace("img_", f"{composed}_")
            path.write_text(text, encoding="utf-8")
        elif path.is_file():
            path.rename(
                path.with_name(path.name.replace("train", decomposed).replace("img_", f"{decomposed}_"))
            )
    split = load(tmp_path)
    assert [len(r.boxes) > 0 for r in split.records][:2] == [True, True]
    assert {checks.MISSING_IMAGE, checks.IMAGE_ONLY}.isdisjoint(kinds(split))
