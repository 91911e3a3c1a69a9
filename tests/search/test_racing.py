"""Leaders are trained again: who and when, against a plain simulation; in searches that are killed and extended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detsearch_cli.option import LARGEST_SEED
from detsearch_cli.search import coordinator
from detsearch_cli.search.racing import Again, next_step, starters_of
from detsearch_cli.search.samplers.random import Random
from detsearch_cli.search.space import Integer, Product
from detsearch_cli.search.study import Trial
from detsearch_cli.trials import leader_of
from tests.search.driving import Inline, killed_at, search, story

SD = 0.02


def row(number: int, value: float | None, **more: Any) -> Trial:
    base = Trial(
        number,
        {"a": number},
        "complete" if value is not None else "running",
        value,
        1.0,
        None,
        Path(),
        "",
        {},
    )
    return replace(base, seed=0, **more)


def explored(*values: float) -> list[Trial]:
    baseline = [replace(row(0, 0.3), candidate=None)]
    return [*baseline, *(row(i + 1, value) for i, value in enumerate(values))]


def raced(trials: list[Trial], total: int, score: Any) -> list[tuple[int, int]]:
    """Play the race to its end; returns who was trained with which seed."""
    played = []
    while sum(t.trained for t in trials) < total:
        step = next_step(trials, total, 0, SD, False)
        if not isinstance(step, Again):
            assert step == "explore"
            break
        played.append((step.first.number, step.offset))
        value = score(step.first.number, step.offset)
        state = {} if value is not None else {"state": "failed"}
        trials.append(
            replace(row(len(trials), value, again_of=step.first.number), seed=step.offset, **state)  # type: ignore[arg-type]
        )
    return played


def test_a_quarter_of_the_trials_goes_to_leaders_and_the_better_half_goes_on() -> None:
    trials = explored(
        0.30, 0.33, 0.31, 0.345, 0.29, 0.34, 0.335, 0.28, 0.32, 0.31, 0.30, 0.30, 0.3, 0.3, *[0.29] * 7
    )
    further = {4: 0.30, 6: 0.36, 7: 0.35, 2: 0.31}
    played = raced(trials, 28, lambda number, offset: further.get(number, 0.3))
    # 7 trainings: five begin, two go on; of means .3225, .35, .3425, .32 and .31 those of 6 and 7 are highest
    assert played == [(4, 1), (6, 1), (7, 1), (2, 1), (9, 1), (6, 2), (7, 2)]
    leader = leader_of(trials)
    assert leader is not None and (leader.trial.number, leader.seeds) == (6, 3)
    assert leader.trial.value == pytest.approx((0.34 + 2 * 0.36) / 3)


@pytest.mark.parametrize(
    "again, starters", [(1, 1), (2, 2), (3, 2), (4, 2), (5, 3), (6, 4), (13, 7), (33, 18)]
)
def test_so_many_begin_that_the_halves_fit(again: int, starters: int) -> None:
    assert starters_of(again) == starters


def test_where_no_other_is_near_the_leader_the_trials_go_on_exploring() -> None:
    trials = explored(0.30, 0.50, 0.31, 0.20, 0.1, 0.2)
    assert next_step(trials, 8, 0, SD, False) == "explore"
    assert isinstance(next_step(trials, 8, 0, 0.2, False), Again)


def test_a_race_waits_for_what_is_under_way_and_begins_early_where_nothing_is_left_to_explore() -> None:
    trials = explored(0.30, 0.31, 0.305, 0.29)
    assert next_step(trials, 12, 0, SD, False) == "explore"
    assert next_step(trials, 12, 0, SD, True) == Again(trials[2], 1)
    assert next_step([*trials, row(5, None)], 12, 0, SD, True) == "wait"


def test_a_leader_that_fails_with_another_seed_is_out() -> None:
    trials = explored(0.30, 0.33, 0.31, 0.34, 0.29, 0.3, 0.3, 0.3, 0.3)
    played = raced(trials, 12, lambda number, offset: None if number == 4 else 0.32)
    assert played == [(4, 1), (2, 1), (2, 2)]
    # it keeps the seed that it has: a killed worker says nothing of a recipe
    leader = leader_of(trials)
    assert leader is not None and (leader.trial.number, leader.seeds, leader.failed) == (4, 1, 1)


def test_finalists_share_no_more_seeds_than_tell_their_means(monkeypatch: pytest.MonkeyPatch) -> None:
    from detsearch_cli.search import racing

    monkeypatch.setattr(racing, "MOST_SEEDS", 4)
    trials = explored(0.30, 0.33, 0.31, 0.34)
    offsets = []
    while isinstance(step := next_step(trials, 40, 0, SD, True), Again):
        offsets.append(step.offset)
        trials.append(replace(row(len(trials), 0.3, again_of=step.first.number), seed=step.offset))
    # the better half of four candidates goes on until each of two has four seeds; then there is more to explore
    assert offsets == [1] * 4 + [2] * 2 + [3] * 2 and step == "explore"


def test_seeds_go_on_from_0_beyond_the_largest(tmp_path: Path, inline: None) -> None:
    outcome = search(tmp_path / "s", trials=9, noise_seeds=3, races=True, space=LINE, seed=LARGEST_SEED - 1)
    seeds = {t.seed for t in outcome.trials}
    assert seeds <= {LARGEST_SEED - 1, LARGEST_SEED, 0, 1, 2} and {LARGEST_SEED, 0} <= seeds
    assert outcome.reason == "all 9 trials are done"


def test_racing_chooses_better_than_the_highest_score_where_seeds_matter_as_much_as_candidates() -> None:
    """40 trials beside the baseline's, 400 searches of drawn candidates: by simulation, as the docs say."""
    rng = np.random.default_rng(0)
    chosen: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(400):
        truth = rng.normal(0, SD, 41)
        scores = 0.3 + truth[:, None] + rng.normal(0, SD, (41, 20))
        chosen[False].append(truth[scores[:40, 0].argmax()])
        trials = explored(*scores[:30, 0])[1:]
        raced(trials, 40, lambda number, offset, scores=scores: float(scores[number - 1, offset]))
        leader = leader_of([replace(row(0, 0.3), candidate=None), *trials])
        assert leader is not None
        chosen[True].append(truth[leader.trial.number - 1])
    assert np.mean(chosen[True]) > np.mean(chosen[False]) + 0.1 * SD


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)


