"""The embedded sets against geometry written a second time, and against pinned pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from detsearch_cli.data.embedded import _render as r
from detsearch_cli.data.embedded import faces, shapes
from detsearch_cli.errors import DataError

SEED_KEY = shapes._SET


def scenes(count: int, size: int = 96) -> list[list[shapes.Figure]]:
    return [shapes.scene(r.generator(SEED_KEY, 0, 0, i), size, 6, 8) for i in range(count)]


def reference_mask(name: str, pose: r.Pose, size: int) -> np.ndarray:
    """Pixels of an image whose centres lie in the figure, by polygons and the ellipse's equation."""
    y, x = np.mgrid[:size, :size] + 0.5
    dx, dy = x - pose.x, y - pose.y
    points = np.stack([dx * pose.cos + dy * pose.sin, dy * pose.cos - dx * pose.sin], -1).reshape(-1, 2)
    a, b = pose.a, pose.b
    if name in ("ellipse", "ring"):
        radius = points[:, 0] ** 2 / a**2 + points[:, 1] ** 2 / b**2
        hole = max(0.0, min(0.6, 1 - 1.6 / b)) if name == "ring" else 0.0
        return ((radius < 1) & (radius >= hole**2)).reshape(size, size)
    wall_l, wall_x = max(1.6, 0.5 * b), max(0.8, 0.3 * b)
    corners = {
        "box": [(-a, -b), (a, -b), (a, b), (-a, b)],
        "triangle": [(-a, 0), (a, b), (a, -b)],
        "corner": [(-a, -b), (a, -b), (a, wall_l - b), (wall_l - a, wall_l - b), (wall_l - a, b), (-a, b)],
        "cross": [
            (-a, -wall_x), (-wall_x, -wall_x), (-wall_x, -b), (wall_x, -b), (wall_x, -wall_x), (a, -wall_x),
            (a, wall_x), (wall_x, wall_x), (wall_x, b), (-wall_x, b), (-wall_x, wall_x), (-a, wall_x),
        ],
    }[name]  # fmt: skip
    return Polygon([*corners, corners[0]]).contains_points(points).reshape(size, size)


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_a_figure_covers_the_pixels_its_geometry_says(name: str) -> None:
    size, rng = 64, np.random.default_rng(3)
    for _ in range(20):
        a = rng.uniform(8, 30)
        pose = r.Pose.of(rng.uniform(0, 64), rng.uniform(0, 64), a, a * rng.uniform(0.3, 1), rng.uniform())
        patch = r.rasterise(shapes._FIGURES[shapes.CLASSES.index(name)], pose, size)
        drawn = np.zeros((size, size), dtype=bool)
        drawn[patch.window] = patch.distance[patch.inside] < 0
        # A pixel centre on the very edge may fall on either side in float32.
        assert np.count_nonzero(drawn != reference_mask(name, pose, size)) <= 1


def test_a_box_reaches_exactly_to_the_outermost_pixels_of_its_own_figure() -> None:
    for figure in (f for scene in scenes(40) for f in scene):
        mask = np.zeros((96, 96), dtype=bool)
        mask[figure.patch.window] = figure.patch.distance[figure.patch.inside] < 0
        rows, columns = np.nonzero(mask)
        assert figure.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_every_labelled_figure_shows_at_least_a_fifth_of_itself() -> None:
    for scene in scenes(60):
        owner = np.full((96, 96), -1)
        for number, figure in enumerate(scene):
            owner[figure.patch.window][figure.patch.distance[figure.patch.inside] < 0] = number
        for number, figure in enumerate(scene):
            visible, whole = np.count_nonzero(owner == number), np.count_nonzero(figure.patch.distance < 0)
            assert visible >= shapes.MIN_VISIBLE * whole


