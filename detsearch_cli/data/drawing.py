"""Boxes on images, and contact sheets of a split, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detsearch_cli.data.types import Split
from detsearch_cli.lettering import one_line

PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 200, 130), (240, 228, 66), (70, 110, 255), (255, 95, 31),
    (230, 110, 180), (150, 230, 60), (190, 120, 255), (0, 220, 220),
)  # fmt: skip
"""Colours of classes, in turn: Okabe and Ito's, safe for colour-blind people, brightened, and more."""

LEFT_OUT = (200, 200, 200)
"""Colour of crowd and difficult objects, which training leaves out."""

_GAP = 4
_Colour = tuple[int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LONGEST_NAME = 60  # characters of a class in the legend


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray | None,
    classes: Sequence[str],
    scores: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of the image with boxes, coloured and named by class, best scores on top.

    image (H, W, 3) uint8; boxes (N, 4) xyxy px of it; labels (N,) into `classes`, None for boxes without a
    name; scores (N,). Names much wider than their box are left out. Returns (H, W, 3) uint8.
    """
    names = ["" for _ in boxes] if labels is None else [classes[int(i)] for i in labels]
    colours = [PALETTE[0] for _ in boxes] if labels is None else [_colour(int(i)) for i in labels]
    order = np.arange(len(boxes))
    if scores is not None:
        names = [f"{name} {score:.2f}".strip() for name, score in zip(names, scores, strict=True)]
        order = np.argsort(scores, kind="stable")
    picture = Image.fromarray(image)
    _draw_all(picture, [(boxes[i], names[i], colours[i]) for i in order])
    return np.array(picture)


def contact_sheet(split: Split, indices: Sequence[int], columns: int, tile: int) -> np.ndarray:
    """Images of the split with boxes, on tiles of `tile` px, `columns` a row, under a legend of the classes.

    Boxes are drawn after scaling, so thin at any size; crowd and difficult objects are grey. uint8 (H, W, 3).
    """
    columns = max(1, min(columns, len(indices)))
    width = columns * (tile + _GAP) + _GAP
    legend = _legend(split.classes, width)
    rows = -(-len(indices) // columns)
    sheet = Image.new("RGB", (width, legend.height + rows * (tile + _GAP) + _GAP), (24, 24, 24))
    sheet.paste(legend, (0, 0))
    for place, index in enumerate(indices):
        picture = _tile(split, index, tile)
        left = _GAP + (place % columns) * (tile + _GAP) + (tile - picture.width) // 2
        top = legend.height + _GAP + (place // columns) * (tile + _GAP) + (tile - picture.height) // 2
        sheet.paste(picture, (left, top))
    return np.array(sheet)


def _tile(split: Split, index: int, tile: int) -> Image.Image:
    record = split.records[index]
    picture = Image.fromarray(split.read(index))
    factor = tile / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    scale = np.array([size[0] / picture.width, size[1] / picture.height] * 2)
    left_out = ~record.counted
    marks = [
        (box * scale, "", LEFT_OUT if out else _colour(int(label)))
        for box, label, out in zip(record.boxes, record.labels, left_out, strict=True)
    ]
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    _draw_all(picture, marks)
    return picture


def _draw_all(picture: Image.Image, marks: list[tuple[np.ndarray, str, _Colour]]) -> None:
    short = min(picture.size)
    width, size = max(1, round(short / 250)), max(9, min(16, short // 16))
    pen = ImageDraw.Draw(picture)
    for box, _, colour in marks:
        corners = _pixels(box)
        _outline(pen, corners, colour, width)
    # Names last, or later boxes would strike them through.
    for box, name, colour in marks:
        if name:
            shown, font = _lettered(name, size)
            _name(pen, _pixels(box), shown, colour, font, picture.size)


def _pixels(box: np.ndarray) -> tuple[int, int, int, int]:
    """First and last pixel of the box in x and y: the pixel that starts at x2 is outside."""
    x1, y1, x2, y2 = (float(v) for v in box)
    left, top = int(np.floor(x1)), int(np.floor(y1))
    return left, top, max(left, int(np.ceil(x2)) - 1), max(top, int(np.ceil(y2)) - 1)


def _outline(
    pen: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], colour: _Colour, width: int
) -> None:
    x1, y1, x2, y2 = corners
    if min(x2 - x1, y2 - y1) > 12 * width:
        # A dark line around keeps the colour visible on backgrounds of the same colour.
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0))
    pen.rectangle(corners, outline=colour, width=width)


def _name(
    pen: ImageDraw.ImageDraw,
    corners: tuple[int, int, int, int],
    name: str,
    colour: _Colour,
    font: _Font,
    size: tuple[int, int],
) -> None:
    x1, y1, x2, _ = corners
    left, top, right, bottom = pen.textbbox((0, 0), name, font=font)
    width, height = right - left + 4, bottom - top + 4
    if width > max(1.2 * (x2 - x1), 0.2 * size[0]):
        return
    x = max(0, min(x1, size[0] - int(width)))
    y = y1 - height if y1 >= height else y1
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), name, fill=(0, 0, 0), font=font)


def _legend(classes: Sequence[str], width: int) -> Image.Image:
    spots: list[tuple[int, int, str, _Font]] = []
    x, y = _GAP, 0
    for name in classes:
        shown, font = _lettered(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}...", 13)
        needed = 14 + round(font.getlength(shown)) + 12
        if x > _GAP and x + needed > width:
            x, y = _GAP, y + 20
        spots.append((x, y, shown, font))
        x += needed
    legend = Image.new("RGB", (width, y + 22), (24, 24, 24))
    pen = ImageDraw.Draw(legend)
    for number, (x, y, shown, font) in enumerate(spots):
        pen.rectangle((x, y + 6, x + 9, y + 15), fill=_colour(number))
        pen.text((x + 14, y + 3), shown, fill=(235, 235, 235), font=font)
    return legend


def _lettered(name: str, size: int) -> tuple[str, _Font]:
    """The name as it is drawn, and a font that has its letters."""
    shown, file = one_line(name)
    return shown, _font(size, file)


@cache
def _font(size: int, file: str | None) -> _Font:
    return ImageFont.load_default(size=size) if file is None else ImageFont.truetype(file, size)


def _colour(label: int) -> _Colour:
    return PALETTE[label % len(PALETTE)]
