"""Rasterising for the embedded sets: figures as signed distances, integer blending, background texture.

Images must be the same bits on every machine. Hence the random numbers are raw doubles of PCG64 (whose stream
numpy guarantees), sines and powers are rounded to a coarse grid before use (libraries disagree in the last
bit), geometry uses only + - * / sqrt (exact in IEEE 754), and colours are blended in integers, never by BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

MIN_PIXELS = 8
"""An object of which fewer pixels can be seen is left out of its image."""

_OPAQUE = 64


def generator(*key: int) -> np.random.Generator:
    """A generator whose stream depends on the non-negative integers of `key` only."""
    return np.random.Generator(np.random.PCG64(key))


def power_of_two(exponent: float) -> float:
    """2**exponent, rounded to 1/1024."""
    return round(2.0**exponent * 1024) / 1024


@dataclass(frozen=True)
class Pose:
    """Where a figure lies, px: centre (x, y), half axes a along and b across, cosine and sine of its turn."""

    x: float
    y: float
    a: float
    b: float
    cos: float
    sin: float

    @staticmethod
    def of(x: float, y: float, a: float, b: float, turn: float) -> Pose:
        """`turn` in full turns. Everything is rounded to 1/64 px, the angle's cosine and sine to 1/4096."""
        angle = 2 * math.pi * turn
        x, y, a, b = (round(v * 64) / 64 for v in (x, y, a, b))
        return Pose(x, y, a, b, round(math.cos(angle) * 4096) / 4096, round(math.sin(angle) * 4096) / 4096)


Distance = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def ellipse(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Distance-like value of every pixel, negative inside, about 1 a pixel at the border; u, v (h, w) px."""
    return (_radius(u, v, a, b) - 1) * min(a, b)


def box(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """A filled rectangle; see `ellipse`."""
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def ring(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """An ellipse with a hole of 60% of its axes; the wall is at least 1.6 px; see `ellipse`."""
    hole = min(0.6, 1 - 1.6 / b)
    radius = _radius(u, v, a, b)
    return np.maximum(radius - 1, hole - radius) * b


def corner(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """An L: a rectangle without all but two adjacent edges; see `ellipse`."""
    wall = max(1.6, 0.5 * b)
    cut = np.minimum(u + (a - wall), v + (b - wall))
    return np.maximum(box(u, v, a, b), cut)


def cross(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Two bars crossing at the centre; see `ellipse`."""
    wall = max(0.8, 0.3 * b)
    u, v = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(u - a, v - wall), np.maximum(u - wall, v - b))


