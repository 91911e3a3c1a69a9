"""Images are read as they are shown; Pillow's own exif_transpose and conversions are the reference."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detsearch_cli.data import images
from detsearch_cli.data.images import (
    ImageError,
    check_image,
    find_images,
    read_header,
    read_image,
    turn_boxes,
)
from detsearch_cli.errors import DataError

from .samples import picture


def rotated(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_applies_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = rotated(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = read_image(path)
    np.testing.assert_array_equal(found, expected)
    header = read_header(path)
    assert (header.height, header.width) == found.shape[:2]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_with_the_pixels_they_hold(orientation: int) -> None:
    stored = np.zeros((30, 40), dtype=np.uint8)
    stored[5:12, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(stored)
    image.info["exif"] = exif.tobytes()
    shown = np.asarray(ImageOps.exif_transpose(image))
    rows, columns = np.nonzero(shown)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    turned = turn_boxes(np.array([[10.0, 5, 30, 12]]), orientation, shown.shape[1], shown.shape[0])
    assert turned.tolist() == [expected]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    path = picture(tmp_path / f"a.{suffix}", mode)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 1, 2048, 4095]], np.uint16), [0, 0, 128, 255]),  # a 12-bit camera
        (np.array([[0, 257, 32768, 65535]], np.uint16), [0, 1, 128, 255]),
        (np.array([[0, 7, 128, 255]], np.uint16), [0, 7, 128, 255]),  # 8 bits in a file of 16
        (np.array([[0, 100_000, 200_000]], np.int32), [0, 128, 255]),
        (np.array([[-4095, 0, 4095]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 128, 255]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, -np.inf, 1]], np.float32), [0, 0, 0, 255]),
        (np.array([[0, 3.4e38]], np.float32), [0, 255]),
        (np.array([[-3.4e38, 3.4e38]], np.float32), [0, 255]),
        (np.zeros((1, 2), np.float32), [0, 0]),
    ],
)
def test_deep_grey_keeps_eight_bits_of_the_range_it_uses(
    tmp_path: Path, values: np.ndarray, expected: list[int]
) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    assert read_image(tmp_path / "deep.tiff")[0, :, 2].tolist() == expected
    if values.dtype == np.uint16:
        Image.fromarray(values).save(tmp_path / "deep.png")
        assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == expected


def test_colours_of_sixteen_bits_are_told_from_those_of_eight(tmp_path: Path) -> None:
    chunk = lambda kind, body: (  # noqa: E731
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    pixels = zlib.compress(b"\0" + struct.pack(">6H", 0, 255, 256, 65535, 4660, 511))
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )
    assert read_header(tmp_path / "deep.png").mode == "RGB;16"
    assert read_image(tmp_path / "deep.png").tolist() == [[[0, 0, 1], [255, 18, 1]]]
    assert read_header(picture(tmp_path / "plain.png")).mode == "RGB"


def test_of_an_mpo_the_first_picture_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "two.mpo", format="MPO", save_all=True, append_images=[second])
    assert find_images(tmp_path) == [tmp_path / "two.mpo"]
    red = read_image(tmp_path / "two.mpo")
    assert red.shape == (8, 16, 3) and red[0, 0].tolist() == [254, 0, 0]


def test_no_program_runs_because_an_eps_is_called_a_jpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "a.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")
    for read in (read_header, read_image, check_image):
        with pytest.raises(ImageError, match=r"a\.jpg: it is EPS, and only JPEG, PNG.* are read"):
            read(file)
    assert not ran.exists()


def test_every_picture_is_opened_with_the_list_of_decoders() -> None:
    package = Path(images.__file__).parents[1]
    for path in package.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "Image.open(" not in line or "formats=_decoders()" in line, f"{path}: {line}"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe", "folder", "device", "loop"):
        with pytest.raises(ImageError, match=rf"{name}\.jpg"):
            read_header(tmp_path / f"{name}.jpg")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "none.jpg")


def test_more_pixels_than_memory_holds_end_in_a_sentence(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.bmp")
    data = bytearray(file.read_bytes())
    data[18:26] = struct.pack("<ii", 100_000, 100_000)
    file.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="more than 178956970 pixels"):
        read_header(file)


SMALL = {
    "jpg": {"quality": 60},
    "png": {},
    "gif": {},
    "webp": {},
    "tiff": {"compression": "tiff_lzw"},
    "bmp": {},
}


@pytest.mark.parametrize("suffix", SMALL)
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(at=st.floats(0, 1), width=st.integers(0, 40), noise=st.binary(max_size=40))
def test_any_damage_ends_in_a_picture_or_an_image_error(
    tmp_path: Path, suffix: str, at: float, width: int, noise: bytes
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    about = {"exif": exif} if suffix in ("jpg", "png", "webp", "tiff") else {}
    file = picture(tmp_path / f"a.{suffix}", size=(24, 16), **SMALL[suffix], **about)
    data = file.read_bytes()
    start = int(at * len(data))
    file.write_bytes(data[:start] + noise + data[start + width :])
    outcomes = []
    for read in (check_image, read_image):
        try:
            read(file)
            outcomes.append(True)
        except ImageError:
            outcomes.append(False)
    assert outcomes[0] == outcomes[1]


def test_a_truncated_image_names_its_file(tmp_path: Path) -> None:
    path = picture(tmp_path / "cut.jpg", size=(200, 200))
    path.write_bytes(path.read_bytes()[:2000])
    assert (read_header(path).width, read_header(path).height) == (200, 200)
    with pytest.raises(DataError, match=r"cut\.jpg: .*truncated"):
        read_image(path)


def test_images_are_found_by_suffix_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "._a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.bmp").write_bytes(b"")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG"]
    assert [p.name for p in find_images(tmp_path, recursive=True)] == ["a.png", "b.JPG", "c.bmp"]
