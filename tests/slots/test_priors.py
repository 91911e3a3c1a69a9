"""Anchors against torchvision's generator, points and lists of shapes by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import compose
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.slots.priors.shapes import Shapes

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


# ---------------------------------------------------------------------- lists of shapes


def shapes(value: Any, **more: Any) -> Shapes:
    return Shapes.model_validate({"shapes": value, **more})


def sides(grid: Shapes, levels: tuple[int, int] = (3, 4)) -> torch.Tensor:
    """(L, S, 2) a list of .width, height. in px of the first cell of every level."""
    priors = grid([(1, 1)] * (levels[1] - levels[0] + 1), levels)
    return (priors.boxes[:, 2:] - priors.boxes[:, :2]).view(len(priors.counts), -1, 2)


def test_one_list_is_the_same_pixels_on_every_level_and_centred_in_the_cell() -> None:
    grid = shapes([[10, 20], [30, 5]])
    assert grid.per_cell == 2
    assert sides(grid).tolist() == [[[10, 20], [30, 5]]] * 2
    priors = grid(SIZES, (3, 4))
    torch.testing.assert_close((priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2, priors.points)


def test_a_list_a_level_is_that_levels() -> None:
    lists = [[[10, 20]], [[30, 5]]]
    assert sides(shapes(lists)).tolist() == lists


def test_named_lists_are_the_papers_and_darknets() -> None:
    uniform = torch.tensor([[3.0, 3], [3, 9], [9, 9], [9, 3], [6, 6]])
    torch.testing.assert_close(sides(shapes("uniform")), torch.stack((uniform * 8, uniform * 16)))
    assert sides(shapes("identical", count=3), (5, 5)).tolist() == [[[160, 160]] * 3]
    voc, coco = (sides(shapes(name), (5, 5))[0] for name in ("yolov2-voc", "yolov2-coco"))
    # the last, in cells of 32 px, as printed in darknet's yolov2-voc.cfg and yolov2.cfg
    torch.testing.assert_close(voc[4] / 32, torch.tensor([11.2364, 10.0071]))
    torch.testing.assert_close(coco[0] / 32, torch.tensor([0.57273, 0.677385]))


def test_a_fragment_of_shapes_is_the_same_priors() -> None:
    for grid in (
        shapes([[10, 20]]),
        shapes([[[1, 2]], [[3, 4]]]),
        shapes("identical", count=2),
    ):
        fragment = grid.fragment()["priors"]
        assert fragment.pop("name") == "shapes"
        assert Shapes.model_validate(fragment) == grid


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"shapes": [[[10, 20]], [[10, 20], [5, 5]]]}, "as many shapes.* have 1, 2 shapes"),
        ({"shapes": [[10, 20], [0, 5]]}, "must be a positive number of pixels, found 0"),
        ({"shapes": [[10, math.nan]]}, "a number must be finite"),
        ({"shapes": []}, "at least one"),
        ({"shapes": "square"}, "priors.shapes: it takes .*uniform.*yolov2-coco"),
        ({"shapes": [[10, 20, 30]]}, "priors.shapes.*a list of .width, height. in px"),
        ({"shapes": [10, 20]}, "priors.shapes.*a list of .width, height. in px"),
        ({"shapes": 7}, "priors.shapes.*a list of .width, height. in px"),
    ],
)
@pytest.mark.parametrize("name", ["shapes", "learned"])
def test_lists_that_are_none_are_refused_with_the_rule(
    name: str, priors: dict[str, Any], message: str
) -> None:
    key = "shapes" if name == "shapes" else "init"
    with pytest.raises(RecipeError, match=message.replace("priors.shapes", f"priors.{key}")):
        compose([("x", {"detector": "retinanet", "priors": {"name": name, key: priors["shapes"]}})])
