"""A candidate asked for at some epochs and continued later: rows, repeats, scores on the way, kills."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest

from detsearch_cli.search import config, coordinator
from detsearch_cli.search.plan import Event
from detsearch_cli.search.samplers.base import Proposal
from detsearch_cli.search.space import Integer, Product
from detsearch_cli.search.study import open_study, to_json, trial_folder
from tests.search import fakes
from tests.search.driving import Inline, process, read, search, story, wait_for
from tests.search.halving import Scripted

SPACE = Product((Integer("a", 1, 25),))


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)


@pytest.fixture
def scripted(inline: None, monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    """A sampler of these tests that proposes what a test lists."""
    kind = type("Kind", (Scripted,), {"script": [], "heard": []})
    monkeypatch.setattr(config, "_sampler_class", lambda name: kind)
    return kind


def ask(kind: type[Scripted], *script: tuple[int, int | None]) -> None:
    kind.script = [Proposal({"a": a}, epochs) for a, epochs in script]


def run(folder: Path, trial: str = "staged", **changes: Any) -> coordinator.Outcome:
    return search(folder, trial, trials=20, space=SPACE, **changes)


def trained(folder: Path, number: int) -> list[str]:
    return (trial_folder(folder, number) / "trained").read_text().split()


def test_a_stopped_trial_is_neither_complete_nor_failed_nor_the_best(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (9, 5), (2, 1), (3, None))
    outcome = run(tmp_path / "s")
    assert [(t.state, t.epochs) for t in outcome.trials] == [
        ("complete", None),
        ("stopped", 5),
        ("stopped", 1),
        ("complete", None),
    ]
    assert outcome.trials[1].value == pytest.approx(0.5 * 5 / 9)
    assert outcome.best == outcome.trials[3] and not outcome.all_failed
    assert trained(tmp_path / "s", 1) == list("12345")
    assert scripted.heard[0] == ({"a": 9}, 5, outcome.trials[1].value)


def test_more_epochs_go_on_in_the_first_trials_folder(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (9, 1), (3, None), (9, 4), (9, None))
    outcome = run(tmp_path / "s")
    assert [(t.number, t.continues, t.epochs, t.state) for t in outcome.trials[1:]] == [
        (1, None, 1, "stopped"),
        (2, None, None, "complete"),
        (3, 1, 4, "stopped"),
        (4, 1, None, "complete"),
    ]
    assert {t.folder for t in outcome.trials if t.candidate == {"a": 9}} == {trial_folder(tmp_path / "s", 1)}
    assert trained(tmp_path / "s", 1) == list("123456789")
    assert outcome.best == outcome.trials[4] and outcome.best.value == 0.5
    assert sum(t.trained for t in outcome.trials) == 4


def test_the_tasks_epochs_and_results_are_those_of_the_stage(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (9, 2), (9, 9))
    outcome = run(tmp_path / "s")
    stage, whole = outcome.trials[1:]
    assert (stage.metrics["epochs"], stage.metrics["stopped"]) == (2, True)
    assert whole.state == "complete" and whole.epochs == 9  # as many as the whole: not a stage
    assert whole.metrics["stopped"] is False
    assert sorted(path.name for path in stage.folder.glob("result*")) == ["result-00002.json", "result.json"]


@pytest.mark.parametrize("again", [2, 1])
def test_a_budget_that_is_there_already_is_answered_from_the_ledger(
    tmp_path: Path, scripted: Any, again: int
) -> None:
    ask(scripted, (9, 2), (9, again), (9, None), (9, again), (9, None))
    outcome = run(tmp_path / "s")
    assert [t.repeat_of for t in outcome.trials[1:]] == [None, 1, None, 1, 3]
    assert outcome.trials[2].state == outcome.trials[4].state == "repeat"
    # scored on the way, at the epochs that were asked for
    assert outcome.trials[2].value == outcome.trials[4].value == pytest.approx(0.5 * again / 9)
    assert outcome.trials[5].value == 0.5 and outcome.trials[5].folder == trial_folder(tmp_path / "s", 1)
    assert trained(tmp_path / "s", 1) == list("123456789")
    assert optuna.load_study(study_name="study", storage=open_study(tmp_path / "s").storage).best_value == 0.5


def test_what_failed_is_not_continued(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (3, 1), (3, 4), (3, None), (4, 1), (4, None))
    outcome = run(tmp_path / "s", "failing_later")
    assert [t.state for t in outcome.trials[1:]] == ["stopped", "failed", "failed", "stopped", "complete"]
    assert outcome.trials[3].repeat_of == 2
    assert outcome.trials[3].reason == "same as trial 2: ValueError: fell apart"


def test_a_continuation_waits_for_the_stage_before_it(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (9, 1), (9, 3), (9, None), (4, None), (9, 2))
    for jobs in (1, 3):
        scripted.heard = []
        outcome = run(tmp_path / f"s{jobs}", jobs=jobs)
        assert [t.state for t in outcome.trials[1:5]] == ["stopped", "stopped", "complete", "complete"]
        assert [t.continues for t in outcome.trials[1:5]] == [None, 1, 1, None]
        assert trained(tmp_path / f"s{jobs}", 1) == list("123456789")


def test_continuations_of_a_stage_that_fails_while_they_wait_fail_with_it(
    tmp_path: Path, scripted: Any
) -> None:
    ask(scripted, (3, 2), (3, 3), (3, None), (4, 1))
    outcome = run(tmp_path / "s", "failing_later", jobs=3)
    assert [t.state for t in outcome.trials[1:]] == ["failed", "failed", "failed", "stopped"]
    assert outcome.trials[2].reason == "same as trial 1: ValueError: fell apart"
    assert [value for candidate, _, value in scripted.heard if candidate == {"a": 3}] == [None] * 3


def test_a_candidate_asked_for_at_fewer_epochs_does_not_exhaust_its_space(
    tmp_path: Path, scripted: Any
) -> None:
    ask(scripted, (1, 1), (2, 1), (2, None), (1, None), (1, None))
    outcome = search(tmp_path / "s", "staged", trials=20, space=Product((Integer("a", 1, 2),)))
    assert outcome.reason == "every candidate of the space has been tried (2)"
    assert sum(t.trained for t in outcome.trials) == 4


def test_scores_on_the_way_are_kept_and_exported(tmp_path: Path, scripted: Any) -> None:
    ask(scripted, (9, 2), (9, 4))
    run(tmp_path / "s")
    study = open_study(tmp_path / "s")
    scores = [(epoch, pytest.approx(0.5 * epoch / 9)) for epoch in range(1, 5)]
    assert list(study.trials[1].scores) == scores[:2] and list(study.trials[2].scores) == scores
    kept = optuna.load_study(study_name="study", storage=study.storage).trials[2]
    assert kept.intermediate_values == dict(study.trials[2].scores)
    written = to_json(study)["trials"][2]
    assert written["epochs"] == 4 and [epoch for epoch, _ in written["scores"]] == [1, 2, 3, 4]
    assert written["fragment"] == {"assign": {"a": 9}}
    assert study.table()["epochs"].dropna().tolist() == [2, 4]


def test_scores_reach_the_coordinator_while_a_trial_trains(tmp_path: Path) -> None:
    events: list[Event] = []
    search(tmp_path / "s", "staged", events.append, trials=1, space=SPACE)
    scored = [e.trial for e in events if e.kind == "scored" and e.trial and e.trial.number == 1]
    assert scored and all(t.state == "running" for t in scored)
    assert [len(t.scores) for t in scored] == sorted({len(t.scores) for t in scored})


def test_a_halved_recipe_in_the_folder_is_left_alone(tmp_path: Path, inline: None) -> None:
    folder = trial_folder(tmp_path / "s", 1)
    folder.mkdir(parents=True)
    (tmp_path / "s" / "trials").rename(tmp_path / "kept")
    search(tmp_path / "s", trials=0)
    (tmp_path / "kept").joinpath("00001").rename(folder)
    (folder / "recipe.yaml").write_text("# detsearch run\nhalved")
    outcome = search(tmp_path / "s", trials=1)
    assert (folder / "recipe.yaml").read_text() == "# detsearch run\nhalved"
    assert outcome.trials[1].value == fakes.score(outcome.trials[1].recipe_yaml)


def halving(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"trials": 12, "space": SPACE, "sampler": "halving", **changes}


@pytest.fixture
def halving_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.search.halving import install

    install(monkeypatch)


@pytest.fixture
def whole(tmp_path: Path, halving_sampler: None) -> list[tuple[Any, ...]]:
    return story(search(tmp_path / "whole", "staged", **halving(tmp_path)).trials)


def test_halving_trains_every_epoch_once_however_often_its_coordinator_is_killed(
    tmp_path: Path, whole: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "study"
    moments = [
        lambda: (trial_folder(folder, 2) / "result.json").exists(),
        lambda: (trial_folder(folder, 1) / "result-00005.json").exists() or len(read(folder)) > 5,
        lambda: len(read(folder)) > 7,
    ]
    for moment in moments:
        killed = process(folder, "staged", **halving(folder))
        wait_for(moment)
        killed.kill()
        killed.join()
    last = process(folder, "staged", **halving(folder))
    last.join()
    assert last.exitcode == 0
    assert story(read(folder)) == whole
    assert any(continues is not None for *_, continues, _, _ in whole)
    for path in folder.glob("trials/*/trained"):
        epochs = path.read_text().split()
        assert len(set(epochs)) == len(epochs)


def test_a_killed_worker_of_a_continuing_trial_goes_on_from_the_checkpoint(
    tmp_path: Path, whole: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path / "study"
    running = process(folder, "staged", **halving(folder))
    wait_for(lambda: any(t.continues is not None and t.state == "running" for t in _tried(folder)))
    os.kill(json.loads((folder / "workers/0/ready.json").read_text())["process"], signal.SIGKILL)
    running.join()
    assert running.exitcode == 0
    assert story(read(folder)) == whole


def _tried(folder: Path) -> tuple[Any, ...]:
    return read(folder) if (folder / "study.db").exists() else ()