LINE = Product((Integer("a", 5, 14),))
"""Whose scores differ by less than the seeds'."""


def test_a_search_trains_its_leaders_again_and_its_sampler_hears_the_means(
    tmp_path: Path, inline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(Random, "measured", lambda self, noise: heard.append(noise))
    monkeypatch.setattr(
        Random, "tell_again", lambda self, p, value, seeds: heard.append((p.candidate, value, seeds))
    )
    outcome = search(tmp_path / "s", trials=12, noise_seeds=3, races=True, space=LINE)
    again = [t for t in outcome.trials if t.again_of is not None and not t.baseline]
    assert [t.number for t in again] == [10, 11, 12]
    firsts = {t.number: t for t in outcome.trials}
    for t in again:
        first = firsts[t.again_of or 0]
        assert (t.candidate, t.fragment) == (first.candidate, first.fragment)
        assert t.seed in (2, 3) and f'"seed": {t.seed}' in t.recipe_yaml and t.asked is None
    leader = outcome.leader
    assert leader is not None and leader.seeds > 1
    noise, *means = heard
    assert noise == pytest.approx(np.std([t.value for t in outcome.trials if t.baseline], ddof=1))
    for number, (candidate, value, seeds) in zip((10, 11, 12), means, strict=True):
        own = [t for t in outcome.trials if again[number - 10].again_of in (t.number, t.again_of)]
        own = [t for t in own if t.number <= number]
        assert candidate == again[number - 10].candidate and seeds == len(own)
        assert value == pytest.approx(np.mean([t.value for t in own]))


def test_the_same_trials_whether_killed_or_not_and_with_several_jobs(tmp_path: Path) -> None:
    changes = {"trials": 12, "noise_seeds": 3, "races": True, "jobs": 2, "sampler": "dycors", "space": LINE}
    whole = story(search(tmp_path / "whole", "short", **changes).trials)
    assert killed_at(tmp_path / "killed", (5, 10, 11), **changes) == whole


def test_an_extended_search_explores_before_it_races_again(tmp_path: Path, inline: None) -> None:
    folder = tmp_path / "s"
    search(folder, trials=9, noise_seeds=2, races=True, space=LINE)
    outcome = search(folder, trials=18, noise_seeds=2, races=True, space=LINE)
    kinds = ["again" if t.again_of is not None else "new" for t in outcome.trials if not t.baseline]
    assert kinds[:8] == ["new"] * 6 + ["again"] * 2
    assert kinds[8] == "new" and kinds[-1] == "again"
    assert sum(t.trained for t in outcome.trials) == 18


def test_a_space_that_is_used_up_leaves_its_trials_to_the_leaders(tmp_path: Path, inline: None) -> None:
    outcome = search(
        tmp_path / "s", trials=9, noise_seeds=2, races=True, space=Product((Integer("a", 8, 10),))
    )
    assert [t.again_of is not None for t in outcome.trials if not t.baseline] == [False] * 3 + [True] * 5
    assert outcome.reason == "all 9 trials are done"
