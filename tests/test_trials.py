"""The best, the baseline and the scored of a list of trials."""

from __future__ import annotations

import math

import pytest

from detsearch_cli.trials import baseline_of, best_of, scored
from tests.trials import Trial

OWN = Trial(0, None, "complete", 0.5)


def test_a_tie_goes_to_the_earlier_trial_and_so_to_the_baseline() -> None:
    first, second = Trial(3, {"k": 1}, "complete", 0.5), Trial(4, {"k": 2}, "complete", 0.5)
    assert best_of([second, first]) == first
    assert best_of([second, first, OWN]) == OWN


@pytest.mark.parametrize("state", ["stopped", "failed", "running", "repeat"])
def test_only_a_whole_training_has_a_score(state: str) -> None:
    other = Trial(1, {"k": 1}, state, 0.9)
    assert scored([other, OWN]) == [OWN]
    assert best_of([other]) is None
    assert baseline_of([Trial(0, None, state, 0.9)]) is None


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_no_score(value: float | None) -> None:
    assert best_of([OWN, Trial(1, {"k": 1}, "complete", value)]) == OWN


def test_a_score_of_zero_is_one() -> None:
    zero = Trial(0, None, "complete", 0.0)
    assert best_of([zero]) == baseline_of([zero]) == zero


def test_nothing_has_no_best() -> None:
    assert best_of([]) is None and baseline_of([]) is None
