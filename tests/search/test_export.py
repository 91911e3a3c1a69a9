"""Exported tables are signed, whatever the study holds, and never replace a file of the user or of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from detsearch_cli.errors import OutputError, StudyError
from detsearch_cli.files import EXPORT_COLUMNS, is_ours, write_signed_json
from detsearch_cli.search import coordinator
from detsearch_cli.search.export import export
from detsearch_cli.search.study import Study, open_study
from tests.search.driving import Inline, search


class Fake:
    """A study with these lines in its table."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self.lines = lines

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(list(self.lines))


LINE = {"number": 0, "state": "complete", "baseline": True, "value": 0.5, "seconds": 2.0, "reason": None}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("lines", [(), (LINE,), (LINE, {**LINE, "number": 1, "value": None})])
def test_a_table_of_any_length_is_signed_and_replaced(
    lines: tuple[dict[str, Any], ...], name: str, tmp_path: Path
) -> None:
    study, path = cast(Study, Fake(*lines)), tmp_path / name
    export(study, path)
    assert is_ours(path)
    export(study, path)
    read = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    assert tuple(read.columns[: len(EXPORT_COLUMNS)]) == EXPORT_COLUMNS
    assert read.number.tolist() == [line["number"] for line in lines]


def test_a_signed_file_of_another_kind_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    write_signed_json(path, "study", {"seed": 1})
    before = path.read_bytes()
    with pytest.raises(OutputError, match="not written by detsearch as export"):
        export(cast(Study, Fake(LINE)), path)
    assert path.read_bytes() == before


def test_another_ending_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"a \.csv, \.parquet or \.json file, got t\.txt"):
        export(cast(Study, Fake(LINE)), tmp_path / "t.txt")


def test_numbers_of_trials_stay_whole_where_some_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)
    search(tmp_path / "s", trials=4, noise_seeds=3)
    export(open_study(tmp_path / "s"), tmp_path / "t.csv")
    lines = [line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()]
    column = lines[0].index("again_of")
    assert [line[column] for line in lines[1:]] == ["", "0", "0", "", ""]
