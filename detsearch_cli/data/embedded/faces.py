"""Simple faces in eight domains that differ in palette, light, size, blur and crowding; one class.

A detector trained in one domain loses on another, as one trained on photographs of parades loses on night
scenes. Plain ovals of skin colour, without eyes, are in every image and are no faces. A face's box is that of
its head without the hair.

Options: images, val, test, size, seed, domain (0 to 7, rows of `DOMAINS`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from detsearch_cli.data.embedded import _render as r
from detsearch_cli.data.embedded._source import COMMON, EmbeddedSource, Labels, Option, build, parse

CLASSES = ("face",)
_SET = 2
_NUMBERS_A_FACE = 12


@dataclass(frozen=True)
class Domain:
    """How a domain looks.

    small, large: head heights as parts of the image. crowd: the most heads in an image. light: brightness, 1
    is plain. tint: added to red, green, blue. blur: passes of the filter. noise: reach of the grain, a power
    of two. skins, backs: colours to choose from.
    """

    name: str
    small: float
    large: float
    crowd: int
    light: float
    tint: r.Colour
    blur: int
    noise: int
    skins: tuple[r.Colour, ...]
    backs: tuple[r.Colour, ...]


_SKINS = ((236, 200, 172), (214, 166, 130), (176, 122, 88), (122, 80, 56), (84, 54, 40))
_GREY = ((205, 205, 205), (165, 165, 165), (120, 120, 120))
DOMAINS = (
    Domain("portrait", 0.30, 0.70, 2, 1.0, (0, 0, 0), 0, 4, _SKINS, ((90, 120, 150), (150, 140, 120))),
    Domain("group", 0.14, 0.35, 8, 1.0, (8, 4, -6), 0, 8, _SKINS, ((110, 130, 90), (130, 110, 90))),
    Domain("crowd", 0.07, 0.16, 28, 0.95, (0, 0, 0), 0, 8, _SKINS, ((120, 115, 110), (100, 90, 90))),
    Domain("night", 0.10, 0.40, 5, 0.40, (-6, 0, 24), 1, 16, _SKINS, ((60, 60, 90), (70, 50, 60))),
    Domain("stage", 0.10, 0.35, 6, 0.80, (50, -20, 40), 0, 8, _SKINS, ((110, 40, 100), (60, 40, 120))),
    Domain("cctv", 0.07, 0.20, 6, 0.85, (0, 0, 0), 2, 16, _GREY, ((110, 110, 110), (140, 140, 140))),
    Domain("motion", 0.15, 0.50, 4, 1.05, (0, 0, 0), 3, 4, _SKINS, ((140, 150, 160), (120, 140, 110))),
    Domain("poster", 0.10, 0.60, 5, 1.1, (0, 0, 0), 0, 2, ((255, 220, 60), (120, 220, 160), (250, 150, 190)),
           ((230, 230, 235), (40, 60, 140), (200, 60, 50))),
)  # fmt: skip
_OPTIONS = COMMON | {"domain": Option(0, 0, len(DOMAINS) - 1)}


MIN_VISIBLE = 0.4
"""A face of which a smaller part can be seen is left out of the image, and so never goes unlabelled."""


@dataclass(frozen=True)
class Head:
    """A face or, `decoy`, a bare oval: pose, patch, box (xyxy px), random numbers of its looks."""

    decoy: bool
    pose: r.Pose
    patch: r.Patch
    box: r.Box
    looks: list[float]


def source(options: dict[str, str]) -> EmbeddedSource:
    """The set for `--data faces:key=value,...`. Raises DataError naming a bad option."""
    values = parse("faces", options, _OPTIONS)
    bound = {k: values[k] for k in ("seed", "size", "domain")}
    return build("faces", values, CLASSES, partial(annotate, **bound), partial(render, **bound))


def annotate(split: int, index: int, *, seed: int, size: int, domain: int) -> Labels:
    """Boxes and labels of an image's faces, back to front."""
    heads = scene(r.generator(_SET, seed, domain, split, index), size, DOMAINS[domain])
    boxes = np.array([h.box for h in heads if not h.decoy], dtype=np.float32).reshape(-1, 4)
    return Labels(boxes, np.zeros(len(boxes), dtype=np.int64))


def render(split: int, index: int, *, seed: int, size: int, domain: int) -> np.ndarray:
    """An image, uint8 (size, size, 3)."""
    look = DOMAINS[domain]
    rng = r.generator(_SET, seed, domain, split, index)
    heads = scene(rng, size, look)
    canvas = _background(rng, size, look)
    for head in heads:
        _paint(canvas, head, look)
    for _ in range(look.blur):
        canvas = r.blur(canvas)
    canvas = ((canvas * np.int32(round(look.light * 64))) >> 6).astype(np.int16)
    canvas += np.array(look.tint, dtype=np.int16)[:, None, None] + r.grain(rng, size, look.noise)
    return r.finish(canvas)


