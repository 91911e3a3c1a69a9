"""Ledgers that are damaged, full, foreign; reading, exporting and explaining studies."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from detsearch_cli.errors import StorageError, StudyError
from detsearch_cli.files import EXPORT_COLUMNS
from detsearch_cli.search import coordinator
from detsearch_cli.search.export import export
from detsearch_cli.search.importance import importances
from detsearch_cli.search.plan import Prepared
from detsearch_cli.search.storage import sole_writer
from detsearch_cli.search.study import Study, list_studies, open_study
from tests.search.driving import Inline, prepared, read, search


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Study:
    patch = pytest.MonkeyPatch()
    patch.setattr(coordinator, "executor_class", lambda name: Inline)
    patch.setattr(coordinator, "POLL_SECONDS", 0.0)
    folder = tmp_path_factory.mktemp("studies") / "one"
    search(folder, "failing", trials=20)
    patch.undo()
    return open_study(folder)


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("this is no database, " * 500)


def _scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:20000] = b"\xff" * (20000 - 4096)
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE books (title TEXT)")
    other.close()


@pytest.mark.parametrize("damage", [_halve, _empty, _text, _scramble, _foreign])
def test_a_damaged_ledger_is_one_sentence_and_stays_untouched(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    search(tmp_path / "s", trials=2)
    path = tmp_path / "s" / "study.db"
    damage(path)
    before = path.read_bytes()
    for attempt in (lambda: open_study(tmp_path / "s"), lambda: search(tmp_path / "s", trials=3)):
        with pytest.raises(StudyError) as caught:
            attempt()
        message = str(caught.value)
        assert str(path) in message and "left untouched" in message and "\n" not in message
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("study.db*")] == ["study.db"]


def test_a_full_disk_is_a_storage_error_and_the_search_goes_on_later(tmp_path: Path) -> None:
    first = search(tmp_path / "s", trials=2)
    pages = (tmp_path / "s" / "study.db").stat().st_size // 4096 + 1

    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(Engine, "connect", limit)
    try:
        with pytest.raises(StorageError, match="database or disk is full") as caught:
            search(tmp_path / "s", trials=30)
    finally:
        event.remove(Engine, "connect", limit)
    assert caught.value.exit_code == 1 and "free some space" in str(caught.value)
    kept = read(tmp_path / "s")
    assert kept[:3] == first.trials
    whole = search(tmp_path / "whole", trials=30)
    again = search(tmp_path / "s", trials=30)
    assert [trial.candidate for trial in again.trials] == [trial.candidate for trial in whole.trials]
    assert all(trial.state == "complete" for trial in again.trials)


def test_a_study_is_locked_while_it_is_written(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(StudyError, match="only one search"), sole_writer(tmp_path):
        pass
    with sole_writer(tmp_path):  # the lock's file stays, the lock does not
        pass


def test_there_is_no_study_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no ledger"):
        open_study(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_studies_are_listed_with_the_unreadable_ones(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        search(tmp_path / name, trials=1, name=name)
    _empty(tmp_path / "c" / "study.db")
    a, b, c = list_studies(tmp_path)
    assert isinstance(a, Study) and isinstance(b, Study) and isinstance(c, StudyError)
    assert (a.name, b.name) == ("a", "b") and "empty" in str(c)
    assert [s.name for s in list_studies(tmp_path / "a") if isinstance(s, Study)] == ["a"]


def test_several_studies_may_share_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("a", "b"):
        search(tmp_path / name, trials=2, name=name, storage=url)
    again = search(tmp_path / "a", trials=3, name="a", storage=url)
    assert len(again.trials) == 4
    assert [s.name for s in list_studies(tmp_path, url) if isinstance(s, Study)] == ["a", "b"]
    with pytest.raises(StudyError, match="one of a, b"):
        open_study(tmp_path / "a", None, url)
    assert len(open_study(tmp_path / "b", "b", url).trials) == 3


def test_a_storage_that_is_no_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--storage must be a database URL"):
        search(tmp_path / "s", storage="nonsense")


def test_a_foreign_optuna_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.create_study(storage=url, study_name="study").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StudyError, match="not written by detsearch"):
        open_study(tmp_path)
    with pytest.raises(StudyError, match="not written by detsearch"):
        search(tmp_path, trials=1)


def test_optuna_itself_reads_the_ledger(finished: Study) -> None:
    study = optuna.load_study(study_name="study", storage=finished.storage)
    assert study.best_value == finished.best.value  # type: ignore[union-attr]
    assert len(study.trials) == len(finished.trials)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_a_line_a_trial(finished: Study, tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"table.{ending}"
    export(finished, path)
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert tuple(table.columns[: len(EXPORT_COLUMNS)]) == EXPORT_COLUMNS  # they sign it as ours
    assert json.loads(table["fragment"][1]) == {"assign": finished.trials[1].candidate}
    assert table["number"].tolist() == [trial.number for trial in finished.trials]
    assert {"state", "value", "seconds", "reason", "param.a", "param.b", "metric.AP"} <= set(table.columns)
    assert table["param.a"].isna().tolist() == [trial.baseline for trial in finished.trials]
    assert table["value"].dropna().tolist() == pytest.approx(
        [r.value for r in finished.trials if r.value is not None]
    )
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_json_holds_recipes_and_no_nan(finished: Study, tmp_path: Path) -> None:
    export(finished, tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["best"] == finished.best.number  # type: ignore[union-attr]
    assert content["trials"][1]["params"] == finished.trials[1].candidate
    assert json.loads(content["trials"][1]["recipe"])["assign"] == finished.trials[1].candidate


def test_an_unknown_ending_is_refused(finished: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"\.csv, \.parquet or \.json"):
        export(finished, tmp_path / "s.xlsx")


def test_importances_find_the_parameter_that_matters_and_need_enough_trials(tmp_path: Path) -> None:
    def make(candidate: dict | None) -> Prepared:
        matters = {"a": candidate["a"]} if candidate else None
        return prepared(json.dumps({"assign": matters, "also": candidate and candidate["b"]}), candidate)

    search(tmp_path / "s", trials=6, prepare=make, noise_seeds=3)
    assert importances(open_study(tmp_path / "s")) == {}
    search(tmp_path / "s", trials=32, prepare=make, noise_seeds=3)
    study = open_study(tmp_path / "s")
    found = importances(study)
    assert list(found) == ["a", "b"] and found["a"] > 0.8 and sum(found.values()) == pytest.approx(1)
    assert importances(study) == found
