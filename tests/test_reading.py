"""Files from outside: what no honest file holds ends in one sentence, and values are judged by one rule."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detsearch_cli import reading
from detsearch_cli.errors import DataError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases"),
        ("[" * 5000 + "]" * 5000, "nest"),
        ("k: [" * 70 + "]" * 70, "nested deeper"),
        ("a: !!python/object/apply:os.system [true]", "constructor"),
        ("a: 2020-99-99", "month"),
        ("a: " + "9" * 5000, "digits"),
        ("{[1]: 2}", "unhashable"),
        ('a: 1\npath: "C:\\data"', "line 2.*backslash"),
        ('a: 1\npath: "C:\\Users"', "line 2.*backslash"),
        ("a: [1", "line"),
        ("a: *nothing", "line 1"),
        ("a: 1\nb: {c: 1, d: [c, c], c: 2}", "line 2: the key 'c' is there twice"),
    ],
)
def test_yaml_that_no_recipe_is_ends_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        reading.parse_yaml(text, "it", DataError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: 1\nb: [1, 2.5, x, null, true]", "", "3", "a: &x {k: 1}\nb: *x", "- 2020-01-01"]
)
def test_yaml_means_what_pyyaml_says(text: str) -> None:
    assert reading.parse_yaml(text, "it", DataError) == yaml.safe_load(text)


@given(st.text(max_size=60))
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    for parse in (reading.parse_yaml, reading.parse_json):
        try:
            parse(text, "it", DataError)
        except DataError as error:
            assert str(error).startswith("it ")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}", "{", '{"a": 1', "\x00"])
def test_json_that_cannot_be_read_ends_in_one_sentence(text: str) -> None:
    with pytest.raises(DataError, match=r"^it "):
        reading.parse_json(text, "it", DataError)


def test_half_of_a_json_object_is_not_dropped_silently() -> None:
    with pytest.raises(DataError, match="it holds the key 'annotations' twice in one object; join the two"):
        reading.parse_json('{"x": [{"annotations": 1, "b": 2, "annotations": 3}]}', "it", DataError)


def test_a_time_is_no_number_in_base_60() -> None:
    assert reading.parse_yaml("a: 1:30\nb: -1:30.5\nc: 90\nd: 1.5", "it", DataError) == {
        "a": "1:30",
        "b": "-1:30.5",
        "c": 90,
        "d": 1.5,
    }


def test_a_named_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="not a file"):
            reading.read_text(path, DataError)


@pytest.mark.parametrize(
    ("value", "as_whole", "as_number"),
    [
        (3, 3, 3.0),
        (3.0, 3, 3.0),
        ("3", 3, None),
        (" 3 ", 3, None),
        (3.5, None, 3.5),
        (True, None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (10**400, None, None),
        (2**60, None, None),
        ("٣", None, None),
        ("1_000", None, None),
        ("9" * 30, None, None),
        (None, None, None),
        ([3], None, None),
    ],
)
def test_one_rule_for_numbers(value: object, as_whole: int | None, as_number: float | None) -> None:
    assert reading.whole(value) == as_whole
    assert reading.number(value) == as_number


@pytest.mark.parametrize(
    ("value", "is_set"),
    [
        *[(v, True) for v in (1, 1.0, True, "1", "Yes", "TRUE")],
        *[(v, False) for v in (0, False, "0", "no", "", None)],
        *[(v, None) for v in (2, "Unspecified", float("nan"), [])],
    ],
)
def test_only_1_true_and_yes_set_a_flag(value: object, is_set: bool | None) -> None:
    assert reading.flag(value) is is_set


@given(st.lists(st.one_of(st.floats().map(repr), st.text("0123456789.+-eE_", max_size=5)), max_size=5))
def test_a_line_of_numbers_is_judged_word_by_word(words: list[str]) -> None:
    line = " ".join(words)
    expected = [reading.decimal(word) for word in line.split()]
    # sums beyond the largest float are nobody's label
    if all(v is None or abs(v) < 1e300 for v in expected):
        assert reading.decimals(line) == (None if None in expected else expected)


def test_yaml_as_written_keeps_the_text_of_every_value() -> None:
    text = "names: [yes, 010, 1.50, null, 2020-99-99, ~, '', no]\n0: x\n"
    assert reading.parse_yaml(text, "it", DataError, as_written=True) == {
        "names": ["yes", "010", "1.50", "null", "2020-99-99", "~", "", "no"],
        "0": "x",
    }


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [true]", "!x [1]", "a: !!str 3", BOMB])
def test_yaml_as_written_refuses_tags_and_bombs(text: str) -> None:
    with pytest.raises(DataError, match=r"tag|aliases"):
        reading.parse_yaml(text, "it", DataError, as_written=True)