def test_painting_changes_what_the_box_says_and_little_else() -> None:
    canvas = np.zeros((3, 64, 64), dtype=np.int16)
    patch = r.rasterise(r.ring, r.Pose.of(30, 28, 16, 9, 0.1), 64)
    r.blend(canvas, patch, (200, 200, 200))
    box = r.Foreground(64, 0.2).place(patch)
    assert box is not None
    x1, y1, x2, y2 = box
    assert (canvas[0, y1:y2, x1:x2] >= 100).any()
    canvas[:, y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = 0
    assert not canvas.any()


def test_the_same_seed_gives_the_same_bits_on_every_machine() -> None:
    """Pinned: a change here changes every published number on the embedded sets."""
    digest = hashlib.sha256()
    for source in (shapes.source({"size": "96"}), faces.source({"size": "96", "domain": "5"})):
        split = source.load("val")
        for index in (0, 7):
            digest.update(split.read(index).tobytes())
            digest.update(split.records[index].boxes.astype("<f4").tobytes())
    assert digest.hexdigest()[:16] == "2358e96d76db526c"


def test_images_do_not_depend_on_how_many_are_asked_for_and_differ_between_splits_and_seeds() -> None:
    few, many = (shapes.source({"images": n, "size": "64"}).load("train") for n in ("4", "12"))
    other = shapes.source({"images": "4", "size": "64", "seed": "1"}).load("train")
    test = shapes.source({"images": "4", "size": "64"}).load("test")
    assert np.array_equal(few.read(3), many.read(3))
    assert few.records[3].key == many.records[3].key
    assert not np.array_equal(few.read(0), other.read(0))
    assert not np.array_equal(few.read(0), test.read(0))
    keys = {split.records[0].key for split in (few, other, test)}
    assert len(keys) == 3


def test_shapes_are_hard_in_the_ways_promised() -> None:
    split = shapes.source({"images": "300", "size": "160", "classes": "6"}).load("train")
    sides = np.concatenate([rec.boxes[:, 2:] - rec.boxes[:, :2] for rec in split.records])
    labels = np.concatenate([rec.labels for rec in split.records])
    longest = sides.max(1)
    assert np.quantile(longest, 0.98) / np.quantile(longest, 0.02) > 6, "three octaves, cut by the border"
    assert np.mean(longest / sides.min(1) > 2) > 0.1, "elongated boxes"
    assert np.bincount(labels, minlength=6).min() > 0.1 * len(labels), "all classes are common"
    counts = np.array([len(rec.labels) for rec in split.records])
    assert (counts == 0).any() and counts.max() >= 12, "empty and crowded images"
    hollow = [f for scene in scenes(80, 160) for f in scene if shapes.CLASSES[f.label] in ("ring", "corner")]
    empty_centre = 0
    for figure in hollow:
        x, y = (figure.box[0] + figure.box[2]) // 2, (figure.box[1] + figure.box[3]) // 2
        empty_centre += figure.patch.distance[y - figure.patch.top, x - figure.patch.left] > 0
    assert empty_centre > 0.7 * len(hollow), "the box centre of hollow figures is background"


def test_all_face_domains_look_different_and_hold_faces() -> None:
    looks = []
    for domain in range(len(faces.DOMAINS)):
        split = faces.source({"images": "30", "size": "96", "domain": str(domain)}).load("train")
        boxes = np.concatenate([rec.boxes for rec in split.records])
        assert len(boxes) >= 15 and (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0 and boxes.max() <= 96
        pixels = np.stack([split.read(i) for i in range(10)])
        looks.append([*pixels.mean((0, 1, 2)), len(boxes), np.median(boxes[:, 3] - boxes[:, 1])])
    table = np.array(looks)
    distance = np.abs(table[:, None] - table[None]).max(-1) + np.eye(len(table)) * 1e9
    assert distance.min() > 4


def test_a_box_of_a_face_is_that_of_its_head() -> None:
    for index in range(20):
        heads = faces.scene(r.generator(faces._SET, 0, 1, 0, index), 128, faces.DOMAINS[1])
        labels = faces.annotate(0, index, seed=0, size=128, domain=1)
        drawn = [reference_mask("ellipse", head.pose, 128) for head in heads if not head.decoy]
        for mask, box in zip(drawn, labels.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert np.abs(box - tight).max() <= 1


@pytest.mark.parametrize("module", [shapes, faces])
@pytest.mark.parametrize(
    "options",
    [{"imagez": "3"}, {"images": "-1"}, {"images": "0"}, {"size": "abc"}, {"size": "8"}, {"seed": ""}],
)
def test_a_bad_option_is_named_together_with_the_allowed_ones(
    module: object, options: dict[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        module.source(options)  # type: ignore[attr-defined]
    message = str(caught.value)
    assert next(iter(options)) in message and "images, val, test, size, seed" in message


def test_split_sizes_follow_images_unless_given_and_empty_splits_are_not_offered() -> None:
    source = shapes.source({"images": "40", "size": "32"})
    assert [len(source.load(s)) for s in source.splits] == [40, 10, 20]
    source = shapes.source({"images": "4", "val": "3", "test": "0", "size": "32"})
    assert source.splits == ("train", "val")
    assert len(source.load("val")) == 3
    with pytest.raises(DataError, match="train, val"):
        source.load("test")


def test_the_embedded_sets_need_no_torch() -> None:
    code = (
        "import sys; from detsearch_cli.data.embedded import shapes, faces;"
        "shapes.source({}), faces.source({}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
