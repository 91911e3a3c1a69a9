"""Reads images as they are shown: EXIF rotation applied, any mode converted to 8-bit RGB.

A file is opened by what it holds, never by its name, and only by the decoders of FORMATS: Pillow has others, of which
that for EPS starts a program. Whatever a decoder raises ends in one ImageError.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from detsearch_cli.errors import DataError
from detsearch_cli.reading import open_regular

# Pillow warns of every odd tag and of large images, line by line; whether an image is read is decided here, and said.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "MPO", "PPM")
"""What is read, by Pillow's names."""
SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".mpo", ".ppm", ".pgm",
    }
)  # fmt: skip
# How other files begin that people give for images, to name them.
_OTHERS = {
    b"%!PS": "EPS",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"<": "text, such as SVG or HTML",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}
_UNFIT = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
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
_TOPS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""The brightest values of floats in [0, 1] and of sensors with 8, 10, 12, 14 and 16 bits."""


class ImageError(DataError):
    """A file that is there and cannot be read as an image. `reason`: why, without the file's name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Header:
    """What an image's header says.

    width, height: px as shown, after EXIF rotation; orientation: that of EXIF, 1 is upright. mode: Pillow's, with
    `;16` for colours of 16 bits a channel, which Pillow itself does not tell.
    """

    width: int
    height: int
    mode: str
    orientation: int

    @property
    def sideways(self) -> bool:
        """Whether the stored pixels have width and height swapped."""
        return self.orientation >= 5


@cache
def _decoders() -> tuple[str, ...]:
    """Those of FORMATS that Pillow knows how to open: MPO is left to its decoder of JPEG, WebP may not be built in."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, not yet decoded.

    Raises FileNotFoundError, ImageError, and DataError where the system cannot read the file now.
    """
    try:
        file = open_regular(path, DataError)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError):
            raise FileNotFoundError(str(path)) from error
        if cause is None:
            raise ImageError(path, "it is a folder, a pipe or a device, not a file") from error
        # of the file, not of its disk: no later look finds it otherwise
        if isinstance(cause, ValueError) or (isinstance(cause, OSError) and cause.errno in _UNFIT):
            raise ImageError(path, getattr(cause, "strerror", None) or str(cause)) from error
        raise
    with file:
        try:
            with Image.open(file, formats=_decoders()) as image:
                yield image
        except ImageError:
            raise
        except MemoryError as error:
            raise DataError(f"cannot read image {path}: there is too little memory to decode it") from error
        # not a list of types: a decoder that meets nonsense raises what it happens to trip over, a KeyError even
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                # of the disk or the network, not of the file's content, so the file is not called broken
                raise DataError(f"cannot read image {path}: {error.strerror}; is its disk there?") from error
            file.seek(0)
            raise ImageError(path, _why(error, file.read(32))) from error


def _why(error: Exception, head: bytes) -> str:
    """What is wrong, in words. head: the file's first bytes."""
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {most} pixels, the most that are decoded; cut it into tiles"
    if not isinstance(error, Image.UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__
    if not head:
        return "the file is empty"
    what = next((name for begin, name in _OTHERS.items() if head.startswith(begin)), None)
    if head[4:8] == b"ftyp":
        what = "HEIC, AVIF or a video"
    begin = f"it is {what}, and" if what else "it is no image:"
    return f"{begin} only {', '.join(FORMATS)} are read"


def _orientation(image: Image.Image) -> int:
    # Only what the header holds: PngImageFile.getexif() would decode the pixels. Pillow itself rotates TIFF.
    data = image.info.get("exif")
    if not data or image.format == "TIFF":
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(_ORIENTATION, 1)
    except Exception:  # EXIF is read by hand in Pillow and raises as decoders do; the pixels are good without
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSE else 1


def _mode(image: Image.Image) -> str:
    """Pillow's mode, with `;16` for colours whose lower bytes Pillow drops."""
    tiles = getattr(image, "tile", [])
    raw = str(tiles[0][3]) if tiles else ""
    return f"{image.mode};16" if image.mode in ("RGB", "RGBA", "LA", "CMYK") and ";16" in raw else image.mode


def read_header(path: Path) -> Header:
    """Size, mode and orientation, without decoding.

    Raises FileNotFoundError; ImageError for what is no image; DataError where the system cannot read the file now.
    """
    with _opened(path) as image:
        width, height = image.size
        mode, orientation = _mode(image), _orientation(image)
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, mode, orientation)


def read_image(path: Path) -> np.ndarray:
    """Decode to uint8 (H, W, 3) RGB, upright; alpha is dropped as OpenCV drops it.

    Raises DataError naming the file when it is missing, ImageError when it is truncated or no image.
    """
    try:
        with _opened(path) as image:
            turn = _TRANSPOSE.get(_orientation(image))
            image.load()
            return _to_rgb(image if turn is None else image.transpose(turn))
    except FileNotFoundError as error:
        raise DataError(f"cannot read image {path}: no such file") from error


def check_image(path: Path) -> None:
    """Whether `read_image` can decode the file, in about half its time. Raises what `read_header` raises.

    A JPEG is decoded at an eighth of its size: all of its data is read as for the whole image, so exactly the same
    files are refused, and most of the arithmetic is saved.
    """
    with _opened(path) as image:
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow mode -> uint8 (H, W, 3)."""
    if image.mode == "RGB":
        return np.array(image)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_eight_bits(np.array(image))[..., None], 3, axis=2)
    # Through RGBA, because Pillow warns when a palette with transparency goes straight to RGB.
    if image.mode in ("P", "PA", "LA"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, (H, W) -> uint8, scaled by the range that the image uses.

    The range is 0 to the smallest of _TOPS that holds the brightest value, else to that value itself, and reaches as
    far below 0 where there are negative values. By the type's range a 12-bit camera's image would keep 16 levels.
    NaN and infinity are 0.
    """
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    most = float(np.abs(finite).max(initial=0))
    tops = _TOPS if values.dtype.kind == "f" else _TOPS[1:]
    top = next((top for top in tops if most <= top), most)
    low = -top if finite.min(initial=0) < 0 else 0.0
    return ((finite / (top - low) - low / (top - low)) * 255 + 0.5).astype(np.uint8)


def conversion(mode: str) -> tuple[str, str] | None:
    """(kind of image, what is done about it) for a header's mode; None for plain RGB."""
    if mode == "RGB":
        return None
    if mode.startswith("I") or mode == "F":
        kind = "16-bit image" if ";16" in mode else "float image" if mode == "F" else "32-bit image"
        return kind, "scaled to 8 bits by the range that it uses"
    if mode.endswith(";16"):
        return "16-bit image", "converted to RGB, the upper 8 bits of each channel"
    kinds = {"L": "grey", "1": "grey", "LA": "grey", "P": "palette", "PA": "palette"}
    kinds |= {"RGBA": "RGBA", "RGBX": "RGBA", "RGBa": "RGBA"}
    return f"{kinds.get(mode, mode)} image", "converted to RGB"


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
