"""Transforms against torchvision's own on tv_tensors, and against pixels that know their label."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detsearch_cli.data.transforms import (
    Rule,
    Sample,
    Transform,
    distort,
    flip,
    paste,
    seed_of,
    seeded,
)
from detsearch_cli.recipe import Augment


def augment(**settings: object) -> Augment:
    return Augment.model_validate({"image_size": 64, "flip": 0.0} | settings)


def labelled(height: int = 90, width: int = 120) -> Sample:
    """Four separate rectangles, each painted in 40 x (label + 1)."""
    boxes = torch.tensor([[5, 5, 45, 35], [60, 8, 110, 30], [10, 50, 30, 85], [50, 45, 115, 80]]).float()
    labels = torch.arange(4)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for box, label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
        image[:, box[1] : box[3], box[0] : box[2]] = 40 * (label + 1)
    return Sample(image, boxes, labels)


def assert_boxes_hold_their_labels(sample: Sample) -> None:
    for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
        x, y = ((box[:2] + box[2:]) / 2).int().tolist()
        assert sample.image[0, y, x] == 40 * (label + 1)


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),
        ((480, 1000), (800, 1333), (640, 1333)),
        ((1000, 480), (800, 1333), (1333, 640)),
        ((100, 200), (128, 128), (64, 128)),
        ((128, 128), (128, 128), (128, 128)),
        ((1, 5000), (100, 100), (1, 100)),
    ],
)
def test_the_short_side_is_met_unless_the_long_one_would_pass_its_limit(
    size: tuple[int, int], rule: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert Rule(*rule).size(*size) == expected


def test_flipping_agrees_with_torchvision() -> None:
    sample = labelled()
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(90, 120))
    flipped = flip(sample)
    assert torch.equal(flipped.image, F.horizontal_flip(sample.image))
    assert torch.equal(flipped.boxes, F.horizontal_flip(boxes).as_subclass(Tensor))
    assert torch.equal(flip(flipped).boxes, sample.boxes)


def test_resizing_agrees_with_torchvision() -> None:
    sample = labelled()
    resized = Transform(augment(image_size=(60, 70), multi_scale=(60,)), train=True)(sample, 0)
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(90, 120))
    assert tuple(resized.image.shape) == (3, 52, 70)
    assert torch.equal(resized.image, F.resize(sample.image, [52, 70], antialias=True))
    torch.testing.assert_close(resized.boxes, F.resize(boxes, [52, 70]).as_subclass(Tensor))
    torch.testing.assert_close(resized.boxes / torch.tensor(resized.scale * 2), sample.boxes)


def test_a_square_stays_a_square_at_every_scale() -> None:
    transform = Transform(augment(multi_scale=(32, 64, 96)), train=True)
    square = Sample(
        torch.zeros(3, 50, 50, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    )
    seen = {tuple(transform(square, seed).image.shape[1:]) for seed in range(40)}
    assert seen == {(32, 32), (64, 64), (96, 96)}


def test_boxes_keep_their_labels_through_crop_scale_and_flip() -> None:
    transform = Transform(augment(image_size=90, crop=1.0, multi_scale=(60, 90, 120), flip=0.5), train=True)
    kept = []
    for seed in range(60):
        sample = transform(labelled(), seed)
        height, width = sample.image.shape[1:]
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert sample.boxes.min() >= -1e-3
        assert (sample.boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
        assert len(sample.boxes) == len(sample.labels)
        assert_boxes_hold_their_labels(sample)
        kept.append(len(sample.labels))
    assert min(kept) < 4 and max(kept) == 4


def test_photometric_distortion_moves_no_box_and_happens_as_often_as_asked() -> None:
    transform = Transform(augment(photometric=0.5), train=True)
    sample = labelled()
    results = [transform(sample, seed) for seed in range(80)]
    assert all(torch.equal(result.boxes, sample.boxes) for result in results)
    changed = sum(not torch.equal(result.image, sample.image) for result in results)
    assert 20 <= changed <= 60


@pytest.mark.parametrize("corner", [(10, 20), (-30, -12), (40, -70), (0, 0), (50, 60), (-44, 60)])
@pytest.mark.parametrize("size", [(45, 60), (200, 130), (64, 80)])
def test_placing_agrees_with_torchvisions_resize_and_crop(
    size: tuple[int, int], corner: tuple[int, int]
) -> None:
    sample, canvas = labelled(), torch.zeros(3, 64, 80, dtype=torch.uint8)
    placed = paste(sample, size, corner, canvas)
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(90, 120))
    window = (-corner[0], -corner[1], 64, 80)  # beyond the image torchvision puts zeros
    expected = F.crop(F.resize(sample.image, list(size), antialias=True), *window)
    assert torch.equal(placed.image, expected)
    cut = F.clamp_bounding_boxes(F.crop(F.resize(boxes, list(size)), *window)).as_subclass(Tensor)
    kept = (cut[:, 2:] - cut[:, :2] >= 1).all(1)
    torch.testing.assert_close(placed.boxes, cut[kept])
    assert torch.equal(placed.labels, sample.labels[kept])
    assert placed.scale == (size[1] / 120, size[0] / 90) and not canvas.any()


def test_placed_boxes_keep_their_labels_and_their_canvas() -> None:
    transform = Transform(augment(image_size=96, jitter=0.3, scale=(0.5, 2)), train=True)
    kept = []
    for seed in range(80):
        sample = transform(labelled(), seed)
        assert sample.image.shape == (3, 96, 96)
        assert sample.boxes.min() >= 0 and sample.boxes.max() <= 96
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 1).all()
        large = (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 6).all(1)
        assert_boxes_hold_their_labels(Sample(sample.image, sample.boxes[large], sample.labels[large]))
        kept.append(len(sample.boxes))
    assert min(kept) < 4 and max(kept) == 4


def test_the_placed_size_and_aspect_stay_within_what_was_asked() -> None:
    factors, aspects = [], []
    transform = Transform(augment(image_size=96, jitter=0.3, scale=(0.25, 2)), train=True)
    for seed in range(300):
        x, y = transform(labelled(), seed).scale
        factors.append(max(x * 120, y * 90) / 96)
        aspects.append(x / y)
    assert 0.24 < min(factors) < 0.4 and 1.8 < max(factors) < 2.02
    assert 0.7 / 1.3 * 0.9 < min(aspects) < 0.65 and 1.5 < max(aspects) < 1.3 / 0.7 * 1.1
    assert sum(factors) / 300 == pytest.approx(1.125, abs=0.1), "not uniform"


def test_what_a_placed_image_leaves_free_has_the_mean_colour() -> None:
    transform = Transform(augment(image_size=64, scale=(0.5, 0.5), mean=(0.2, 0.4, 0.6)), train=True)
    white = Sample(
        torch.full((3, 50, 50), 255, dtype=torch.uint8), torch.tensor([[0.0, 0, 50, 50]]), torch.tensor([1])
    )
    for seed in range(10):
        sample = transform(white, seed)
        (left, top), (right, bottom) = sample.boxes[0, :2].int().tolist(), sample.boxes[0, 2:].int().tolist()
        assert (right - left, bottom - top) == (32, 32)
        assert (sample.image[:, top:bottom, left:right] == 255).all()
        sample.image[:, top:bottom, left:right] = torch.tensor([51, 102, 153], dtype=torch.uint8)[
            :, None, None
        ]
        assert (sample.image.flatten(1) == torch.tensor([[51], [102], [153]])).all()


def test_where_the_sides_limits_differ_the_canvas_has_the_images_own_size() -> None:
    transform = Transform(augment(image_size=(45, 100), jitter=0.2), train=True)
    assert {transform(labelled(), seed).image.shape for seed in range(9)} == {(3, 45, 60)}


@pytest.mark.parametrize(
    ("hue", "saturation", "exposure"), [(0.1, 1.5, 1 / 1.5), (-0.1, 0.7, 1.4), (0, 1, 1)]
)
def test_distortion_agrees_with_colorsys(hue: float, saturation: float, exposure: float) -> None:
    pixels = torch.randint(0, 256, (3, 1, 400), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels[:, 0, :3] = torch.tensor([[0, 255, 90], [0, 255, 90], [0, 255, 90]])
    found = distort(pixels, hue, saturation, exposure)
    for i in range(400):
        h, s, v = colorsys.rgb_to_hsv(*(pixels[:, 0, i] / 255).tolist())
        h = (h + hue) % 1
        # by hand: colorsys does not take a saturation above 1
        t = [(1 - x) for x in colorsys.hsv_to_rgb(h, 1, 1)]
        expected = [min(max(255 * v * exposure * (1 - s * saturation * x), 0), 255) for x in t]
        assert (found[:, 0, i] - torch.tensor(expected)).abs().max() <= 2.6, pixels[:, 0, i]


def test_colours_change_no_box_and_as_much_as_asked() -> None:
    grey = Sample(torch.full((3, 64, 64), 100, dtype=torch.uint8), labelled().boxes, labelled().labels)
    transform = Transform(augment(exposure=1.5), train=True)
    assert transform.fixed_size == Rule(64, 64)
    seen = torch.tensor([float(transform(grey, seed).image.float().mean()) for seed in range(200)]) / 100
    assert 0.66 <= seen.min() < 0.7 and 1.45 < seen.max() <= 1.51
    assert 70 < int((seen > 1).sum()) < 130, "brighter and darker are not equally likely"
    assert torch.equal(transform(grey, 1).boxes, grey.boxes)


def test_a_side_that_is_given_is_not_drawn() -> None:
    transform = Transform(augment(multi_scale=(32, 64, 96), jitter=0.1), train=True)
    assert {transform(labelled(), seed, 64).image.shape[1:] for seed in range(9)} == {(64, 64)}


def test_degenerate_boxes_go_with_their_labels() -> None:
    sample = labelled()
    boxes = sample.boxes.clone()
    boxes[1, 2] = boxes[1, 0]
    boxes[2, 3] = boxes[2, 1] - 1
    result = Transform(augment(), train=False)(Sample(sample.image, boxes, sample.labels), 0)
    assert result.labels.tolist() == [0, 3]
    assert torch.equal(result.boxes, boxes[[0, 3]])


EVERYTHING: dict[str, object] = {
    "crop": 1.0,
    "photometric": 1.0,
    "flip": 1.0,
    "multi_scale": (48,),
    "jitter": 0.3,
    "scale": (0.25, 2),
    "hue": 0.1,
    "saturation": 1.5,
    "exposure": 1.5,
}


def test_an_image_without_boxes_passes_every_augmentation() -> None:
    transform = Transform(augment(**EVERYTHING), train=True)
    empty = Sample(labelled().image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    result = transform(empty, 0)
    assert result.boxes.shape == (0, 4) and len(result.labels) == 0


def test_evaluation_augments_nothing() -> None:
    transform = Transform(augment(**EVERYTHING), train=False)
    assert transform.fixed_size == Rule(64, 64)
    sample = labelled()
    result = transform(sample, 0)
    assert torch.equal(result.image, sample.image) and torch.equal(result.boxes, sample.boxes)


def test_a_seed_decides_all_and_leaves_the_global_generator_alone() -> None:
    half = {"crop": 0.5, "photometric": 0.5, "flip": 0.5, "multi_scale": (48, 64)}
    transform = Transform(augment(**EVERYTHING | half), train=True)
    torch.manual_seed(1)
    first = [transform(labelled(), seed) for seed in range(10)]
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3)), "augmenting drew from the global generator"
    again = [transform(labelled(), seed) for seed in reversed(range(10))][::-1]
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes)
        for a, b in zip(first, again, strict=True)
    )


def test_the_generator_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError), seeded(3):
        torch.rand(4)
        raise ValueError
    assert torch.equal(before, torch.get_rng_state())


def test_sample_seeds_do_not_collide() -> None:
    seeds = {seed_of(s, e, i) for s in range(4) for e in range(20) for i in range(200)}
    assert len(seeds) == 4 * 20 * 200
