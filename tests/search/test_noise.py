"""What scores over seeds say, against draws and closed forms; and searches that begin with several seeds."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from detsearch_cli.search import coordinator, noise
from detsearch_cli.search.coordinator import Event
from detsearch_cli.search.settling import Course
from detsearch_cli.trials import SURE
from tests.search.driving import Inline, killed_at, search, story

DRAWS = 200_000


def test_the_standard_deviation_and_its_interval_are_the_textbook_s() -> None:
    found = noise.measured([0.1, 0.2, 0.4])
    assert found is not None
    variance = (0.01 + 0.04 + 0.16 - 3 * (0.7 / 3) ** 2) / 2
    assert found.sd == pytest.approx(math.sqrt(variance))
    # of 2 degrees of freedom chi-squared is exponential, so that its quantiles are logarithms
    assert found.low == pytest.approx(found.sd / math.sqrt(-math.log(0.025)))
    assert found.high == pytest.approx(found.sd / math.sqrt(-math.log(0.975)))
    assert noise.measured([0.1]) is None


@pytest.mark.parametrize("candidates", [1, 2, 14, 100])
def test_luck_is_the_mean_of_the_highest_of_so_many_draws(candidates: int) -> None:
    highest = np.random.default_rng(candidates).normal(0, 3, (DRAWS // 10, candidates)).max(1)
    assert noise.luck(candidates, 3.0) == pytest.approx(highest.mean(), abs=0.08)
    if candidates == 2:
        assert noise.luck(2, 3.0) == pytest.approx(3 / math.sqrt(math.pi), abs=1e-6)


def test_a_candidate_that_much_better_is_highest_in_four_searches_of_five() -> None:
    scores = np.random.default_rng(0).normal(0, 2, (DRAWS, 8))
    scores[:, 3] += noise.findable(8, 0, 2.0)
    assert (scores.argmax(1) == 3).mean() == pytest.approx(0.8, abs=0.02)


def test_a_candidate_that_much_better_wins_the_race_in_four_searches_of_five() -> None:
    """14 candidates and 6 trainings of the leaders, played by the rules of racing.py."""
    rng, won = np.random.default_rng(0), 0
    gain = noise.findable(14, 6, 1.0)
    assert gain < noise.findable(14, 0, 1.0)
    for _ in range(2000):
        truth = np.zeros(14)
        truth[5] = gain
        sums = truth + rng.normal(0, 1, 14)
        four = np.argsort(-sums)[:4]  # 4 + 2 trainings
        sums[four] += truth[four] + rng.normal(0, 1, 4)
        two = four[np.argsort(-sums[four])[:2]]
        sums[two] += truth[two] + rng.normal(0, 1, 2)
        won += two[sums[two].argmax()] == 5
    assert won / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_a_provable_difference_is_found_by_the_test_in_four_cases_of_five(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    a, b = rng.normal(0, 1.5, (2, DRAWS, seeds))
    difference = b + noise.provable(seeds, 1.5) - a
    t = stats.ttest_1samp(difference, 0.0, axis=1)
    assert ((t.pvalue < 0.05) & (t.statistic > 0)).mean() == pytest.approx(0.8, abs=0.006)


def test_so_many_seeds_prove_a_difference_and_one_fewer_does_not() -> None:
    for difference in (0.5, 1.0, 3.0):
        enough = noise.seeds_to_prove(difference, 1.0)
        assert enough is not None
        assert noise.provable(enough, 1.0) <= difference < noise.provable(enough - 1, 1.0)
    assert noise.seeds_to_prove(0.001, 1.0) is None
    assert noise.seeds_to_prove(-1.0, 1.0) is None


def test_without_noise_nothing_is_luck() -> None:
    assert (noise.luck(9, 0.0), noise.findable(9, 3, 0.0), noise.provable(2, 0.0)) == (0, 0, 0)
    assert noise.seeds_to_prove(0.01, 0.0) == 2


def test_equal_scores_say_nothing_of_the_noise() -> None:
    measured = noise.measured([0.7, 0.7, 0.7])
    assert measured is not None and measured.sd == 0
    assert "equal scores say nothing of the noise; train longer" in noise.in_words(measured, 9, 3, None, None)
    assert noise.proof_in_words(3, 0.01, measured) is None


def test_small_numbers_keep_the_digits_that_tell_them_apart() -> None:
    measured = noise.measured([0.1001, 0.1003, 0.1002])
    assert measured is not None
    assert "standard deviation 0.01 " in noise.in_words(measured, 9, 3, None, None)


def test_the_lever_is_what_makes_the_noise() -> None:
    measured = noise.measured([0.30, 0.34, 0.32])
    assert measured is not None
    flat = Course(((5, 0.31), (10, 0.32)), (0.3, 0.34, 0.32))
    steep = Course(((5, 0.22), (10, 0.32)), (0.3, 0.34, 0.32))
    told = noise.in_words(measured, 9, 3, flat, 0.8)
    assert "The choice of the held-out images explains 80% of that noise" in told
    assert told.endswith("hold out more images (--val-fraction), since most of the noise is theirs")
    assert "images alone explains noise as large as that" in noise.in_words(measured, 9, 3, flat, 1.0)
    assert "the trainings are long enough, so give more --trials" in noise.in_words(measured, 9, 3, flat, 0.2)
    assert "AP still climbs at the end, by 10.0 of 32.0" in noise.in_words(measured, 9, 3, steep, 0.8)
    assert noise.in_words(measured, 9, 3, None, None).endswith(
        "give more --trials, which train the leaders with more seeds"
    )


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)


def test_the_baseline_s_seeds_come_first_and_count_among_the_trials(tmp_path: Path, inline: None) -> None:
    events: list[Event] = []
    outcome = search(tmp_path / "s", on_event=events.append, trials=6, noise_seeds=3)
    rows = outcome.trials
    assert [(t.baseline, t.again_of, t.seed) for t in rows[:4]] == [
        (True, None, 1),
        (True, 0, 2),
        (True, 0, 3),
        (False, None, 1),
    ]
    assert len(rows) == 7 and sum(t.trained for t in rows) == 6
    assert [json.loads(t.recipe_yaml).get("seed") for t in rows[:3]] == [None, 2, 3]
    values = [t.value or 0.0 for t in rows[:3]]
    assert len(set(values)) == 3
    assert outcome.baseline is not None and outcome.baseline.value == pytest.approx(np.mean(values))
    told = [e.message for e in events if e.kind == "noise"]
    assert len(told) == 1 and "over 3 seeds" in told[0] and "best of 4 equal candidates" in told[0]
    # the sampler hears of the noise once the last seed is there
    assert all(t.asked is None for t in rows[:3]) and [t.told for t in rows[:3]] == [None, None, 0]


def test_a_candidate_must_be_surely_better_than_the_baseline_s_mean(tmp_path: Path, inline: None) -> None:
    from detsearch_cli.search.space import Integer, Product

    # the baseline scores .451 and by its seeds .455, .447 and .450; candidates from 5 to 14 at most .47
    near = Product((Integer("a", 5, 14),))
    found = search(tmp_path / "s", trials=6, noise_seeds=3, space=near)
    leader = found.leader
    assert leader is not None and leader.gain is not None and found.baseline is not None
    assert (found.best == found.baseline) == (leader.gain.better < SURE)
    worse = Product((Integer("a", 20, 25),))
    lost = search(tmp_path / "t", trials=6, noise_seeds=3, space=worse)
    assert lost.best == lost.baseline
    assert lost.leader is not None and lost.leader.gain is not None and lost.leader.gain.better < 0.01


def test_of_equal_means_the_baseline_stays(tmp_path: Path, inline: None) -> None:
    from dataclasses import replace

    from detsearch_cli.trials import best_of

    rows = [replace(t, value=0.7) for t in search(tmp_path / "s", trials=4, noise_seeds=3).trials]
    best = best_of(rows)
    assert best is not None and best.baseline and best.value == 0.7


def test_a_time_that_is_spent_ends_the_baseline_s_seeds_too(tmp_path: Path, inline: None) -> None:
    outcome = search(tmp_path / "s", trials=4, noise_seeds=3, time_budget=0.0)
    assert len(outcome.trials) == 1 and outcome.reason.startswith("the time budget of 0 s is spent")


def test_no_more_candidates_are_told_of_than_the_space_has(tmp_path: Path, inline: None) -> None:
    from detsearch_cli.search.space import Integer, Product

    events: list[Event] = []
    space = Product((Integer("a", 1, 3),))
    search(tmp_path / "s", on_event=events.append, trials=12, noise_seeds=3, space=space)
    told = [e.message for e in events if e.kind == "noise"]
    assert "best of 3 equal candidates" in told[0]


def test_a_failed_seed_leaves_the_noise_to_the_others(tmp_path: Path, inline: None) -> None:
    events: list[Event] = []
    search(tmp_path / "s", "always_failing", events.append, trials=3, noise_seeds=2)
    assert not [e for e in events if e.kind == "noise"]


def test_a_killed_search_with_seeds_of_the_baseline_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    changes = {"trials": 8, "noise_seeds": 3, "jobs": 2, "sampler": "dycors"}
    whole = story(search(tmp_path / "whole", "short", **changes).trials)
    assert killed_at(tmp_path / "killed", (2, 3, 6), **changes) == whole


def test_a_study_of_before_goes_on_with_one_seed(tmp_path: Path, inline: None) -> None:
    folder = tmp_path / "s"
    search(folder, trials=3)
    with sqlite3.connect(folder / "study.db") as database:
        key = "detsearch"
        ((text,),) = database.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", (key,))
        record = json.loads(text)
        del record["noise_seeds"]
        database.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE key = ?", (json.dumps(record), key)
        )
    outcome = search(folder, trials=5, noise_seeds=3)
    assert [t.again_of for t in outcome.trials] == [None] * 6
