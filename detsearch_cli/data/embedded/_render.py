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


def rasterise(figure: Distance, pose: Pose, size: int) -> Patch:
    """The figure at its pose, on all pixels it may touch, also those outside the `size` x `size` image."""
    half_w = pose.a * abs(pose.cos) + pose.b * abs(pose.sin) + 1
    half_h = pose.a * abs(pose.sin) + pose.b * abs(pose.cos) + 1
    left, top = math.floor(pose.x - half_w), math.floor(pose.y - half_h)
    dx = _axis(math.ceil(pose.x + half_w) - left) + np.float32(left - pose.x)
    dy = _axis(math.ceil(pose.y + half_h) - top)[:, None] + np.float32(top - pose.y)
    u = dx * np.float32(pose.cos) + dy * np.float32(pose.sin)
    v = dy * np.float32(pose.cos) - dx * np.float32(pose.sin)
    return Patch(top, left, figure(u, v, pose.a, pose.b), u, size)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Tight xyxy box of a (h, w) bool mask that holds at least one pixel."""
    height, width = mask.shape
    rows: np.ndarray = np.asarray(mask.any(1))
    columns: np.ndarray = np.asarray(mask.any(0))
    right, bottom = width - int(columns[::-1].argmax()), height - int(rows[::-1].argmax())
    return int(columns.argmax()), int(rows.argmax()), right, bottom


def blend(
    canvas: np.ndarray,
    patch: Patch,
    colour: tuple[int, int, int],
    *,
    opacity: float = 1.0,
    shade: float = 0.0,
) -> None:
    """Paint a figure into canvas (size, size, 3) int16, in place, its edge smoothed over a pixel.

    `shade`: grey levels the colour changes over a pixel along the figure's long axis.
    """
    inside = patch.inside
    window = canvas[patch.window]
    cover = np.clip((0.5 - patch.distance[inside]) * (_OPAQUE * opacity), 0, _OPAQUE * opacity)
    paint: np.ndarray = np.array(colour, dtype=np.int16)
    if shade:
        ramp = (patch.along[inside] * np.float32(shade)).astype(np.int16)
        paint = np.clip(paint + ramp[:, :, None], 0, 255)
    window += ((paint - window) * cover.astype(np.int16)[:, :, None]) >> 6


@cache
def _steps(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    position = np.arange(size) * (cells - 1) * 32 // size
    return position // 32, (position % 32).astype(np.int16)


def smooth_noise(rng: np.random.Generator, cells: int, size: int, channels: int, reach: int) -> np.ndarray:
    """Values in [-reach, reach] at cells x cells knots, interpolated: (size, size, channels) int16."""
    knots = (rng.random((cells, cells, channels)) * (2 * reach + 1)).astype(np.int16) - np.int16(reach)
    low, weight = _steps(cells, size)
    rows = knots[low]
    rows = rows + (((knots[low + 1] - rows) * weight[:, None, None]) >> 5)
    left = rows[:, low]
    return left + (((rows[:, low + 1] - left) * weight[None, :, None]) >> 5)


def grain(rng: np.random.Generator, size: int, reach: int) -> np.ndarray:
    """Pixel noise in [-reach, reach), (size, size, 1) int16. reach: a power of two up to 64."""
    words = rng.bit_generator.random_raw(-(-size * size // 8))
    noise = np.asarray(words, dtype="<u8").view(np.uint8)[: size * size]
    return ((noise & np.uint8(2 * reach - 1)).astype(np.int16) - np.int16(reach)).reshape(size, size, 1)


def blur(canvas: np.ndarray) -> np.ndarray:
    """The (1 2 1) x (1 2 1) / 16 filter on a (size, size, 3) int16 canvas, edges repeated."""
    for axis in (0, 1):
        pad = [(1, 1) if i == axis else (0, 0) for i in range(3)]
        wide = np.pad(canvas, pad, mode="edge")
        first, last = (wide[:-2], wide[2:]) if axis == 0 else (wide[:, :-2], wide[:, 2:])
        canvas = (first + 2 * canvas + last + 2) >> 2
    return canvas


def finish(canvas: np.ndarray) -> np.ndarray:
    """(size, size, 3) int16 -> uint8, clipped."""
    return np.clip(canvas, 0, 255).astype(np.uint8)
