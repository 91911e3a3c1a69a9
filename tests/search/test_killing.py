"""Killing coordinators and workers for real, at several moments; Ctrl-C; two coordinators; lost workers."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.errors import StudyError
from detsearch_cli.search.refusals import read_refusals
from detsearch_cli.search.study import trial_folder
from detsearch_cli.search.worker import read_json
from tests.search.driving import begun, process, read, refusing_even, search, story, wait_for


def worker_process(folder: Path, number: int = 0) -> int | None:
    ready = read_json(folder / "workers" / str(number) / "ready.json")
    return int(ready["process"]) if ready else None


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple]:
    folder = tmp_path_factory.mktemp("whole") / "study"
    return story(search(folder, "short", trials=12, sampler="dycors").trials)


def test_a_coordinator_killed_at_several_moments_goes_on_as_if_it_had_not_been(
    tmp_path: Path, uninterrupted: list[tuple]
) -> None:
    folder = tmp_path / "study"
    moments = [
        lambda: (folder / "workers" / "0").exists(),  # before there is a ledger
        lambda: (folder / "study.db").exists(),
        lambda: len(begun(folder)) >= 3,  # in the middle of a training
        lambda: (trial_folder(folder, 5) / "result.json").exists(),  # a result is waiting
        lambda: trial_folder(folder, 9).exists(),  # a trial is being handed over
    ]
    for moment in moments:
        coordinator = process(folder, "short", trials=12, sampler="dycors")
        wait_for(moment)
        coordinator.kill()
        coordinator.join()
    last = process(folder, "short", trials=12, sampler="dycors")
    last.join()
    assert last.exitcode == 0
    assert story(read(folder)) == uninterrupted
    # workers outlived their coordinators, so nothing was trained twice
    assert all(len((path / "begun").read_text().splitlines()) == 1 for path in begun(folder))


def test_a_coordinator_killed_among_refusals_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    given: dict[str, Any] = {"trials": 8, "sampler": "dycors", "jobs": 2, "prepare": refusing_even}
    whole, folder = tmp_path / "whole", tmp_path / "study"
    search(whole, "short", **given)
    for count in (2, 3, 6):
        coordinator = process(folder, "short", **given)
        wait_for(lambda count=count: len(begun(folder)) > count or len(read_refusals(folder)) > count)
        coordinator.kill()
        coordinator.join()
    last = process(folder, "short", **given)
    last.join()
    assert story(read(folder)) == story(read(whole))
    assert read_refusals(folder) == read_refusals(whole) != []


def test_a_killed_worker_is_replaced_and_its_trial_tried_again(
    tmp_path: Path, uninterrupted: list[tuple]
) -> None:
    folder = tmp_path / "study"
    coordinator = process(folder, "short", trials=12, sampler="dycors")
    for count in (1, 4, 7):  # the baseline's worker, too
        wait_for(lambda count=count: len(begun(folder)) >= count and worker_process(folder))
        os.kill(worker_process(folder) or 0, signal.SIGKILL)
    coordinator.join()
    assert coordinator.exitcode == 0
    trials = read(folder)
    assert story(trials) == uninterrupted
    assert max(trial.attempts for trial in trials) <= 2


def test_with_two_jobs_the_trials_do_not_depend_on_how_long_each_took_nor_on_kills(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    whole = story(search(one, "uneven", trials=9, jobs=2, sampler="dycors").trials)
    for count in (3, 6):
        coordinator = process(two, "uneven", trials=9, jobs=2, sampler="dycors")
        wait_for(lambda count=count: len(begun(two)) >= count)
        coordinator.kill()
        coordinator.join()
    assert story(search(two, "uneven", trials=9, jobs=2, sampler="dycors").trials) == whole


def test_coordinator_and_workers_killed_together_go_on_with_two_jobs(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    for count in (2, 5):
        coordinator = process(folder, "short", trials=9, jobs=2, sampler="random")
        wait_for(
            lambda count=count: (
                len(begun(folder)) >= count and worker_process(folder, 0) and worker_process(folder, 1)
            )
        )
        coordinator.kill()
        for number in (0, 1):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker_process(folder, number) or 0, signal.SIGKILL)
        coordinator.join()
    last = process(folder, "short", trials=9, jobs=1, sampler="random")  # fewer jobs than before
    last.join()
    trials = read(folder)
    assert [trial.state for trial in trials] == ["complete"] * 10
    assert {trial.attempts for trial in trials} == {1}  # not the trials' fault


def test_ctrl_c_saves_ends_the_workers_and_can_be_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    coordinator = process(folder, "endless", trials=4)
    wait_for(lambda: trial_folder(folder, 2) in begun(folder))
    worker = worker_process(folder) or 0
    with pytest.raises(StudyError, match=r"being written by process \d+ on"):
        search(folder, "endless", trials=4)
    os.kill(coordinator.pid or 0, signal.SIGINT)
    coordinator.join()
    assert coordinator.exitcode == 130
    assert (trial_folder(folder, 2) / "checkpoint").exists()
    wait_for(lambda: not alive(worker), 5)
    assert [trial.state for trial in read(folder)] == ["complete", "complete", "running"]
    outcome = search(folder, "endless", trials=4)
    assert [trial.state for trial in outcome.trials] == ["complete"] * 5
    assert len((trial_folder(folder, 2) / "begun").read_text().splitlines()) == 2


def test_a_trial_that_kills_its_worker_is_tried_twice_then_failed(tmp_path: Path) -> None:
    once = search(tmp_path / "once", "dying_once", trials=3)
    assert [trial.attempts for trial in once.trials] == [1, 1, 2, 1]
    assert [trial.state for trial in once.trials] == ["complete"] * 4
    kinds: list[str] = []
    always = search(tmp_path / "always", "dying", lambda event: kinds.append(event.kind), trials=3)
    assert [trial.state for trial in always.trials] == ["complete", "complete", "failed", "complete"]
    assert always.trials[2].reason == "its worker died 2 times without a word: killed, or out of memory"
    assert kinds.count("retried") == 1


def test_workers_that_cannot_import_the_trial_end_the_search(tmp_path: Path) -> None:
    with pytest.raises(
        StudyError, match=r"workers cannot import tests\.search\.fakes:missing: AttributeError"
    ):
        search(tmp_path / "s", "missing", trials=3)


def test_idle_workers_without_a_coordinator_end_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    coordinator = process(folder, "short", trials=50, environment={"IDLE_SECONDS": "0.5"})
    wait_for(lambda: len(begun(folder)) >= 2)
    worker = worker_process(folder) or 0
    coordinator.kill()
    coordinator.join()
    wait_for(lambda: not alive(worker), 10)
    running = [trial.number for trial in read(folder) if trial.state == "running"]
    # the trial under way was finished first
    assert all((trial_folder(folder, number) / "result.json").exists() for number in running)
