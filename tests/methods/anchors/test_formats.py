"""The files that other frameworks read give these frameworks the shapes that were written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from detsearch_cli.errors import RecipeError
from detsearch_cli.methods.anchors.formats import FORMATS, to_yaml
from detsearch_cli.recipe import build_part, compose

SHAPES = np.array([[[10.123, 13], [16, 30.5]], [[33, 23], [30, 61]], [[116, 90], [373, 326]]])
STRIDES = (8, 16, 32)


def written(
    format: str, shapes: np.ndarray = SHAPES, strides: tuple[int, ...] = STRIDES
) -> dict[str, object]:
    text = to_yaml(shapes, strides, format, "five shapes")
    assert text.startswith("# written by detsearch: anchors fit: five shapes\n")
    return dict(yaml.safe_load(text))


@pytest.mark.parametrize(("first", "last"), [(3, 5), (5, 5)])
def test_the_fragment_lies_over_a_recipe_and_gives_these_boxes(first: int, last: int) -> None:
    shapes = SHAPES[: last - first + 1]
    found = written("fragment", shapes, tuple(2**level for level in range(first, last + 1)))
    recipe = compose([("defaults", {"detector": "retinanet"}), ("fragment", found)])
    assert recipe.priors is not None
    grid = build_part("slots.priors", recipe.priors, "priors")
    np.testing.assert_allclose(grid.level_boxes((first, last)), shapes, atol=5e-3)


def test_torchvisions_generator_makes_these_anchors() -> None:
    found = written("torchvision")
    generator = AnchorGenerator(found["sizes"], found["aspect_ratios"])
    generator.cell_anchors = [torch.tensor(level) for level in found["cell_anchors"]]
    assert generator.num_anchors_per_location() == [2, 2, 2]
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    (boxes,) = generator(images, [torch.zeros(1, 1, 64 // s, 64 // s) for s in STRIDES])
    sides = (boxes[:, 2:] - boxes[:, :2]).numpy()
    expected = np.concatenate(
        [np.tile(level, ((64 // s) ** 2, 1)) for level, s in zip(SHAPES, STRIDES, strict=True)]
    )
    np.testing.assert_allclose(sides, expected, atol=0.02)


def test_ultralytics_has_a_row_of_pairs_for_each_level_finest_first() -> None:
    rows = np.array(written("ultralytics")["anchors"])
    # models/yolo.py: torch.tensor(anchors).float().view(number of levels, -1, 2)
    np.testing.assert_allclose(rows.reshape(3, -1, 2), SHAPES, atol=5e-3)
    assert "P3/8, P4/16, P5/32" in to_yaml(SHAPES, STRIDES, "ultralytics", "")


def test_mmdetection_has_sizes_and_strides_in_one_order_coarsest_first() -> None:
    made = written("mmdetection")["anchor_generator"]
    assert isinstance(made, dict) and made["type"] == "YOLOAnchorGenerator"
    assert made["strides"] == [32, 16, 8]
    np.testing.assert_allclose(np.array(made["base_sizes"]), SHAPES[::-1], atol=5e-3)


def test_an_unknown_format_is_named_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="fragment, torchvision, ultralytics, mmdetection, got 'coco'"):
        to_yaml(SHAPES, STRIDES, "coco", "")
    assert len(FORMATS) == 4
