"""Ctrl-C and kill -9 in the middle of real searches: the same command goes on and finds the same."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.search.study import open_study
from tests.cli.small import SMALL, start

# long enough to be killed in the middle, and learning enough for AP to tell two candidates apart
LEARNING = [*SMALL, "--epochs", "4", "--set", "optim={name: adamw, lr: 0.003}"]
SEARCH = ["assign", "search", *LEARNING, "--bins", "1", "--trials", "3", "--jobs", "1", "--seed", "0"]


def search(name: str) -> list[str]:
    return [*SEARCH, "--name", name, "--out", "."]


def trials(folder: Path) -> list[tuple[Any, ...]]:
    """What must be equal: number, state, candidate and every score of every trial."""
    return [(r.number, r.state, r.candidate, r.metrics.get("coco")) for r in open_study(folder).trials]


def wait_for(file: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.005)


def workers_of(study: Path) -> list[int]:
    """Ids of the worker processes of the study, found by their command lines."""
    mark, found = str(study / "workers").encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if mark in line and b"_submit" in line:
            found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    root = tmp_path_factory.mktemp("whole")
    process = start(search("s"), root)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return trials(root / "s")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker through /proc")
def test_after_ctrl_c_kill_9_and_a_killed_worker_the_same_command_finds_the_same(
    tmp_path: Path, uninterrupted: list[tuple[Any, ...]]
) -> None:
    trial = [tmp_path / "s" / "trials" / f"{number:05d}" / "log.jsonl" for number in range(4)]
    process = start(search("s"), tmp_path)
    wait_for(trial[1])
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "interrupted; the study is saved in s; give the same command again to go on" in told
    assert "Traceback" not in told and "error" not in told

    process = start(search("s"), tmp_path)
    wait_for(trial[2])
    process.kill()
    process.wait(timeout=60)  # its worker lives on and keeps the pipes open

    process = start([*search("s"), "--json"], tmp_path)
    wait_for(trial[3])
    killed = workers_of(tmp_path / "s")
    assert killed
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "resumed: " in told
    assert json.loads(out)["trials"] == 4
    assert trials(tmp_path / "s") == uninterrupted
