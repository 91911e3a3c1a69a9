"""The bootstrap's AP is COCO's own, on the split and on any draw from it; intervals against textbook ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from detsearch_cli.data.types import Split
from detsearch_cli.engine.compare import image_variance, paired_bootstrap, resampled, seed_interval
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import evaluate
from detsearch_cli.errors import EvaluationError
from tests.engine.scoring_data import random_case, record, split_of, table_of

METRICS = ("AP", "AP50", "AP75")


def drawn(split: Split, table: DetectionTable, counts: np.ndarray) -> tuple[Split, DetectionTable]:
    """A real data set in which image i is there counts[i] times, with its detections."""
    rows = np.repeat(np.arange(len(split)), counts)
    parts = []
    for copy, row in enumerate(rows):
        mine = table.select(table.image == row)
        parts.append(DetectionTable(np.full(len(mine), copy), mine.boxes, mine.scores, mine.labels))
    return split.take(rows.tolist()), DetectionTable.concatenate(parts)


def degraded(table: DetectionTable, seed: int) -> DetectionTable:
    """The same detections with scores that say less."""
    noise = np.random.default_rng(seed).normal(0, 0.5, len(table))
    return DetectionTable(table.image, table.boxes, table.scores + noise, table.labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_weights_of_one_give_the_evaluators_number(seed: int, metric: str) -> None:
    split, table = random_case(seed, ties=seed == 1)
    ones = np.ones((1, len(split)), int)
    found = resampled(split, table, ones, metric=metric)
    assert found[0] == pytest.approx(evaluate(split, table).coco[metric], abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_a_draw_equals_pycocotools_on_the_duplicated_images(seed: int, metric: str) -> None:
    split, table = random_case(seed, num_images=25)
    weights = np.random.default_rng(seed).multinomial(len(split), np.full(len(split), 1 / len(split)), size=4)
    found = resampled(split, table, weights, metric=metric)
    expected = [evaluate(*drawn(split, table, w), "pycocotools").coco[metric] for w in weights]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_more_than_a_hundred_detections_are_cut_per_image_and_class() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 400, (60, 2))
    boxes = np.concatenate([corners, corners + 40], axis=1)
    split = split_of(record(1, boxes, [0] * 60), record(2, boxes[:5], [0] * 5), classes=1)
    found = np.concatenate([np.tile(boxes, (4, 1)), boxes[:5]])
    table = DetectionTable(np.repeat([0, 1], [240, 5]), found, generator.random(245), np.zeros(245, np.int64))
    weights = np.array([[1, 1], [2, 1], [0, 3]])
    expected = [evaluate(*drawn(split, table, w), "pycocotools").coco["AP"] for w in weights]
    np.testing.assert_allclose(resampled(split, table, weights), expected, rtol=0, atol=1e-12)


def test_class_absent_from_a_draw_is_left_out_of_its_mean() -> None:
    box = [10, 10, 60, 60]
    split = split_of(record(1, [box], [0]), record(2, [box], [1]), record(3, [], []))
    table = table_of((0, box, 0.9, 0), (1, [300, 300, 360, 360], 0.9, 1))
    found = resampled(split, table, np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1], [0, 0, 3]]))
    np.testing.assert_allclose(found, [0.5, 1.0, 0.0, np.nan])


def test_copies_of_equal_scores_stand_together() -> None:
    # twice found, twice wrong, in this order: both objects are recalled before the first mistake
    box = [10, 10, 60, 60]
    split = split_of(record(1, [box], [0]), classes=1)
    table = table_of((0, box, 0.5, 0), (0, [300, 300, 360, 360], 0.5, 0))
    assert resampled(split, table, np.array([[2]]))[0] == pytest.approx(1.0)


def test_no_detections_compare_as_zero() -> None:
    split, table = random_case(0)
    result = paired_bootstrap(split, DetectionTable.empty(), table, resamples=100)
    assert result.a == 0 and result.low > 0 and result.verdict == "better"
    assert result.not_better == 0 and result.p_value == 0.01


def test_a_detector_against_itself_has_no_difference() -> None:
    split, table = random_case(0)
    result = paired_bootstrap(split, table, table, resamples=100)
    assert (result.difference, result.low, result.high) == (0, 0, 0)
    assert result.not_better == 1 and result.p_value == 1 and result.verdict == "within noise"


def test_swapping_the_detectors_mirrors_the_interval() -> None:
    split, table = random_case(2, num_images=40)
    worse = degraded(table, 0)
    there, back = paired_bootstrap(split, worse, table), paired_bootstrap(split, table, worse)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low < there.difference < there.high
    assert there.difference == pytest.approx(
        evaluate(split, table).coco["AP"] - evaluate(split, worse).coco["AP"]
    )


def test_interval_is_the_same_for_the_same_seed_only() -> None:
    split, table = random_case(2)
    runs = [paired_bootstrap(split, degraded(table, 0), table, resamples=200, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_interval_covers_the_spread_of_fresh_samples() -> None:
    # 60 images drawn again and again from 600: the bootstrap of one sample must know their spread
    split, table = random_case(5, num_images=600, classes=2)
    worse = degraded(table, 1)
    generator = np.random.default_rng(0)
    picks = np.zeros((200, 600), int)
    for row in picks:
        row[generator.choice(600, 60, replace=False)] = 1
    true_spread = np.std(resampled(split, table, picks) - resampled(split, worse, picks))
    rows = np.flatnonzero(picks[0])
    sample = split.take(rows.tolist())
    parts = [t.select(np.isin(t.image, rows)) for t in (worse, table)]
    parts = [DetectionTable(np.searchsorted(rows, t.image), t.boxes, t.scores, t.labels) for t in parts]
    result = paired_bootstrap(sample, *parts)
    assert (result.high - result.low) / (2 * 1.96) == pytest.approx(true_spread, rel=0.4)


def test_the_images_part_of_the_seeds_variance_is_half_that_of_differences_between_fresh_samples() -> None:
    split, table = random_case(5, num_images=600, classes=2)
    tables = [degraded(table, seed) for seed in range(3)]
    generator = np.random.default_rng(0)
    picks = np.zeros((200, 600), int)
    for row in picks:
        row[generator.choice(600, 60, replace=False)] = 1
    a, b, c = (resampled(split, one, picks) for one in tables)
    fresh = np.mean([np.var(x - y) for x, y in ((a, b), (a, c), (b, c))]) / 2
    found = []
    for row in picks[:5]:
        rows = np.flatnonzero(row)
        sample = [one.select(np.isin(one.image, rows)) for one in tables]
        sample = [DetectionTable(np.searchsorted(rows, t.image), t.boxes, t.scores, t.labels) for t in sample]
        found.append(image_variance(split.take(rows.tolist()), sample))
    assert np.mean(found) == pytest.approx(fresh, rel=0.4)
    assert image_variance(split, [table, table]) == 0


def test_what_cannot_be_compared_is_refused() -> None:
    split, table = random_case(0)
    with pytest.raises(EvaluationError, match="AP, AP50, AP75, got 'AR'"):
        paired_bootstrap(split, table, table, metric="AR")
    with pytest.raises(EvaluationError, match="at least 100 resamples, got 10"):
        paired_bootstrap(split, table, table, resamples=10)
    with pytest.raises(EvaluationError, match="at least 2, split 'val' has 1"):
        paired_bootstrap(split.take([0]), DetectionTable.empty(), DetectionTable.empty())
    with pytest.raises(EvaluationError, match="no objects"):
        nothing = split_of(record(1, [], []), record(2, [], []))
        paired_bootstrap(nothing, DetectionTable.empty(), DetectionTable.empty())


def test_equally_many_seeds_are_paired() -> None:
    a, b = [0.381, 0.374, 0.383, 0.379, 0.385], [0.408, 0.399, 0.399, 0.401, 0.412]
    expected = stats.ttest_rel(b, a)
    result = seed_interval(a, b)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.p_value == pytest.approx(expected.pvalue)
    assert result.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert result.verdict == "better" and math.isnan(result.not_better) and result.resamples == 0


def test_unequally_many_seeds_are_welchs() -> None:
    a, b = [0.381, 0.374, 0.383], [0.408, 0.399, 0.399, 0.401, 0.362]
    expected = stats.ttest_ind(b, a, equal_var=False)
    result = seed_interval(a, b)
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert result.p_value == pytest.approx(expected.pvalue)


def test_seeds_without_any_spread_give_a_point() -> None:
    shifted = seed_interval([0.25, 0.5], [0.5, 0.75])
    assert (shifted.low, shifted.high, shifted.p_value) == (0.25, 0.25, 0)
    assert seed_interval([0.5, 0.5], [0.5, 0.5, 0.5]).p_value == 1


def test_seeds_that_give_no_interval_are_refused() -> None:
    with pytest.raises(EvaluationError, match="at least 2 runs of each, got 1 and 3"):
        seed_interval([0.3], [0.3, 0.4, 0.5])
    with pytest.raises(EvaluationError, match="finite"):
        seed_interval([0.3, math.nan], [0.3, 0.4])
