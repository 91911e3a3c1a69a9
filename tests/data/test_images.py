"""Images are read as they are shown; Pillow's own exif_transpose and conversions are the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from detsearch_cli.data.images import find_images, read_header, read_image, turn_boxes
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


def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 65535], [4660, 32768, 511, 512]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png")[..., 0], (values >> 8).astype(np.uint8))


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
