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
    scores[:, 3] += noise.findable(8, 2.0)
    assert (scores.argmax(1) == 3).mean() == pytest.approx(0.8, abs=0.005)


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
    assert (noise.luck(9, 0.0), noise.findable(9, 0.0), noise.provable(2, 0.0)) == (0, 0, 0)
    assert noise.seeds_to_prove(0.01, 0.0) == 2


@pytest.mark.parametrize("candidates", [1, 8, 38])
def test_luck_alone_exceeds_its_most_in_one_search_of_twenty(candidates: int) -> None:
    rng = np.random.default_rng(candidates)
    baseline = rng.normal(0, 1, (DRAWS // 4, 3))
    highest = rng.normal(0, 1, (DRAWS // 4, candidates)).max(1)
    factor = noise.most_luck(candidates, noise.Noise((0.0, 1.0, 2.0), 1.0, 0.0, 0.0))
    exceeded = highest - baseline.mean(1) > factor * baseline.std(1, ddof=1)
    assert exceeded.mean() == pytest.approx(0.05, abs=0.004)


def test_a_lead_is_judged_by_what_luck_may_give() -> None:
    measured = noise.measured([0.136, 0.217, 0.289])
    assert measured is not None
    limit = noise.most_luck(14, measured)
    assert "no more than luck alone may give" in noise.lead_in_words(0.99 * limit, 14, measured)
    assert ": more than luck alone may give" in noise.lead_in_words(1.01 * limit, 14, measured)
    assert (
        noise.lead_in_words(-0.03, 14, measured)
        == "the best of 14 candidates stays 3.0 AP below the baseline"
    )


def test_equal_scores_say_nothing_of_the_noise() -> None:
    measured = noise.measured([0.7, 0.7, 0.7])
    assert measured is not None and measured.sd == 0
    assert "equal scores say nothing of the noise; train longer" in noise.in_words(measured, 9)
    assert "do not tell" in noise.lead_in_words(0.01, 9, measured)
    assert noise.proof_in_words(3, 0.01, measured) is None


def test_small_numbers_keep_the_digits_that_tell_them_apart() -> None:
    measured = noise.measured([0.1001, 0.1003, 0.1002])
    assert measured is not None
    assert "standard deviation 0.01 " in noise.in_words(measured, 9)
    assert "leads by 0.02 AP" in noise.lead_in_words(0.0002, 9, measured)


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
    assert all(t.asked is None and t.told is None for t in rows[:3])


def test_a_candidate_must_beat_the_baseline_s_mean_not_its_luckiest_seed(
    tmp_path: Path, inline: None
) -> None:
    from detsearch_cli.search.space import Integer, Product

    # 3 scores 464, the baseline 451 and by its seeds 455, 447 and 450: its mean is 450.7
    outcome = search(
        tmp_path / "s", trials=3, noise_seeds=3, space=Product((Integer("a", 2, 3),)), sampler="grid"
    )
    best = outcome.best
    assert best is not None and outcome.baseline is not None
    assert best.value == max(t.value or 0.0 for t in outcome.trials if not t.baseline)
    worse = Product((Integer("a", 20, 25),))
    lost = search(tmp_path / "t", trials=3, noise_seeds=3, space=worse, sampler="grid")
    assert lost.best == lost.baseline


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
