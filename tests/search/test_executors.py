"""Local workers: GPUs and threads by worker, logs, workers that must not be reused."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

from detsearch_cli import parts
from detsearch_cli.errors import StudyError
from detsearch_cli.search.executors.base import Executor, fresh
from detsearch_cli.search.executors.local import Local, threads_per_worker, visible_gpus
from detsearch_cli.search.worker import Task
from tests.search.driving import search


@pytest.mark.parametrize("name", parts.names("search.executors"))
def test_every_executor_is_found_by_its_file_name(name: str, tmp_path: Path) -> None:
    kind = parts.find("search.executors", name, Executor, StudyError)  # type: ignore[type-abstract]
    assert kind(tmp_path, 2, "module:function").known() == []
    assert 15 < len(parts.summary("search.executors", name)) < 100


def test_gpus_go_round_by_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f6d")
    assert visible_gpus() == ["2", "GPU-8f6d"]
    executor = Local(tmp_path, 3, "module:function")
    assert [executor.spec(worker).gpu for worker in range(3)] == ["2", "GPU-8f6d", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert executor.spec(0).gpu is None


def test_cpu_threads_are_shared_and_a_smaller_wish_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_per_worker(jobs) for jobs in (1, 2, 5, 40)] == [12, 6, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert [threads_per_worker(jobs) for jobs in (1, 2, 5)] == [4, 4, 2]


def test_a_worker_is_reused_unless_its_process_may_be_broken(tmp_path: Path) -> None:
    outcome = search(tmp_path / "fine", "quick", trials=3)
    assert len({trial.worker for trial in outcome.trials}) == 1
    outcome = search(tmp_path / "broken", "always_failing", trials=2)  # RuntimeError: CUDA error
    assert outcome.all_failed and len({trial.worker for trial in outcome.trials}) == 3


def test_a_worker_that_dies_as_it_takes_a_trial_is_noticed_before_it_is_replaced(tmp_path: Path) -> None:
    launched = []

    class Dead(Local):
        def launch(self, worker: int, spec: object) -> None:  # type: ignore[override]
            launched.append(worker)

    executor = Dead(tmp_path, 1, "tests.search.fakes:quick")
    executor.start(0)
    executor.hand(0, Task(3, str(tmp_path / "trial"), ""))
    (executor.folder(0) / "task.json").rename(executor.folder(0) / "running.json")
    executor.start(0)
    assert launched == [0] and executor.held(0) == (3, True)
    executor.hand(
        0, Task(4, str(tmp_path / "other"), "")
    )  # what is left of a finished trial does not stand in the way
    executor.start(0)
    assert launched == [0, 0] and executor.held(0) == (4, False)


def test_a_result_lost_in_a_power_cut_is_trained_again(tmp_path: Path) -> None:
    first = search(tmp_path / "s", "quick", trials=1)
    with sqlite3.connect(tmp_path / "s" / "study.db") as ledger:
        ledger.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        ledger.execute("DELETE FROM trial_values WHERE trial_id = 2")
    ledger.close()
    (first.trials[1].folder / "result.json").write_bytes(b"")
    again = search(tmp_path / "s", "quick", trials=1)
    assert again.trials[1].value == first.trials[1].value
    assert len((again.trials[1].folder / "begun").read_text().splitlines()) == 2


def test_a_new_log_replaces_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text in ("first", "second", "third"):
        (fresh(log) / "out").write_text(text)
    (tmp_path / "log.3").mkdir()  # a user's
    assert list(fresh(log).iterdir()) == []
    kept = {path.parent.name: path.read_text() for path in tmp_path.glob("log*/out")}
    assert kept == {"log.1": "first", "log.2": "second", "log.4": "third"}


def test_every_worker_is_killed_however_often_ctrl_c_is_pressed(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    killed: set[int] = set()

    class Stubborn(Local):
        def alive(self, worker: int) -> bool:
            return worker not in killed

        def interrupt(self, worker: int, kill: bool = False) -> None:
            told.append((worker, kill))
            signal.raise_signal(signal.SIGINT)  # pressed while this worker is told
            killed.update({worker} if kill else ())

    for worker in range(3):
        (tmp_path / "workers" / str(worker)).mkdir(parents=True)
    # a shell starts what runs in the background with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Stubborn(tmp_path, 3, "module:function").abort()
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == [(0, False), (0, True), (1, True), (2, True)]
