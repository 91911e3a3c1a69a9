"""Whatever a field of an annotation file holds, reading ends in records with defects or in one DataError."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detsearch_cli.data.source import open_source
from detsearch_cli.errors import DataError

from .samples import bdd100k, brainwash, coco, fddb, wider

ABSENT = object()
ODD: list[Any] = [
    ABSENT,
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    -(10**400),
    math.nan,
    math.inf,
    -math.inf,
    1e308,
]
ODD += [
    "",
    " ",
    "x",
    "0",
    "1",
    "1.0",
    "nan",
    "²",
    "٣",
    "a\0b",
    "\ud800",
    "y" * 5000,
    "../../x",
    "/dev/zero",
    "C:\\x\\a.jpg",
]
ODD += [
    [],
    {},
    [[[]]],
    [None],
    [[1, 2, 3]],
    {"size": [0, 9], "counts": "PPP0"},
    {"size": [4, 4], "counts": "oo"},
]
WORDS = [
    "",
    "x",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "9" * 400,
    "1_0",
    "٣",
    "²",
    "0x1",
    "\0",
    "(",
    ")",
    '"',
    ";",
]
SETTINGS = settings(max_examples=25, derandomize=True, deadline=None, database=None)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    """Change the value at a path, or remove it."""
    for key in path[:-1]:
        document = document[key]
    if value is ABSENT:
        del document[path[-1]]
    else:
        document[path[-1]] = copy.deepcopy(value)  # a later change must not change ODD


def check(folder: Path) -> None:
    """Every split is read, or refused in one line; what is read can be used as it is."""
    try:
        source = open_source(str(folder))
        loaded = [source.load(name) for name in source.splits]
    except DataError as error:
        assert str(error) and "\n" not in str(error)
        return
    for split in loaded:
        assert len({r.image_id for r in split.records}) == len(split)
        for r in split.records:
            assert np.isfinite(r.boxes).all() and np.isfinite(r.area).all() and (r.area > 0).all()
            assert (r.boxes[:, :2] >= 0).all() and (r.boxes[:, 2:] <= [r.width, r.height]).all()
            assert ((r.labels >= 0) & (r.labels < len(split.classes))).all()
        assert all(isinstance(d.detail, str) and len(d.detail) < 6000 for d in split.defects)


def full_coco(folder: Path) -> Path:
    """The sample with every field that is read."""
    path = coco(folder) / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= {"difficult": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content["annotations"] += [
        {"id": 8, "image_id": 2, "category_id": 3, "segmentation": {"size": [30, 40], "counts": [3, 5, 1192]}}
    ]
    content["categories"][0]["supercategory"] = "animal"
    path.write_text(json.dumps(content))
    return path


JSON_FILES: dict[str, Callable[[Path], Path]] = {
    "coco": full_coco,
    "bdd100k": lambda folder: bdd100k(folder) / "labels" / "det_20" / "det_train.json",
}
TEXT_FILES: dict[str, Callable[[Path], Path]] = {
    "brainwash": lambda folder: brainwash(folder) / "brainwash_train.idl",
    "fddb": lambda folder: fddb(folder) / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt",
    "wider": lambda folder: wider(folder) / "wider_face_split" / "wider_face_train_bbx_gt.txt",
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_value_in_any_json_field_is_read_or_reported(name: str, tmp_path: Path) -> None:
    path = JSON_FILES[name](tmp_path)
    text = path.read_text()

    @SETTINGS
    @given(changes=st.lists(st.tuples(st.integers(0, 999), st.sampled_from(ODD)), min_size=1, max_size=2))
    def holds(changes: list[tuple[int, Any]]) -> None:
        document = json.loads(text)
        for number, value in changes:
            found = list(places(document))
            put(document, found[number % len(found)], value)
        path.write_text(json.dumps(document))
        check(tmp_path)

    holds()


@pytest.mark.parametrize("name", TEXT_FILES)
def test_any_word_in_any_list_is_read_or_reported(name: str, tmp_path: Path) -> None:
    path = TEXT_FILES[name](tmp_path)
    text = path.read_text()
    words = list(re.finditer(r'[^\s,();:"]+', text))

    @SETTINGS
    @given(word=st.sampled_from(words), other=st.sampled_from(WORDS))
    def holds(word: re.Match[str], other: str) -> None:
        path.write_text(text[: word.start()] + other + text[word.end() :], encoding="utf-8")
        check(tmp_path)

    holds()


@pytest.mark.parametrize("name", [*JSON_FILES, *TEXT_FILES])
def test_any_bytes_at_the_end_of_a_file_are_read_or_reported(name: str, tmp_path: Path) -> None:
    path = (JSON_FILES | TEXT_FILES)[name](tmp_path)
    whole = path.read_bytes()

    @SETTINGS
    @given(content=st.binary(max_size=40), keep=st.floats(0, 1))
    def holds(content: bytes, keep: float) -> None:
        path.write_bytes(whole[: int(len(whole) * keep)] + content)
        check(tmp_path)

    holds()
