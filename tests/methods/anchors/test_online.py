"""Online clustering alone: where Eq. 11 leads, and that it does not matter where it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from detsearch_cli.methods.anchors.online import STEPS, _term, cluster_online
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.slots.priors.shapes import Shapes
from tests.methods.anchors.real_boxes import coco_val

STARTS = ("uniform", "identical", "yolov2-coco")


def start(name: str) -> np.ndarray:
    return np.array(Shapes(shapes=name).cell_boxes(32))


def spread(found: list[np.ndarray]) -> float:
    """Largest ratio between sides that should be the same, less 1."""
    every = np.stack(found)
    return float((every.max(0) / every.min(0)).max() - 1)


@pytest.mark.parametrize("distance", ["iou", "log_l2"])
def test_three_starts_end_within_two_percent_of_each_other_on_coco(distance: str, shared_data: Path) -> None:
    sizes, options = coco_val(shared_data, side=544), Learned(distance=distance)
    # a seed each: equal noise would make them equal for a reason of its own
    found = [cluster_online(sizes, start(n), options, seed=i).shapes for i, n in enumerate(STARTS)]
    assert spread(found) < 0.02
    # Zhong et al. 2020, Table 4, of train2017 and with a network: the same five, within a quarter
    table = np.array([[5.8, 6.7], [17.4, 20.1], [44.8, 45.8], [108, 99.2], [241, 237]])
    assert np.abs(np.log(found[0] / table)).max() < np.log(1.3)


def test_the_outcome_is_that_of_k_means_in_the_logarithms(shared_data: Path) -> None:
    sizes = coco_val(shared_data)[::4]
    found = cluster_online(sizes, start("identical"), Learned(distance="log_l2")).shapes
    other = KMeans(5, n_init=5, random_state=0).fit(np.log(sizes))

    def cost(shapes: np.ndarray) -> float:
        return float(np.square(np.log(sizes)[:, None] - np.log(shapes)).sum(-1).min(1).mean())

    assert cost(found) == pytest.approx(cost(np.exp(other.cluster_centers_)), rel=0.01)


def test_without_the_soft_warm_up_identical_shapes_stay_together() -> None:
    sizes = np.exp(np.random.default_rng(0).normal(4, 1, (2000, 2)))
    hard = cluster_online(sizes, start("identical"), Learned(soft=False), steps=300).shapes
    soft = cluster_online(sizes, start("identical"), Learned(), steps=300).shapes
    assert (
        len(np.unique(hard.round(3), axis=0)) <= 2
    )  # the one that every box goes to, and those none goes to
    assert len(np.unique(soft.round(3), axis=0)) == 5


def test_the_term_is_equation_11_with_its_normaliser() -> None:
    rng = np.random.default_rng(0)
    shapes, boxes = rng.normal(4, 1, (3, 2)), rng.normal(4, 1, (6, 2))
    expected, total = 0.0, 0.0
    for box in boxes:
        apart = [float(np.hypot(*(box - shape))) for shape in shapes]
        weight = np.exp(-np.array(apart) / 0.7)
        weight /= weight.sum()
        total += weight.sum()
        expected += sum(w * d**2 for w, d in zip(weight, apart, strict=True))
    found = _term(torch.tensor(shapes), torch.tensor(boxes), 0.7, "log_l2")
    assert float(found) == pytest.approx(expected / (2 * total))


def test_the_path_leads_from_the_start_to_the_outcome() -> None:
    sizes = np.exp(np.random.default_rng(0).normal(3, 1, (500, 2)))
    found = cluster_online(sizes, start("uniform"), Learned(), least=np.full(5, 20.0))
    np.testing.assert_allclose(found.path[0], start("uniform"), rtol=1e-5)
    assert found.steps[0] == 0 and found.steps[-1] == STEPS and len(found.steps) == len(found.path)
    assert found.path[-1].min() < 20 <= found.shapes.min()
    assert (np.diff(found.shapes.prod(1)) >= 0).all()
