"""Anchor shapes fitted to boxes, against independent implementations and brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from torchvision.ops import box_iou

from detsearch_cli.data.loader import Loader
from detsearch_cli.data.source import open_source
from detsearch_cli.errors import DataError
from detsearch_cli.methods.anchors.fit import (
    _slope,
    best_shape,
    fit_shapes,
    kmeans,
    quality,
    served,
    shape_iou,
    training_sizes,
)
from detsearch_cli.recipe import Augment
from tests.methods.anchors.real_boxes import coco_val, voc07


def random_sizes(count: int, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(4, 1, (count, 2)))


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = min(a[0], b[0]) * min(a[1], b[1])
    return float(shared / (a[0] * a[1] + b[0] * b[1] - shared))


def plain_kmeans(
    sizes: np.ndarray, count: int, seed: int, centre: Callable[..., np.ndarray]
) -> tuple[np.ndarray, float]:
    """As the scripts that YOLOv2's followers pass around: random boxes as seeds, until no box changes sides."""
    shapes = sizes[np.random.default_rng(seed).choice(len(sizes), count, replace=False)]
    before = np.zeros(0)
    for _ in range(300):
        low = np.minimum(sizes[:, None], shapes[None])
        shared = low[..., 0] * low[..., 1]
        union = (sizes[:, 0] * sizes[:, 1])[:, None] + (shapes[:, 0] * shapes[:, 1])[None] - shared
        near = (1 - shared / union).argmin(1)
        if np.array_equal(near, before):
            break
        before = near
        shapes = np.stack(
            [centre(sizes[near == k], axis=0) if (near == k).any() else shapes[k] for k in range(count)]
        )
    return shapes, float((shared / union).max(1).mean())


def test_iou_of_shapes_is_that_of_boxes_around_one_centre() -> None:
    sizes, shapes = random_sizes(50), random_sizes(7, seed=1)

    def around_nothing(sides: np.ndarray) -> torch.Tensor:
        half = torch.from_numpy(sides) / 2
        return torch.cat((-half, half), 1)

    expected = box_iou(around_nothing(sizes), around_nothing(shapes)).numpy()
    np.testing.assert_allclose(shape_iou(sizes, shapes), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [5, 9])
@pytest.mark.parametrize("boxes", [voc07, coco_val])
def test_real_boxes_are_fitted_as_well_as_by_the_best_of_ten_runs_of_others(
    boxes: Callable[[Path], np.ndarray], count: int, shared_data: Path
) -> None:
    sizes = boxes(shared_data)[::6]  # the others' runs are slow
    ours = fit_shapes(sizes, count)
    for centre in (np.mean, np.median):  # YOLOv2's, and the one its followers prefer
        assert ours.mean_iou >= max(plain_kmeans(sizes, count, seed, centre)[1] for seed in range(10))


def test_five_shapes_of_voc2007_overlap_its_boxes_as_yolov2_says(shared_data: Path) -> None:
    sizes = voc07(shared_data)
    found = kmeans(sizes, 5, np.random.default_rng(0), np.zeros(5))
    # Redmon and Farhadi 2017, Table 1: "Cluster IoU, 5 boxes, 61.0"; theirs are in parts of each image
    assert shape_iou(sizes, found).max(1).mean() == pytest.approx(0.61, abs=0.01)


def test_two_shapes_of_a_few_boxes_are_within_a_hundredth_of_the_best_that_a_fine_grid_holds() -> None:
    sizes = np.random.default_rng(3).uniform(10, 40, (7, 2)).round()
    found = fit_shapes(sizes, 2, restarts=30)
    sides = np.unique(sizes)  # the IoU of one box peaks where a side equals its own; sums peak near there
    grid = np.array(list(itertools.product(np.union1d(sides, np.linspace(10, 40, 31)), repeat=2)))
    overlap = shape_iou(sizes, grid)
    best = max(float(np.maximum(overlap, overlap[:, [i]]).mean(0).max()) for i in range(len(grid)))
    assert found.mean_iou >= best - 0.01
    assert found.mean_iou == pytest.approx(
        np.mean([max(plain_iou(box, shape) for shape in found.shapes) for box in sizes])
    )


@pytest.mark.parametrize("count", [1, 3, 9, 20])
def test_there_are_exactly_as_many_shapes_as_asked_and_each_fits_some_box_best(count: int) -> None:
    # 25 sizes, 400 times over, nearly all of them the same: seeds and means fall together
    sizes = random_sizes(25)[np.minimum(np.random.default_rng(0).geometric(0.5, 10_000) - 1, 24)]
    sizes = np.concatenate((random_sizes(25), sizes))
    for seed in range(3):
        shapes = fit_shapes(sizes, count, seed=seed, restarts=2).shapes
        assert shapes.shape == (count, 2)
        assert len(np.unique(shapes, axis=0)) == count
        assert (served(sizes, shapes) > 0).all()


def test_as_many_shapes_as_sizes_are_these_sizes() -> None:
    sizes = np.array([[10.0, 20.0], [40.0, 15.0], [90.0, 95.0]])
    found = fit_shapes(np.repeat(sizes, [1, 50, 1000], axis=0), 3)
    np.testing.assert_allclose(found.shapes, sizes, rtol=1e-6)
    assert found.mean_iou == pytest.approx(1)


@pytest.mark.parametrize("sizes", [np.zeros((0, 2)), np.full((30, 2), 12.0)])
def test_too_few_different_boxes_are_refused_with_what_to_do(sizes: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"at least 5 different sizes, got [01] among .* ask for fewer"):
        fit_shapes(sizes, 5)


