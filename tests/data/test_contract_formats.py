"""What every format in data/formats must do; a new format file needs a sample in samples.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detsearch_cli import parts
from detsearch_cli.data import checks
from detsearch_cli.data.source import open_source
from detsearch_cli.errors import DataError

from .samples import SAMPLES, fingerprint

FORMATS = parts.names("data.formats")


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_format_has_a_sample_and_a_help_line() -> None:
    assert set(FORMATS) == set(SAMPLES)
    assert all(parts.summary("data.formats", n).endswith(".") for n in FORMATS)


def test_each_sample_is_recognised_by_its_own_format_alone(name: str, tmp_path: Path) -> None:
    SAMPLES[name](tmp_path)
    detecting = [n for n in FORMATS if parts.load("data.formats", n).detect(tmp_path)]
    assert detecting == [name]
    assert open_source(str(tmp_path)).format == name


def test_no_format_recognises_an_empty_folder(name: str, tmp_path: Path) -> None:
    assert not parts.load("data.formats", name).detect(tmp_path)


def test_records_are_typed_unique_and_inside_their_images(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    assert source.splits and set(source.splits) <= {"train", "val", "test"}
    for split_name in source.splits:
        split = source.load(split_name)
        assert len({r.image_id for r in split.records}) == len(split)
        assert len(split.category_ids) == len(split.classes) == len(set(split.classes))
        for index, r in enumerate(split.records):
            count = len(r.boxes)
            assert r.boxes.dtype == np.float32 and r.boxes.shape == (count, 4)
            assert r.labels.dtype == np.int64 and r.labels.shape == (count,)
            assert r.crowd.dtype == r.difficult.dtype == bool
            assert r.crowd.shape == r.difficult.shape == (count,)
            assert r.area.dtype == np.float64 and (r.area > 0).all()
            assert (r.boxes[:, :2] >= 0).all() and (r.boxes[:, 2:] <= [r.width, r.height]).all()
            assert (r.boxes[:, 2:] > r.boxes[:, :2]).all()
            assert ((r.labels >= 0) & (r.labels < len(split.classes))).all()
            image = split.read(index)
            assert image.dtype == np.uint8 and image.shape == (r.height, r.width, 3)


def test_every_format_reads_the_same_box(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    for split_name in source.splits:
        split = source.load(split_name)
        np.testing.assert_allclose(split.records[0].boxes[0], [10, 5, 30, 25], atol=1e-5)
        np.testing.assert_allclose(split.records[1].boxes[0], [10, 5, 30, 25], atol=1e-5)


def test_all_splits_share_their_classes(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    assert len({source.load(s).classes for s in source.splits}) == 1


def test_a_missing_image_is_left_out_and_recorded(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    before = source.load("train")
    file = before.records[0].file
    assert file is not None
    file.unlink()
    after = source.load("train")
    assert len(after) == len(before) - 1
    expected = checks.LABEL_ONLY if name == "yolo" else checks.MISSING_IMAGE
    assert expected in {d.kind for d in after.defects}


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xe0 no jpeg", b"<html>not found</html>"])
def test_an_unreadable_image_is_left_out_and_recorded(name: str, tmp_path: Path, content: bytes) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    file = source.load("train").records[0].file
    assert file is not None
    file.write_bytes(content)
    after = source.load("train")
    assert [(d.file, d.handled) for d in after.defects if d.kind == checks.UNREADABLE_IMAGE] == [
        (file.as_posix(), "image left out")
    ]
    assert file not in [r.file for r in after.records]


def test_a_split_without_any_image_is_an_error_that_says_so(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    for record in source.load("train").records:
        assert record.file is not None
        record.file.write_bytes(b"")
    with pytest.raises(DataError, match=r"no usable image .* unreadable image"):
        source.load("train")


def test_an_unknown_split_is_refused(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    with pytest.raises(DataError, match="has no split 'trian'; it has train"):
        source.load("trian")


def test_loading_changes_nothing_on_disk(name: str, tmp_path: Path) -> None:
    SAMPLES[name](tmp_path)
    before = fingerprint(tmp_path)
    source = open_source(str(tmp_path))
    for split in source.splits:
        source.load(split).read(0)
    assert fingerprint(tmp_path) == before


def test_strict_refuses_a_truncated_image(name: str, tmp_path: Path) -> None:
    source = open_source(str(SAMPLES[name](tmp_path)))
    split = source.load("train")
    file = split.records[1].file
    assert file is not None
    file.write_bytes(file.read_bytes()[:-200])
    assert len(source.load("train")) == len(split)
    with pytest.raises(DataError, match=file.name):
        source.load("train").read(1)
    if not split.defects:
        with pytest.raises(
            DataError, match=rf"strict: .* 1 defects, the first is truncated image in .*{file.name}"
        ):
            source.load("train", strict=True)


def test_formats_import_no_torch() -> None:
    code = (
        "import sys; from detsearch_cli import parts;"
        "[parts.load('data.formats', n) for n in parts.names('data.formats')];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
