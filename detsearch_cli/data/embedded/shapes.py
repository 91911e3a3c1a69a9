"""Geometric figures, hard on purpose: three octaves of size, elongated, rotated, hollow, occluded, crowded.

What makes it hard is what a sample assignment decides about: the centre of a ring's or an L's box is
background; boxes of thin slanted figures are mostly background; small figures come in crowds of one class;
classes resemble each other (ellipse and ring, box and corner). Colours say nothing about the class.

Options: images, val, test, size, seed, classes (the first 2 to 6 of `CLASSES`), objects (the most scattered
figures in an image; crowds come on top).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from detsearch_cli.data.embedded import _render as r
from detsearch_cli.data.embedded._source import COMMON, EmbeddedSource, Labels, Option, build, parse

CLASSES = ("ellipse", "box", "ring", "corner", "cross", "triangle")
_FIGURES: tuple[r.Distance, ...] = (r.ellipse, r.box, r.ring, r.corner, r.cross, r.triangle)
_OPTIONS = COMMON | {"classes": Option(5, 2, len(CLASSES)), "objects": Option(8, 1, 64)}
_SET = 1

MIN_VISIBLE = 0.2
"""A figure of which a smaller part can be seen is left out of the image, and so never goes unlabelled."""

_SMALLEST, _OCTAVES = 0.075, 3.0
_NUMBERS_A_FIGURE = 12


@dataclass(frozen=True)
class Figure:
    """One object: label, patch, box (xyxy px, of its own pixels inside the image), colour and shade."""

    label: int
    patch: r.Patch
    box: r.Box
    colour: r.Colour
    shade: float


def source(options: dict[str, str]) -> EmbeddedSource:
    """The set for `--data shapes:key=value,...`. Raises DataError naming a bad option."""
    values = parse("shapes", options, _OPTIONS)
    bound = {k: values[k] for k in ("seed", "size", "classes", "objects")}
    classes = CLASSES[: values["classes"]]
    return build("shapes", values, classes, partial(annotate, **bound), partial(render, **bound))


def annotate(split: int, index: int, *, seed: int, size: int, classes: int, objects: int) -> Labels:
    """Boxes and labels of an image, back to front."""
    figures = scene(r.generator(_SET, seed, split, index), size, classes, objects)
    boxes = np.array([f.box for f in figures], dtype=np.float32).reshape(-1, 4)
    return Labels(boxes, np.array([f.label for f in figures], dtype=np.int64))


def render(split: int, index: int, *, seed: int, size: int, classes: int, objects: int) -> np.ndarray:
    """An image, uint8 (size, size, 3)."""
    rng = r.generator(_SET, seed, split, index)
    figures = scene(rng, size, classes, objects)
    canvas, base = _background(rng, size)
    for figure in figures:
        r.blend(canvas, figure.patch, _contrasting(figure.colour, base), shade=figure.shade)
    canvas += r.grain(rng, size, 8)
    return r.finish(canvas)


def scene(rng: np.random.Generator, size: int, classes: int, objects: int) -> list[Figure]:
    """The figures of an image, back to front, without those that others hide."""
    start = rng.random(6).tolist()
    scattered = 0 if start[0] < 0.03 else 1 + int(start[1] * objects)
    crowd = 4 + int(start[3] * 7) if start[2] < 0.3 else 0
    centre = (start[4] * size, start[5] * size)
    numbers = rng.random((scattered + crowd + 1, _NUMBERS_A_FIGURE)).tolist()
    crowd_label = int(numbers[-1][0] * classes)
    drafts = []
    for i, n in enumerate(numbers[:-1]):
        crowded = i >= scattered
        label = crowd_label if crowded else int(n[0] * classes)
        pose = _pose(n, size, centre if crowded else None)
        # Small figures tend to lie in front, or large ones would hide most of them.
        drafts.append((pose.a * (0.5 + n[7]), label, pose, n))
    drafts.sort(key=lambda d: d[0])
    return _visible([(label, pose, n) for _, label, pose, n in drafts], size)


def _pose(n: list[float], size: int, crowd: tuple[float, float] | None) -> r.Pose:
    octaves = _OCTAVES if crowd is None else 1.0
    length = max(8.0, size * _SMALLEST * r.power_of_two(octaves * n[1]))
    aspect = r.power_of_two(0.4 * n[3] if n[2] < 0.4 else 0.8 + 1.4 * n[3])
    # The image may cut figures, but not so far that the rest could be of another class.
    margin = 0.3 * length
    x, y = (margin + v * (size - 2 * margin) for v in n[4:6])
    if crowd is not None:
        x, y = (c + (v - 0.5) * 0.4 * size for c, v in zip(crowd, n[4:6], strict=True))
    return r.Pose.of(x, y, length / 2, max(1.75, length / 2 / aspect), n[6])


def _visible(drafts: list[tuple[int, r.Pose, list[float]]], size: int) -> list[Figure]:
    """Front to back: what is left of each figure by those before it decides whether it stays."""
    front = r.Foreground(size, MIN_VISIBLE)
    kept: list[Figure] = []
    for label, pose, n in drafts:
        patch = r.rasterise(_FIGURES[label], pose, size)
        box = front.place(patch)
        if box is not None:
            colour = (int(n[8] * 256), int(n[9] * 256), int(n[10] * 256))
            kept.append(Figure(label, patch, box, colour, (n[11] - 0.5) * 96 / pose.a))
    return kept[::-1]


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, r.Colour]:
    """Texture of two scales crossed by strokes longer than any figure; and its mean colour."""
    numbers = rng.random(4).tolist()
    base = (40 + int(numbers[0] * 176), 40 + int(numbers[1] * 176), 40 + int(numbers[2] * 176))
    canvas = r.smooth_noise(rng, 5, size, 3, 32) + np.array(base, dtype=np.int16)[:, None, None]
    canvas += r.smooth_noise(rng, 8 + size // 8, size, 1, 12 + int(numbers[3] * 28))
    for n in rng.random((3, 7)).tolist():
        pose = r.Pose.of(n[0] * size, n[1] * size, size, 0.5 + 1.5 * n[2], n[3])
        tone = [max(0, min(255, c + int((n[4 + i] - 0.5) * 160))) for i, c in enumerate(base)]
        r.stroke(canvas, pose, (tone[0], tone[1], tone[2]), 0.75)
    return canvas, base


def _contrasting(colour: r.Colour, base: r.Colour) -> r.Colour:
    """The colour itself, or its opposite when it can hardly be told from the background."""
    if sum(abs(c - b) for c, b in zip(colour, base, strict=True)) >= 110:
        return colour
    red, green, blue = ((c + 128) % 256 for c in colour)
    return red, green, blue
