"""Are trainings long enough: curves whose time constant is known, and what is said of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from detsearch_cli.search.settling import Course, course_of, in_words
from detsearch_cli.search.study import Trial


def curve(constant: float, plateau: float = 0.4, epochs: tuple[int, ...] = (3, 6, 9, 12)) -> Course:
    points = tuple((e, plateau * -math.expm1(-e / constant)) for e in epochs)
    return Course(points, (points[-1][1],) * 3)


@pytest.mark.parametrize("constant", [6.0, 8.0, 14.0])
def test_three_time_constants_are_enough(constant: float) -> None:
    course = curve(constant)
    assert course.enough == pytest.approx(3 * constant, abs=1) and not course.settled


def test_a_training_of_four_time_constants_has_settled_and_one_of_one_has_not() -> None:
    assert curve(3.0).settled and in_words(curve(3.0)) is None
    told = in_words(curve(12.0))
    assert told is not None and "AP still climbs at the end, by 9.5 of 25.3 in the second half" in told
    assert "try 36 epochs before comparing candidates" in told


def test_no_curve_is_followed_beyond_four_times_its_length() -> None:
    straight = Course(((3, 0.1), (6, 0.2), (9, 0.3), (12, 0.4)), (0.4, 0.4, 0.4))
    assert straight.enough == 48
    nothing = Course(((3, 0.0), (12, 0.001)), (0.0, 0.002, 0.001))
    told = in_words(nothing)
    assert told is not None and told.startswith(
        "the trainings are too short: AP is 0.1 after 12 epochs; try 48"
    )


def test_equal_trainings_that_end_far_apart_are_unsteady() -> None:
    flat = curve(3.0)
    told = in_words(replace(flat, ends=(0.136, 0.217, 0.289)))
    assert told is not None and "end as far apart as AP 13.6, 21.7, 28.9; try 24 epochs" in told
    assert in_words(replace(flat, ends=(0.40, 0.41, 0.39))) is None


def row(number: int, scores: tuple[tuple[int, float], ...], candidate: dict[str, int] | None = None) -> Trial:
    return Trial(
        number,
        candidate,
        "complete",
        scores[-1][1],
        1.0,
        None,
        Path(),
        "",
        {},
        scores=scores,
        again_of=0 or None,
    )


def test_the_course_is_the_mean_over_the_baseline_s_seeds_where_all_have_a_score() -> None:
    first = row(0, ((2, 0.1), (4, 0.2), (6, 0.3), (8, 0.32)))
    second = replace(row(1, ((2, 0.2), (4, 0.2), (8, 0.36))), again_of=0, seed=1)
    course = course_of([first, second, row(2, ((2, 0.9), (8, 0.9)), {"a": 1})])
    assert course is not None
    assert [e for e, _ in course.points] == [2, 4, 8]
    assert [ap for _, ap in course.points] == pytest.approx([0.15, 0.2, 0.34])
    assert course.late == pytest.approx(0.14)
    assert replace(course, points=((3, 0.1), (7, 0.3), (10, 0.4))).late == pytest.approx(0.2)  # .2 at epoch 5
    assert course.ends == (0.32, 0.36)
    assert course_of([row(0, ((8, 0.3),))]) is None and course_of([]) is None
