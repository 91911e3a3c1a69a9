"""The simulation learns with good losses, not with bad ones, and says the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from detsearch_cli.formulas import simulation
from detsearch_cli.formulas.filters import run
from detsearch_cli.formulas.grids import areas
from detsearch_cli.formulas.language import LANGUAGES, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.library import names, resolve
from detsearch_cli.formulas.properties import Reason, Stage
from detsearch_cli.formulas.reading import parse
from detsearch_cli.formulas.simulation import simulate


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_the_same_seed_gives_the_same_scores(language: Language) -> None:
    losses = [resolve(name, language) for name in names(language)]
    first = simulate(losses, language, seed=3)
    np.testing.assert_array_equal(first, simulate(losses, language, seed=3))
    # every loss by itself: nothing leaks between formulas
    np.testing.assert_allclose(first[:1], simulate(losses[:1], language, seed=3), rtol=1e-6)
    assert ((first > 0.05) & (first < 1)).all()


@pytest.mark.parametrize(
    ("language", "good", "bad"),
    [
        (ONE_STAGE, "-(y*log(sigmoid(x)) + (1 - y)*log(1 - sigmoid(x)))", "softplus((2*y - 1)*x)"),
        (TWO_STAGE, "-dot(y, log(softmax(x)))", "dot(y, log(softmax(x)))"),
        (REGRESSION, "1 - i/u + (e - u)/e", "i/u"),
    ],
)
def test_a_loss_of_the_wrong_sign_does_not_learn(language: Language, good: str, bad: str) -> None:
    scores = simulate([parse(good, language), parse(bad, language)], language)
    assert scores[1] < 0.2 * scores[0]


def test_what_does_not_learn_is_removed_with_its_reason() -> None:
    # rises with distance by less and less: nearly no gradient but for the best boxes
    texts = ["1 - i/u + (e - u)/e", "1 - exp(9*(i/u - 1))"]
    formulas = [parse(text, REGRESSION) for text in texts]
    filtered = run(formulas, REGRESSION, stages=(*Stage,))
    assert list(filtered.kept) == [0]
    assert filtered.verdict(1).reason is Reason.DOES_NOT_LEARN
    assert filtered.removed()[Stage.SIMULATION] == 1
    assert filtered.scores[0] > 2 * filtered.scores[1]


def test_giou_reaches_boxes_that_iou_cannot() -> None:
    iou, giou = simulate([resolve("iou", REGRESSION), resolve("giou", REGRESSION)], REGRESSION)
    assert giou > iou


def test_derivatives_of_the_areas_equal_differences() -> None:
    rng = np.random.default_rng(0)
    side = rng.uniform(20, 90, (5, 2))
    target = np.concatenate([-side / 2, side / 2], 1)
    centre, begun = rng.uniform(-30, 30, (5, 2)), rng.uniform(20, 90, (5, 2))
    moved = rng.normal(0, 0.2, (3, 5, 4))
    _, slopes = simulation._moving(target, centre, begun, moved)
    for k in range(4):
        step = 1e-6 * np.eye(4)[k]
        high = areas(target, simulation._corners(centre, begun, moved + step))
        low = areas(target, simulation._corners(centre, begun, moved - step))
        for name in "iue":
            expected = (high[name] - low[name]) / 2e-6
            np.testing.assert_allclose(slopes[name].reshape(3, 5, 4)[..., k], expected, rtol=1e-5, atol=1e-3)


def test_average_precision_is_that_of_the_weighted_points() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, (2, 9)), rng.normal(0, 1, (2, 40))
    for k in range(2):
        labels = np.concatenate([np.ones(9), np.zeros(40)])
        weights = np.where(labels == 1, 1, 10)
        scores = np.concatenate([positive[k], negative[k]])
        expected = average_precision_score(labels, scores, sample_weight=weights)
        assert simulation._average_precision(positive, negative)[k] == pytest.approx(expected)