def triangle(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    """Isosceles, base 2b, height 2a along u; see `ellipse`."""
    slant = (np.abs(v) * (2 * a) - (u + a) * b) / math.sqrt(4 * a * a + b * b)
    return np.maximum(u - a, slant)


def _radius(u: np.ndarray, v: np.ndarray, a: float, b: float) -> np.ndarray:
    return np.sqrt(np.square(u * (1 / a)) + np.square(v * (1 / b)))


@dataclass(frozen=True)
class Patch:
    """A rasterised figure. distance (h, w) float32 and along (h, w) px at rows top.. and columns left.. .

    The part inside the image is `inside`, (rows, columns) slices of the patch, and `window` of the image;
    None where the figure lies outside.
    """

    top: int
    left: int
    distance: np.ndarray
    along: np.ndarray
    size: int

    @property
    def inside(self) -> tuple[slice, slice]:
        h, w = self.distance.shape
        rows = slice(max(0, -self.top), max(0, min(h, self.size - self.top)))
        return rows, slice(max(0, -self.left), max(0, min(w, self.size - self.left)))

    @property
    def window(self) -> tuple[slice, slice]:
        h, w = self.distance.shape
        rows = slice(max(0, self.top), max(0, min(self.size, self.top + h)))
        return rows, slice(max(0, self.left), max(0, min(self.size, self.left + w)))


@cache
def _axis(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.float32) + np.float32(0.5)


def rasterise(figure: Distance, pose: Pose, size: int, *, clip: bool = False) -> Patch:
    """The figure at its pose on all pixels it may touch, unless `clip` also outside the size x size image."""
    half_w = pose.a * abs(pose.cos) + pose.b * abs(pose.sin) + 1
    half_h = pose.a * abs(pose.sin) + pose.b * abs(pose.cos) + 1
    left, right = math.floor(pose.x - half_w), math.ceil(pose.x + half_w)
    top, bottom = math.floor(pose.y - half_h), math.ceil(pose.y + half_h)
    if clip:
        left, right, top, bottom = (min(size, max(0, side)) for side in (left, right, top, bottom))
    dx = _axis(right - left) + np.float32(left - pose.x)
    dy = _axis(bottom - top)[:, None] + np.float32(top - pose.y)
    u = dx * np.float32(pose.cos) + dy * np.float32(pose.sin)
    v = dy * np.float32(pose.cos) - dx * np.float32(pose.sin)
    return Patch(top, left, figure(u, v, pose.a, pose.b), u, size)


def extent(mask: np.ndarray) -> Box:
    """Tight xyxy box of a (h, w) bool mask that holds at least one pixel."""
    height, width = mask.shape
    rows: np.ndarray = np.asarray(mask.any(1))
    columns: np.ndarray = np.asarray(mask.any(0))
    right, bottom = width - int(columns[::-1].argmax()), height - int(rows[::-1].argmax())
    return int(columns.argmax()), int(rows.argmax()), right, bottom


class Foreground:
    """Which pixels are taken already, while figures are placed from front to back."""

    def __init__(self, size: int, min_visible: float) -> None:
        """min_visible: the part of an object that must be seen for it to be placed."""
        self._taken = np.zeros((size, size), dtype=bool)
        self._min_visible = min_visible

    def place(self, patch: Patch) -> Box | None:
        """Box of the figure's own pixels inside the image; None, and no place, if too few can be seen."""
        whole = patch.distance < 0
        mask, before = whole[patch.inside], self._taken[patch.window]
        seen = np.count_nonzero(mask & ~before)
        if seen < MIN_PIXELS or seen < self._min_visible * np.count_nonzero(whole):
            return None
        before |= mask
        x1, y1, x2, y2 = extent(mask)
        left, top = max(0, patch.left), max(0, patch.top)
        return x1 + left, y1 + top, x2 + left, y2 + top

    def cover(self, patch: Patch) -> None:
        """Take the pixels of something that is no object but hides those behind."""
        self._taken[patch.window] |= patch.distance[patch.inside] < 0


def blend(
    canvas: np.ndarray, patch: Patch, colour: Colour, *, opacity: float = 1.0, shade: float = 0.0
) -> None:
    """Paint a figure into canvas (3, size, size) int16, in place, its edge smoothed over a pixel.

    `shade`: grey levels the colour changes over a pixel along the figure's long axis.
    """
    inside = patch.inside
    window = canvas[(slice(None), *patch.window)]
    paint = np.array(colour, dtype=np.int16)[:, None, None]
    if shade:
        paint = paint + (patch.along[inside] * np.float32(shade)).astype(np.int16)
    change = paint - window
    change *= _cover(patch.distance[inside], opacity)
    change >>= 6
    window += change


def stroke(canvas: np.ndarray, pose: Pose, colour: Colour, opacity: float) -> None:
    """A straight line across the whole canvas, 2 b wide, through the pose's centre."""
    size = canvas.shape[1]
    across = _axis(size) * np.float32(-pose.sin) + np.float32(pose.x * pose.sin - pose.y * pose.cos)
    distance = np.abs(across + (_axis(size) * np.float32(pose.cos))[:, None]) - np.float32(pose.b)
    rows, columns = np.nonzero(distance < 0.5)
    pixels = canvas[:, rows, columns]
    change = np.array(colour, dtype=np.int16)[:, None] - pixels
    canvas[:, rows, columns] = pixels + ((change * _cover(distance[rows, columns], opacity)) >> 6)


def _cover(distance: np.ndarray, opacity: float) -> np.ndarray:
    """How much of each pixel is painted, in 1/64, int16."""
    # minimum and maximum, because np.clip costs several times as much on small arrays.
    full = np.float32(_OPAQUE * opacity)
    part = np.maximum((np.float32(0.5) - distance) * full, np.float32(0))
    return np.minimum(part, full, out=part).astype(np.int16)


@cache
def _steps(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.arange(size) * (cells - 1) * 32 // size
    return position // 32, (position % 32).astype(np.int16)


def smooth_noise(rng: np.random.Generator, cells: int, size: int, channels: int, reach: int) -> np.ndarray:
    """Values in [-reach, reach] at cells x cells knots, interpolated: (channels, size, size) int16."""
    knots = (rng.random((channels, cells, cells)) * (2 * reach + 1)).astype(np.int16) - np.int16(reach)
    low, weight = _steps(cells, size)
    left = knots[:, :, low]
    wide = left + (((knots[:, :, low + 1] - left) * weight) >> 5)
    above = wide[:, low]
    return above + (((wide[:, low + 1] - above) * weight[:, None]) >> 5)


def grain(rng: np.random.Generator, size: int, reach: int) -> np.ndarray:
    """Pixel noise in [-reach, reach), (size, size) int16. reach: a power of two up to 64."""
    words = rng.bit_generator.random_raw(-(-size * size // 8))
    noise = np.asarray(words, dtype="<u8").view(np.uint8)[: size * size]
    return ((noise & np.uint8(2 * reach - 1)).astype(np.int16) - np.int16(reach)).reshape(size, size)


def blur(canvas: np.ndarray) -> np.ndarray:
    """The (1 2 1) x (1 2 1) / 16 filter on a (3, size, size) int16 canvas, edges repeated."""
    wide = np.pad(canvas, ((0, 0), (1, 1), (0, 0)), mode="edge")
    canvas = (wide[:, :-2] + 2 * canvas + wide[:, 2:] + 2) >> 2
    wide = np.pad(canvas, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return (wide[:, :, :-2] + 2 * canvas + wide[:, :, 2:] + 2) >> 2


def finish(canvas: np.ndarray) -> np.ndarray:
    """(3, size, size) int16 -> (size, size, 3) uint8, clipped."""
    return np.ascontiguousarray(np.minimum(np.maximum(canvas, 0), 255).astype(np.uint8).transpose(1, 2, 0))
