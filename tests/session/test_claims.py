"""Which folder a search or a comparison may write into, and that a refused one leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from detsearch_cli import api
from detsearch_cli.errors import DetsearchError, OutputError, RecipeError, StudyError
from detsearch_cli.session.search import new_search, reopened, run_search
from detsearch_cli.session.study import Settings, read_settings
from tests.test_api import RECIPE

BINS = {"bins": "1"}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("claims")
    return api.search("assign", RECIPE, options=BINS, trials=1, name="s", out=root).folder


@pytest.fixture
def copied(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "s"))


def again(folder: Path, **more: object) -> api.SearchFinding:
    return api.search("assign", RECIPE, options=BINS, trials=1, name=folder.name, out=folder.parent, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "{", '{"mine": 1}'])
def test_a_study_whose_settings_are_damaged_goes_on_by_its_search_command(copied: Path, text: str) -> None:
    (copied / "search.json").write_text(text)
    with pytest.raises(StudyError, match="give the search command again"):
        reopened(copied)
    before = [t.value for t in again(copied).outcome.trials]
    assert before and read_settings(copied).trials == 1


def test_a_best_yaml_of_the_users_is_refused_before_anything_is_trained(copied: Path) -> None:
    (copied / "best.yaml").write_text("mine\n")
    before = tree(copied)
    with pytest.raises(OutputError, match=r"best\.yaml"):
        again(copied)
    assert tree(copied) == before


def test_a_second_search_leaves_the_running_one_its_files(copied: Path) -> None:
    from detsearch_cli.search.storage import sole_writer

    before = tree(copied)
    with sole_writer(copied), pytest.raises(StudyError, match="only one search may write"):
        again(copied)
    assert {name: text for name, text in tree(copied).items() if name != "lock"} == {
        name: text for name, text in before.items() if name != "lock"
    }


def test_one_folder_writes_a_study_of_a_shared_database_and_a_refused_one_leaves_nothing(
    tmp_path: Path,
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    first = api.search(
        "assign", RECIPE, options=BINS, trials=1, name="s", out=tmp_path / "a", storage=storage
    )
    assert not (first.folder / "study.db").exists()
    before = tree(tmp_path)
    for other in (RECIPE, {**RECIPE, "seed": 5}):
        with pytest.raises(StudyError, match=str(first.folder)):
            api.search("assign", other, options=BINS, trials=1, name="s", out=tmp_path / "b", storage=storage)
    with pytest.raises(StudyError, match="--storage"):
        again(first.folder)
    assert tree(tmp_path) == before and not (tmp_path / "b").exists()
    first.folder.rename(tmp_path / "moved")
    (tmp_path / "b").mkdir()
    (tmp_path / "moved").rename(tmp_path / "b" / "s")  # a folder that was moved goes on
    moved = api.search(
        "assign", RECIPE, options=BINS, trials=2, name="s", out=tmp_path / "b", storage=storage
    )
    assert len(moved.outcome.trials) == 3


def test_a_study_with_a_ledger_of_its_own_takes_no_other(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="leave out --storage"):
        again(copied, storage=f"sqlite:///{tmp_path / 'other.db'}")
    assert not (tmp_path / "other.db").exists()


def test_a_foreign_database_called_study_db_is_no_study(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    with sqlite3.connect(folder / "study.db") as mine:
        mine.execute("CREATE TABLE mine (a)")
    mine.close()
    before = tree(folder)
    with pytest.raises(StudyError, match=r"study\.db"):
        again(folder)
    assert tree(folder) == before


@pytest.mark.parametrize("name", ["..", "a/b", "/tmp"])
def test_the_name_of_a_study_is_one_word(name: str, tmp_path: Path) -> None:
    from detsearch_cli.methods.base import load_method

    with pytest.raises(StudyError, match="one word"):
        new_search(load_method("assign", {}), api.recipe_of(RECIPE), Settings(name), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": "resnet5000"}, "resnet5000"),
        ({}, "the same recipe"),
        ({"seed": 7}, "the same recipe"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_anything_is_written(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DetsearchError, match=said):
        api.compare(RECIPE, {**RECIPE, **change}, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("seeds", [0, -1, [1, 2]])
def test_a_comparison_needs_a_number_of_seeds(seeds: object, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="seed"):
        api.compare(RECIPE, {**RECIPE, "optim": {"lr": 0.5}}, seeds=seeds, out=tmp_path / "c")  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_other_sides_do_not_rewrite_what_a_folder_of_runs_says(tmp_path: Path) -> None:
    other = {**RECIPE, "optim": {**RECIPE["optim"], "lr": 0.01}}  # type: ignore[dict-item]
    api.compare(RECIPE, other, seeds=1, out=tmp_path / "c")
    before = tree(tmp_path)
    longer = {**RECIPE, "schedule": {"epochs": 2}}
    with pytest.raises(DetsearchError, match="another recipe"):
        api.compare(longer, other, seeds=2, out=tmp_path / "c")
    assert tree(tmp_path) == before
    assert json.loads((tmp_path / "c" / "runs.json").read_text())["seeds"] == [0]


def test_a_copied_recipe_does_not_make_a_folder_a_run(study: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(study / "trials" / "00000" / "recipe.yaml", mine)
    (mine / "detections.json").write_text("mine")
    before = tree(mine)
    with pytest.raises(OutputError, match=r"holds detections\.json"):
        api.train(mine / "recipe.yaml", mine)
    assert tree(mine) == before


@pytest.mark.parametrize("wrong", [None, 3, [], {}])
def test_what_is_no_recipe_is_refused(wrong: object, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a recipe is"):
        api.train(wrong, tmp_path / "r")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bins": 1}, "bins must be"),
        ({"max_count": "x"}, "max_count must be"),
        ({"max_count": 0}, "at least 1"),
    ],
)
def test_options_of_another_type_are_refused(options: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=said):
        api.search("assign", RECIPE, options=options, out=tmp_path)


@pytest.mark.parametrize("wrong", [{"trials": 0}, {"jobs": 0}])
def test_a_search_needs_a_trial_and_a_job(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="needs 1 to"):
        api.search("assign", RECIPE, options=BINS, out=tmp_path, **wrong)  # type: ignore[arg-type]


def test_a_search_from_python_is_the_search_of_the_command_line(study: Path) -> None:
    kept = reopened(study).recipe
    assert kept.schedule.eval_every == 0 and kept.runtime.cache == "ram"
    assert run_search(reopened(study)).outcome.reason == "all 1 trials are done"
