"""Where shapes start: as the paper lists it, or from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.methods.anchors.fit import fit_shapes
from detsearch_cli.methods.anchors.formats import to_yaml
from detsearch_cli.methods.anchors.starts import LISTS, own_shapes, starting_shapes
from detsearch_cli.recipe import compose

SIZES = np.exp(np.random.default_rng(0).normal(4, 1, (300, 2)))


def detector(name: str = "retinanet", **keys: object) -> Detector:
    small = {"detector": name, "backbone": "tiny", "neck": {"channels": 16, "levels": [3, 5]}}
    return build(compose([("test", {**small, "head": {"convs": 1}, **keys})]), 2)


def start(wanted: str | None, name: str = "retinanet", count: int | None = None) -> np.ndarray:
    return starting_shapes(wanted, detector(name), count, lambda: SIZES, 0)


def test_uniform_and_identical_are_multiples_of_each_levels_stride() -> None:
    uniform = np.array([(3, 3), (3, 9), (9, 9), (9, 3), (6, 6)])
    np.testing.assert_allclose(start("uniform"), [uniform * stride for stride in (8, 16, 32)])
    np.testing.assert_allclose(start("uniform", "yolov2"), [uniform * 32])
    np.testing.assert_allclose(start("identical", "yolov2", 7), np.full((1, 7, 2), 160))
    assert start("identical").shape == (3, 9, 2)  # as many as the detector has


def test_the_published_lists_are_darknets_cells_of_32_pixels() -> None:
    assert set(LISTS) == {"uniform", "identical", "yolov2-voc", "yolov2-coco"}
    np.testing.assert_allclose(start("yolov2-voc", "yolov2")[0, 0], [1.3221 * 32, 1.73145 * 32])
    np.testing.assert_allclose(start(None, "yolov2"), start("yolov2-voc", "yolov2"))


def test_kmeans_gives_each_level_its_part_of_one_fit() -> None:
    found = start("kmeans", count=2)
    np.testing.assert_allclose(found.reshape(-1, 2), fit_shapes(SIZES, 6).shapes)
    assert (np.diff(found.prod(-1).reshape(-1)) >= 0).all()


def test_no_start_means_the_recipes_own_or_the_detectors() -> None:
    np.testing.assert_allclose(start(None), own_shapes(detector()))
    listed = detector("yolov2", priors={"name": "learned", "init": [[20, 30], [40, 50]]})
    np.testing.assert_allclose(starting_shapes(None, listed, None, lambda: SIZES, 0), [[[20, 30], [40, 50]]])


def test_a_file_of_fit_starts_there(tmp_path: Path) -> None:
    shapes = np.array([[[10.5, 20], [30, 40.25]]])
    path = tmp_path / "a.yaml"
    path.write_text(to_yaml(shapes, [32], "fragment", ""))
    np.testing.assert_allclose(start(str(path), "yolov2"), shapes)
    np.testing.assert_allclose(start(str(path)), shapes.repeat(3, 0))  # one list is for all levels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"anchors": [[10, 13]]}, "holds no priors with shapes"),
        ({"priors": "points"}, "holds no priors with shapes"),
        (
            {"priors": {"name": "shapes", "shapes": [[10, -3]]}},
            "must be a positive number of pixels, found -3",
        ),
        (
            {"priors": {"name": "shapes", "shapes": [[[1, 2]], [[3, 4]]]}},
            "one for each of the detector's 3 levels",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_rule(
    content: object, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=said):
        start(str(path))


@pytest.mark.parametrize(
    ("wanted", "name", "count", "said"),
    [
        ("unform", "yolov2", None, "--init is one of uniform, .* kmeans or a YAML file .* got 'unform'"),
        ("uniform", "yolov2", 3, "--anchors 3 needs as many initial shapes, uniform has 5"),
        (None, "yolov2", 7, "--anchors 7 .* the detector has 5; .* take --init identical or kmeans"),
        ("uniform", "fcos", None, "this one predicts distances from points; use --detector yolov2"),
    ],
)
def test_what_cannot_start_is_refused_with_what_to_do(
    wanted: str | None, name: str, count: int | None, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        start(wanted, name, count)
