"""The ledger lies in the folder that was named, whatever characters its path has."""

from __future__ import annotations

from pathlib import Path

import pytest

from detsearch_cli.errors import StudyError
from detsearch_cli.search.executors.local import Local
from detsearch_cli.search.storage import connect, database_url, display_name


@pytest.mark.parametrize("name", ["a{}b", "p{1}", "a?b", "a%20b", "a#b", "a b", "日本", "caf\udce9", "a;b'c"])
def test_a_ledger_is_written_into_its_own_folder_and_found_there_again(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    url = database_url(folder, None)
    connect(url, create=True).create_new_study([], "s")
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing beside it
    assert [p.name for p in folder.iterdir()] == ["study.db"]
    found = connect(url, create=False).get_all_studies()
    assert [study.study_name for study in found] == ["s"]
    assert display_name(url) == str(folder / "study.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_ledger_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StudyError, match="must name a file"):
        connect(url, create=True)


def test_a_folder_that_would_be_filled_in_by_job_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="%j"):
        Local(tmp_path / "p%j", 1, "module:function")