def noisy(sizes: list[list[float]], times: int = 40) -> np.ndarray:
    """Every size so many times, each with the noise of six written digits."""
    rows = np.repeat(np.array(sizes), times, axis=0)
    return rows * (1 + np.random.default_rng(0).uniform(-2e-5, 2e-5, rows.shape))


def test_boxes_equal_but_for_noise_are_one_size() -> None:
    with pytest.raises(DataError, match=r"got 1 among 40 boxes \(sides within 0.1% count as equal\)"):
        fit_shapes(noisy([[39.5, 39.5]]), 5)


def test_noise_takes_no_shape_from_another_size() -> None:
    sizes = [[10.0, 20.0], [10.1, 20.0], [40.0, 15.0], [90.0, 95.0]]
    np.testing.assert_allclose(np.sort(fit_shapes(noisy(sizes), 4).shapes, 0), np.sort(sizes, 0), rtol=1e-4)


def test_no_side_falls_below_the_stride_of_its_level() -> None:
    sizes = random_sizes(2000) / 4
    least = [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]
    bounded, free = fit_shapes(sizes, 6, least=least), fit_shapes(sizes, 6)
    assert (bounded.shapes >= np.array(least)[:, None]).all()
    assert (np.diff(bounded.shapes.prod(1)) >= 0).all()
    assert free.shapes.min() < 8
    assert bounded.mean_iou <= free.mean_iou


def test_a_bound_above_most_boxes_leaves_shapes_for_the_rest() -> None:
    sizes = np.concatenate((random_sizes(1000) / 10, random_sizes(40, seed=1) * 4))  # 5 px, and 220 px
    for seed in range(3):
        found = fit_shapes(sizes, 4, least=32.0, seed=seed, restarts=1).shapes
        assert found.min() >= 32 and len(np.unique(found, axis=0)) == 4
        assert (served(sizes, found) > 0).all()


def test_a_bound_above_all_boxes_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"no side below 500 px only 1 of 3 .* a lower --min-strides"):
        fit_shapes(random_sizes(100).clip(max=400), 3, least=500.0)


def test_the_climbs_slope_is_that_of_finite_differences() -> None:
    sizes, shapes = random_sizes(300), random_sizes(4, seed=5)
    wrong = check_grad(
        lambda x: _slope(x, sizes)[0], lambda x: _slope(x, sizes)[1], np.log(shapes).reshape(-1)
    )
    assert wrong < 1e-5


def test_boxes_compared_in_parts_are_compared_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, shapes = random_sizes(1000), random_sizes(6, seed=2)
    monkeypatch.setattr("detsearch_cli.methods.anchors.fit.PART", 64)
    owner, best = best_shape(sizes, shapes)
    overlap = shape_iou(sizes, shapes)
    np.testing.assert_array_equal(owner, overlap.argmax(1))
    np.testing.assert_array_equal(best, overlap.max(1))


def test_the_same_seed_fits_the_same_shapes() -> None:
    sizes = random_sizes(500)
    first, second = (fit_shapes(sizes, 4, seed=7, restarts=2) for _ in range(2))
    np.testing.assert_array_equal(first.shapes, second.shapes)
    assert first.runs == second.runs and len(first.runs) == 2


def test_many_boxes_are_searched_by_sample_and_fitted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = random_sizes(3000)
    whole = fit_shapes(sizes, 4)
    monkeypatch.setattr("detsearch_cli.methods.anchors.fit.SEARCHED", 500)
    sampled = fit_shapes(sizes, 4)
    assert sampled.mean_iou == pytest.approx(shape_iou(sizes, sampled.shapes).max(1).mean())
    assert sampled.mean_iou == pytest.approx(whole.mean_iou, abs=2e-3)


@pytest.mark.parametrize("image_size", [(96, 96), (80, 100)])
def test_sizes_are_those_the_network_is_trained_on(image_size: tuple[int, int], shared_data: Path) -> None:
    augment = Augment(image_size=image_size, flip=0)
    split = open_source(str(shared_data / "coco-tiny")).load("val").take(list(range(12)))  # crowds included
    loader = Loader(split, augment, batch_size=4, train=False, seed=0, device=torch.device("cpu"))
    boxes = torch.cat([batch.targets.boxes for batch in loader.epoch(0)])
    np.testing.assert_allclose(
        training_sizes(split, augment), (boxes[:, 2:] - boxes[:, :2]).numpy(), rtol=1e-4
    )


def test_the_fit_by_size_counts_every_box_once() -> None:
    sizes, shapes = random_sizes(1000), random_sizes(3, seed=1)
    *rows, whole = quality(sizes, shapes, iou=0.4)
    overlap = shape_iou(sizes, shapes).max(1)
    assert sum(row.boxes for row in rows) == whole.boxes == 1000
    assert whole.recall == pytest.approx((overlap >= 0.4).mean())
    assert whole.mean_iou == pytest.approx(overlap.mean())
    parts = [row for row in rows if row.boxes]
    assert sum(row.mean_iou * row.boxes for row in parts) == pytest.approx(overlap.sum())
    inside = (np.sqrt(sizes.prod(1)) >= 32) & (np.sqrt(sizes.prod(1)) < 64)
    (middle,) = (row for row in rows if row.low == 32)
    assert middle.recall == pytest.approx((overlap[inside] >= 0.4).mean())
    assert all(np.isnan(row.recall) for row in quality(np.zeros((0, 2)), shapes))


def test_equal_shapes_serve_once_and_shares_sum_to_one() -> None:
    sizes = random_sizes(100)
    shapes = np.array([[50.0, 50.0], [50.0, 50.0], [500.0, 500.0]])
    share = served(sizes, shapes)
    assert share.sum() == pytest.approx(1) and share[1] == 0
    assert (served(np.zeros((0, 2)), shapes) == 0).all()
