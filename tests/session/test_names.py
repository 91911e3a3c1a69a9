"""A study's name is one plain word in any shell, path and database."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detsearch_cli.errors import StudyError
from detsearch_cli.methods.base import load_method
from detsearch_cli.recipe import validate
from detsearch_cli.session.search import default_name, new_search
from detsearch_cli.session.study import Settings

METHOD = load_method("assign", {})
RECIPE = validate({"data": {"source": "shapes:images=4,val=2,test=2,size=64"}})


def folder_of(name: str) -> str:
    return new_search(METHOD, RECIPE, Settings(name), Path("studies")).folder.name


@pytest.mark.parametrize("name", ["a", "run_1.2-b", "日本", "हिन्दी", "_x", "Ärger", "2026-01-01"])
def test_letters_and_digits_of_any_script_make_a_name(name: str) -> None:
    assert folder_of(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".a",
        "-a",
        "a/b",
        "a b",
        " ",
        "a{}b",
        "a?b",
        "a%b",
        "a\nb",
        "a\x1b[31m",
        "a\0b",
        "é" * 101,
        "a\udce9",
    ],
)
def test_everything_else_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(StudyError, match="one word of letters, digits, dots, dashes and underscores"):
        folder_of(name)


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_what_is_taken_is_a_single_part_of_a_path_without_a_character_of_a_shell(name: str) -> None:
    if not name:
        return  # asks for the default name
    try:
        taken = folder_of(name)
    except StudyError:
        return
    assert Path(taken).name == taken == name
    assert not set(name) & (set(string.punctuation + string.whitespace) - set("._-"))
    assert name.isprintable()


def test_the_default_name_is_plain_whatever_the_data_is_called() -> None:
    recipe = RECIPE.model_copy(
        update={"data": RECIPE.data.model_copy(update={"source": "/sets/my set (1)?"})}
    )
    assert default_name(METHOD, recipe) == "assign-fcos-my-set--1--"


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 10**12},
        {"jobs": 10**6},
        {"trials": 0},
        {"time_budget": float("nan")},
        {"time_budget": -1.0},
    ],
)
def test_numbers_of_a_search_have_limits_from_python_too(wrong: dict[str, float]) -> None:
    with pytest.raises(StudyError):
        Settings("s", **wrong)  # type: ignore[arg-type]
