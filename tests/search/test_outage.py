"""Data that go, and a study's folder that is moved away, while a search runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from detsearch_cli.engine import trial as trials
from detsearch_cli.errors import DataError, DataLost, StorageError
from detsearch_cli.search import coordinator
from detsearch_cli.search.coordinator import Event
from tests.engine.coco_folder import write_coco
from tests.recipes import small
from tests.search.driving import Inline, begun, process, read, search, story, wait_for
from tests.search.test_killing import alive, worker_process


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)


def test_a_search_stops_when_the_data_go_and_goes_on_as_if_they_had_not(tmp_path: Path, inline: None) -> None:
    whole = search(tmp_path / "whole", "quick", trials=6)
    folder = tmp_path / "study"
    gone = tmp_path / "data-are-gone"

    def note(event: Event) -> None:
        if event.kind == "finished" and event.trial is not None and event.trial.number == 2:
            gone.touch()

    for _ in range(2):  # the second time while they are still gone
        with pytest.raises(
            DataLost, match=r"^trial 3 could not read what every trial needs \(no such folder\)"
        ):
            search(folder, "needing_data", note, trials=6)
        assert [trial.state for trial in read(folder)] == ["complete"] * 3 + ["running"]
    gone.unlink()
    assert story(search(folder, "needing_data", trials=6).trials) == story(whole.trials)


def test_what_other_workers_met_in_an_outage_is_trained_again(tmp_path: Path, inline: None) -> None:
    folder = tmp_path / "study"
    search(folder, "quick", trials=2)
    (tmp_path / "data-are-gone").touch()
    with pytest.raises(DataLost):
        search(folder, "needing_data", trials=4)
    (tmp_path / "data-are-gone").unlink()
    report = {"trial": 3, "seconds": 0.1, "reason": "DataLost: no such folder", "outage": "data"}
    (folder / "trials" / "00003" / "result.json").write_text(json.dumps(report))
    assert [trial.state for trial in search(folder, "needing_data", trials=4).trials] == ["complete"] * 5


def test_a_folder_that_is_moved_away_ends_the_search_and_nothing_is_made_in_its_place(
    tmp_path: Path, inline: None
) -> None:
    folder = tmp_path / "study"

    def move(event: Event) -> None:
        if event.kind == "finished" and event.trial is not None and event.trial.number == 1:
            folder.rename(tmp_path / "moved")

    with pytest.raises(StorageError, match="study was moved or removed while it was written"):
        search(folder, "quick", move, trials=4)
    assert not folder.exists()
    (tmp_path / "moved").rename(folder)
    assert [trial.state for trial in search(folder, "quick", trials=4).trials] == ["complete"] * 5


def test_workers_of_a_folder_that_is_moved_away_are_ended(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    running = process(folder, "endless", trials=4)
    wait_for(lambda: (folder / "trials" / "00002" / "begun").exists())
    worker = worker_process(folder)
    folder.rename(tmp_path / "moved")
    running.join(20)
    assert running.exitcode == 1
    assert worker is not None
    wait_for(lambda: not alive(worker))
    assert not folder.exists()
    assert len(begun(tmp_path / "moved")) == 3


# ---------------------------------------------------------------------- what is an outage


def _trial(data: Path, folder: Path) -> None:
    trials.load_data.cache_clear()
    recipe = small(data={"source": str(data)}, runtime={"cache": "off"}, schedule={"epochs": 1})
    trials.run_trial(recipe.to_yaml(), str(folder))


def test_a_data_set_that_went_is_an_outage_at_opening_and_in_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_coco(data, [[[5, 5, 20, 20]]] * 4)
    opened = trials.load_data

    def lose(recipe_data: object) -> object:
        loaded = opened(recipe_data)  # type: ignore[arg-type]
        for name in ("train", "val"):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(data / name)
        return loaded

    lose.cache_clear = opened.cache_clear  # type: ignore[attr-defined]
    monkeypatch.setattr(trials, "load_data", lose)
    with pytest.raises(DataLost):
        _trial(data, tmp_path / "during")
    shutil.rmtree(data)
    with pytest.raises(DataLost):
        _trial(data, tmp_path / "before")


def test_a_recipe_that_asks_too_much_of_the_data_is_no_outage(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_coco(data, [[[5, 5, 20, 20]]] + [[]] * 3)
    recipe = yaml.safe_load(small(data={"source": str(data)}).to_yaml())
    recipe["data"]["val"] = "nosuch"
    trials.load_data.cache_clear()
    with pytest.raises(DataError) as caught:
        trials.run_trial(yaml.safe_dump(recipe), str(tmp_path / "run"))
    assert not isinstance(caught.value, DataLost)
