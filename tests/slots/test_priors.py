"""Anchors against torchvision's generator, points by hand."""

from __future__ import annotations

import math

import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points

SIZES = [(4, 6), (2, 3)]


def test_retinanet_anchors_equal_torchvisions_up_to_its_rounding() -> None:
    sides = tuple(tuple(4 * s * 2 ** (i / 3) for i in range(3)) for s in (8, 16))
    generator = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 2)
    expected = generator.grid_anchors(SIZES, [[torch.tensor(s)] * 2 for s in (8, 16)])
    found = Anchors()(SIZES, (3, 4))
    # torchvision rounds anchors to whole pixels and centres them on the cell's corner
    corner = found.boxes - (found.strides[found.level] / 2)[:, None]
    assert (corner - torch.cat(expected)).abs().max() <= 0.5 + 1e-4
    assert found.counts == (4 * 6 * 9, 2 * 3 * 9)


def test_an_anchor_has_the_area_and_height_to_width_ratio_asked_for() -> None:
    found = Anchors(base=8, scales=1, ratios=(0.25, 2.0))([(1, 1)], (4, 4))
    width, height = (found.boxes[:, 2:] - found.boxes[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor([0.25, 2.0]))
    torch.testing.assert_close(height * width, torch.full((2,), 128.0**2))


def test_points_lie_in_the_middle_of_their_cells_row_by_row() -> None:
    found = Points()(SIZES, (3, 4))
    assert found.points[:2].tolist() == [[4, 4], [12, 4]]
    assert found.points[24:26].tolist() == [[8, 8], [24, 8]]
    assert found.level.bincount().tolist() == [24, 6]
    torch.testing.assert_close((found.boxes[:, :2] + found.boxes[:, 2:]) / 2, found.points)


def test_ranges_double_from_the_first_level_and_the_last_is_open() -> None:
    paper = Points().ranges((3, 7))
    assert paper == [(0, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
    assert Points(range_base=32).ranges((4, 5)) == [(0, 64), (64, math.inf)]
    assert Points().ranges((3, 3)) == [(0, math.inf)]
