"""What is expected of recipes: against the same model written down without its shortcuts, and against drawn worlds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtr

from detsearch_cli import estimates
from detsearch_cli.estimates import estimate

Scores = list[dict[int, float]]


def drawn(
    seed: int, spread: float = 0.02, noise: float = 0.02, candidates: int = 12
) -> tuple[np.ndarray, Scores]:
    """(true gains over the baseline, scores): three seeds of the baseline, further ones of the first candidates."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([[0.0], rng.normal(0, spread, candidates)])
    shared = rng.normal(0, noise * np.sqrt(0.4), 4)
    counts = [3, 4, 3, 2] + [1] * (candidates - 3)
    own = rng.normal(0, noise * np.sqrt(0.6), (candidates + 1, 4))
    rows = 0.3 + truth[:, None] + shared + own
    return truth, [{k: float(row[k]) for k in range(count)} for row, count in zip(rows, counts, strict=True)]


def brute_force(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Expected gains, and probabilities of a gain, from the joint normal of all scores at each point of the grid."""
    who = np.array([i for i, own in enumerate(scores) for _ in own])
    seed = np.array([k for own in scores for k in own])
    y = np.array([v for own in scores for v in own.values()])
    several = [np.array(list(own.values())) for own in scores if len(own) > 1]
    unit = np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in several) / sum(len(v) - 1 for v in several))
    y = (y - y[0]) / unit
    means = np.array([y[who == i].mean() for i in range(len(scores))])
    apart = max(means[1:].std(), abs(means[1:].mean() - means[0]), 0.25)
    n = len(scores)
    together = seed[:, None] == seed
    logs, gains, chances = [], [], []
    for noise in estimates._NOISE:
        for shared in estimates._SHARED:
            for spread in [0.0, *(apart * estimates._SPREAD)]:
                wide = np.hypot(noise, spread) if spread else 1e-4
                # values: the baseline's is far from everything beforehand, which is what a flat prior means
                flat = 1e4
                values = np.full((n, n), flat**2)
                values[1:, 1:] += wide**2 + np.eye(n - 1) * spread**2
                scatter = values[np.ix_(who, who)] + noise**2 * (
                    shared * together + (1 - shared) * np.eye(len(y))
                )
                root = np.linalg.cholesky(scatter)
                z = np.linalg.solve(root, y)
                evidence = -0.5 * z @ z - np.log(np.diag(root)).sum()
                ratio = spread / noise
                prior = 0.5 / (len(estimates._NOISE) * len(estimates._SHARED))
                if spread:
                    ratios = (apart * estimates._SPREAD)[None] / estimates._NOISE[:, None]
                    weight = ratios / (1 + ratios**2)
                    prior = 0.5 * ratio / (1 + ratio**2) / (weight.sum() * len(estimates._SHARED))
                logs.append(evidence + np.log(prior))
                difference = np.eye(n) - np.eye(n)[0]
                cross = difference @ values[:, who]
                half = np.linalg.solve(root, cross.T)
                gains.append(half.T @ z)
                variance = np.diag(difference @ values @ difference.T) - (half**2).sum(0)
                chances.append(ndtr((gains[-1] - estimates.EQUAL) / np.sqrt(np.maximum(variance, 1e-8))))
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    return unit * (weights @ np.array(gains)), weights @ np.array(chances)


@pytest.mark.parametrize("seed", [0, 2, 3])  # in which no candidate lies far below the others
def test_the_estimates_are_those_of_the_joint_normal(seed: int) -> None:
    _, scores = drawn(seed)
    expected, better = brute_force(scores)
    found = estimate(scores)
    assert found.expected == pytest.approx(expected, abs=2e-5)
    for i in range(1, len(scores)):
        assert found.gain(i).better == pytest.approx(better[i], abs=2e-3)


def test_the_highest_score_is_drawn_towards_the_others_and_less_with_more_seeds() -> None:
    others: Scores = [{0: 0.30, 1: 0.32, 2: 0.31}, *({0: 0.30 + 0.002 * k} for k in range(8))]
    once = estimate([*others, {0: 0.36}])
    thrice = estimate([*others, {0: 0.36, 1: 0.36, 2: 0.36}])
    assert once.leader == thrice.leader == 9
    assert 0 < once.gain(9).expected < thrice.gain(9).expected < 0.05
    assert once.gain(9).better < thrice.gain(9).better


@pytest.mark.parametrize("candidates", [1, 2, 3])
def test_the_better_a_few_candidates_are_the_more_they_are_believed(candidates: int) -> None:
    """Also where nothing but the baseline tells how far apart recipes may lie."""
    believed = []
    for gain in (0.02, 0.05, 0.1, 0.2, 0.3):
        scores = [{0: 0.30 + gain + 0.002 * k} for k in range(candidates)]
        found = estimate([{0: 0.30, 1: 0.31, 2: 0.29}, *scores])
        best = found.gain(found.leader)
        believed.append((best.better, best.expected / gain))
    assert believed == sorted(believed)
    assert believed[0][0] < 0.8 < 0.97 < believed[-1][0] and 0.9 < believed[-1][1] < 1.1


def test_pairs_with_the_same_seeds_tell_more_than_as_many_with_others() -> None:
    """A seed that does the same to both cancels in their difference."""
    baseline = {0: 0.27, 1: 0.33, 2: 0.30, 3: 0.26, 4: 0.34}
    gains = [0.03, 0.05, 0.02, 0.04, 0.035]
    paired = estimate([baseline, {k: v + gains[k] for k, v in baseline.items()}, {0: 0.275}])
    apart = estimate([baseline, {k + 9: v + gains[k] for k, v in baseline.items()}, {0: 0.275}])
    assert paired.gain(1).better > 0.9 > apart.gain(1).better
    assert paired.gain(1).high - paired.gain(1).low < 0.8 * (apart.gain(1).high - apart.gain(1).low)


def test_without_noise_what_was_seen_is_what_is_expected() -> None:
    found = estimate([{0: 0.3, 1: 0.3}, {0: 0.32}, {0: 0.28}, {0: 0.31}, {0: 0.25}])
    assert found.expected == pytest.approx([0, 0.02, -0.02, 0.01, -0.05], abs=1e-4)
    assert found.gain(1).better > 0.999 and found.gain(2).better < 0.001
    assert found.gain(1).low == pytest.approx(0.02, abs=2e-3)


def test_equal_scores_everywhere_are_no_gain() -> None:
    found = estimate([{0: 0.3, 1: 0.3}, {0: 0.3}, {0: 0.3}])
    assert found.expected == pytest.approx([0, 0, 0], abs=1e-6)
    assert found.leader == 1 and found.gain(1).better < 0.5


def test_a_training_that_learned_nothing_does_not_make_the_others_seem_far_apart() -> None:
    _, scores = drawn(0)
    without = estimate(scores)
    found = estimate([*scores, {0: 0.0}, {0: 0.01}])
    for i in range(1, len(scores)):
        assert found.gain(i).expected == pytest.approx(without.gain(i).expected, abs=2e-3)
    assert found.gain(len(scores)).better < 0.05


def test_neither_scale_nor_level_nor_the_order_of_candidates_matters() -> None:
    _, scores = drawn(3)
    found = estimate(scores)
    other = estimate([{k: 0.1 + 2 * v for k, v in own.items()} for own in scores])
    assert other.expected == pytest.approx(2 * found.expected, rel=1e-6)
    turned = estimate([scores[0], *scores[:0:-1]])
    assert turned.expected[1:] == pytest.approx(found.expected[:0:-1], rel=1e-6)
    later = estimate([{k + 17: v for k, v in own.items()} for own in scores])
    assert later.expected == pytest.approx(found.expected, rel=1e-12)


def test_where_nothing_is_better_a_gain_is_announced_in_one_search_of_twenty_at_most() -> None:
    announced = 0
    for seed in range(400):
        _, scores = drawn(seed, spread=0.0)
        found = estimate(scores)
        announced += found.gain(found.leader).better >= 0.8
    assert announced <= 20


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of drawn worlds in which candidates differ by as much as seeds do; 95% are 1710 of 1800 intervals."""
    held = total = 0
    for seed in range(150):
        truth, scores = drawn(1000 + seed, spread=0.03)
        found = estimate(scores)
        for i in range(1, len(truth)):
            gain = found.gain(i)
            held += gain.low - 1e-6 <= truth[i] <= gain.high + 1e-6
            total += 1
    assert 0.92 <= held / total <= 0.98


def test_a_candidate_not_drawn_yet_is_as_good_as_those_that_were() -> None:
    _, scores = drawn(0)
    ahead = estimate([scores[0], *({k: v + 0.5 for k, v in own.items()} for own in scores[1:])])
    *_, new = ahead.better_than(0, 0.25)
    assert new > 0.99
    behind = estimate([scores[0], *({k: v - 0.25 for k, v in own.items()} for own in scores[1:])])
    *_, new = behind.better_than(0, 0.25)
    assert new < 0.01


def test_without_two_seeds_of_any_recipe_nothing_tells_the_noise() -> None:
    with pytest.raises(ValueError, match="nothing tells the noise"):
        estimate([{0: 0.3}, {0: 0.4}])