def scene(rng: np.random.Generator, size: int, look: Domain) -> list[Head]:
    """The heads of an image, small (far) ones first, without those that others hide."""
    faces = 1 + int(float(rng.random()) * look.crowd)
    decoys = 1 + int(float(rng.random()) * (1 + look.crowd // 4))
    numbers = rng.random((faces + decoys, _NUMBERS_A_FACE)).tolist()
    octaves = math.log2(look.large / look.small)
    drafts = []
    for i, n in enumerate(numbers):
        height = max(9.0, size * look.small * r.power_of_two(octaves * n[0]))
        margin = min(0.3 * height, 0.5 * size)
        x, y = (margin + v * (size - 2 * margin) for v in n[1:3])
        width = height * (0.62 + 0.2 * n[3])
        drafts.append(
            (height, i >= faces, r.Pose.of(x, y, height / 2, width / 2, 0.25 + 0.12 * (n[4] - 0.5)), n)
        )
    drafts.sort(key=lambda d: -d[0])
    return _visible([d[1:] for d in drafts], size)


def _visible(drafts: list[tuple[bool, r.Pose, list[float]]], size: int) -> list[Head]:
    """Front to back: what is left of each head by those before it decides whether it stays."""
    front = r.Foreground(size, MIN_VISIBLE)
    kept: list[Head] = []
    for decoy, pose, n in drafts:
        patch = r.rasterise(r.ellipse, pose, size)
        box = front.place(patch)
        if box is None:
            continue
        kept.append(Head(decoy, pose, patch, box, n))
        if not decoy:
            for part in (_hair(pose), _shoulders(pose)):
                front.cover(r.rasterise(r.ellipse, part, size, clip=True))
    return kept[::-1]


def _part(head: r.Pose, down: float, across: float, a: float, b: float) -> r.Pose:
    """A part of a head, in the head's half heights (down, a) and half widths (across, b)."""
    du, dv = down * head.a, across * head.b
    x, y = head.x + du * head.cos - dv * head.sin, head.y + du * head.sin + dv * head.cos
    return r.Pose(x, y, a * head.a, b * head.b, head.cos, head.sin)


def _hair(head: r.Pose) -> r.Pose:
    return _part(head, -0.25, 0, 0.95, 1.15)


def _shoulders(head: r.Pose) -> r.Pose:
    return _part(head, 1.95, 0, 1.0, 2.0)


def _paint(canvas: np.ndarray, head: Head, look: Domain) -> None:
    """Shoulders, hair, head, and on it brows, eyes, nose and mouth; of a decoy only the head."""
    n, size = head.looks, canvas.shape[1]
    skin = look.skins[int(n[5] * len(look.skins))]
    light = int((n[6] - 0.5) * 40)
    skin = (skin[0] + light, skin[1] + light, skin[2] + light)
    shade = (n[7] - 0.5) * 40 / head.pose.a

    def add(part: r.Pose, colour: r.Colour, opacity: float = 1.0) -> None:
        r.blend(canvas, r.rasterise(r.ellipse, part, size, clip=True), colour, opacity=opacity)

    if not head.decoy:
        add(_shoulders(head.pose), _cloth(n[8]))
        add(_hair(head.pose), _hair_colour(n[9]))
    r.blend(canvas, head.patch, skin, shade=shade)
    if head.decoy:
        return
    dark = (skin[0] // 3, skin[1] // 3, skin[2] // 3)
    turned = (n[10] - 0.5) * 0.5
    add(_part(head.pose, -0.84, 0, 0.24, 0.72), _hair_colour(n[9]), 0.9)
    for side in (-0.42, 0.42):
        add(_part(head.pose, -0.18, side + turned, 0.11, 0.2), (235, 235, 235))
        add(_part(head.pose, -0.18, side + turned, 0.1, 0.11), (30, 25, 25))
        add(_part(head.pose, -0.38, side + turned, 0.05, 0.24), dark, 0.9)
    add(_part(head.pose, 0.15, 1.3 * turned, 0.18, 0.09), dark, 0.35)
    add(
        _part(head.pose, 0.52, turned, 0.05 + 0.1 * n[11], 0.36),
        (skin[0] * 3 // 4, skin[1] // 2, skin[2] // 2),
    )


def _cloth(number: float) -> r.Colour:
    """One of 512 colours."""
    code = int(number * 512)
    return 30 + code % 8 * 28, 30 + code // 8 % 8 * 28, 30 + code // 64 * 28


def _hair_colour(number: float) -> r.Colour:
    return ((25, 20, 18), (70, 45, 25), (120, 85, 45), (190, 160, 100), (150, 150, 150))[int(number * 5)]


def _background(rng: np.random.Generator, size: int, look: Domain) -> np.ndarray:
    """Walls and things: texture, boxes of any colour, strokes."""
    start = rng.random(2).tolist()
    base = np.array(look.backs[int(start[0] * len(look.backs))], dtype=np.int16)
    canvas = r.smooth_noise(rng, 5, size, 3, 24) + base[:, None, None]
    canvas += r.smooth_noise(rng, 8 + size // 8, size, 1, 8 + int(start[1] * 16))
    for n in rng.random((7, 9)).tolist():
        side = size * 0.05 * r.power_of_two(2.5 * n[0])
        pose = r.Pose.of(n[1] * size, n[2] * size, side, max(1.0, side * n[3]), n[4])
        colour = (int(n[5] * 220), int(n[6] * 220), int(n[7] * 220))
        r.blend(canvas, r.rasterise(r.box, pose, size, clip=True), colour, opacity=0.3 + 0.6 * n[8])
    return canvas
