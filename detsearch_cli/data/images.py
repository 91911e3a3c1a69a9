"""Reads images as they are shown: EXIF rotation applied, any mode converted to 8-bit RGB."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detsearch_cli.errors import DataError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jfif"}
)
_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises for files that are no image, cut short, or larger than it dares to decode.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Header:
    """What an image's header says.

    width, height: px as shown, after EXIF rotation; orientation: that of EXIF, 1 is upright.
    """

    width: int
    height: int
    mode: str
    orientation: int

    @property
    def sideways(self) -> bool:
        """Whether the stored pixels have width and height swapped."""
        return self.orientation >= 5


def _orientation(image: Image.Image) -> int:
    # Only what the header holds: PngImageFile.getexif() would decode the pixels. Pillow itself rotates TIFF.
    data = image.info.get("exif")
    if not data or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return value if value in _TRANSPOSE else 1


def _why(error: BaseException) -> str:
    return "not an image Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def read_header(path: Path) -> Header:
    """Size, mode and orientation, without decoding. Raises FileNotFoundError; DataError when unreadable."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            mode, orientation = image.mode, _orientation(image)
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise DataError(f"cannot read image {path}: {_why(error)}") from error
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, mode, orientation)


def read_image(path: Path) -> np.ndarray:
    """Decode to uint8 (H, W, 3) RGB, upright; alpha is dropped as OpenCV drops it.

    Raises DataError naming the file when it is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            turn = _TRANSPOSE.get(_orientation(image))
            image.load()
            return _to_rgb(image if turn is None else image.transpose(turn))
    except _BROKEN as error:
        hint = "; `detsearch data inspect` lists every such file"
        reason = "no such file" if isinstance(error, FileNotFoundError) else _why(error)
        raise DataError(f"cannot decode image {path}: {reason}{hint}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode -> uint8 (H, W, 3). 16-bit grey keeps its upper byte; floats are [0, 1] or [0, 255]."""
    if image.mode == "RGB":
        return np.array(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.array(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        values = np.nan_to_num(np.array(image))
        scale = 255.0 if values.size and values.max() <= 1 else 1.0
        return np.repeat(np.clip(values * scale, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    # Through RGBA, because Pillow warns when a palette with transparency goes straight to RGB.
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def turn_boxes(boxes: np.ndarray, orientation: int, width: int, height: int) -> np.ndarray:
    """Boxes (N, 4) xyxy px of the stored pixels -> of the image as shown; width, height: px as shown."""
    x1, y1, x2, y2 = boxes.T
    if orientation == 5:
        turned = (y1, x1, y2, x2)
    elif orientation == 6:
        turned = (width - y2, x1, width - y1, x2)
    elif orientation == 7:
        turned = (width - y2, height - x2, width - y1, height - x1)
    elif orientation == 8:
        turned = (y1, height - x2, y2, height - x1)
    else:
        raise ValueError(f"only sideways orientations 5 to 8 turn boxes, got {orientation}")
    return np.stack(turned, axis=1)


def find_images(folder: Path, recursive: bool = False) -> list[Path]:
    """Image files in `folder` by suffix, sorted by path; hidden ones left out."""
    if recursive:
        found = [
            Path(parent) / name for parent, _, names in os.walk(folder) for name in names if _is_image(name)
        ]
    else:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _is_image(entry.name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
