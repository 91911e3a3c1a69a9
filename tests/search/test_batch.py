"""Known trainings in several workers: all done once, however often the one that hands them out is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detsearch_cli.errors import CheckFailed, StudyError
from detsearch_cli.search.batch import run_batch
from detsearch_cli.search.storage import sole_writer
from tests.search import fakes

ROOT = Path(__file__).parents[2]


def made(place: Path, values: list[int]) -> list[Path]:
    folders = [place / f"run{i}" for i in range(len(values))]
    for folder, value in zip(folders, values, strict=True):
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(fakes.recipe({"a": value}))
    return folders


def test_every_training_runs_once_and_its_metrics_are_told(tmp_path: Path) -> None:
    folders = made(tmp_path, [1, 9, 5])
    told = {}
    run_batch(
        folders, tmp_path, "tests.search.fakes:short", 2, on_done=lambda n, m: told.update({n: m["AP"]})
    )
    assert told == {n: fakes.score(fakes.recipe({"a": v})) for n, v in enumerate([1, 9, 5])}
    again = {}
    run_batch(
        folders, tmp_path, "tests.search.fakes:short", 2, on_done=lambda n, m: again.update({n: m["AP"]})
    )
    assert again == told
    assert [len((f / "begun").read_text().splitlines()) for f in folders] == [1, 1, 1]


def test_a_training_that_raises_ends_the_batch_with_its_reason_and_runs_again_later(tmp_path: Path) -> None:
    folders = made(tmp_path, [2, 3])
    with pytest.raises(CheckFailed, match=r"run1 failed: "):
        run_batch(folders, tmp_path, "tests.search.fakes:failing", 1)
    assert not (folders[1] / "result.json").exists()


def test_a_place_in_use_is_refused(tmp_path: Path) -> None:
    folders = made(tmp_path, [2])
    with sole_writer(tmp_path), pytest.raises(StudyError, match="being written by"):
        run_batch(folders, tmp_path, "tests.search.fakes:quick", 1)


@pytest.mark.parametrize("delay", [0.0, 0.4, 0.8])
def test_killed_while_it_hands_out_the_same_call_goes_on(tmp_path: Path, delay: float) -> None:
    folders = made(tmp_path, list(range(6)))
    code = (
        "import sys; from pathlib import Path; from detsearch_cli.search.batch import run_batch; "
        "place = Path(sys.argv[1]); "
        "run_batch(sorted(place.glob('run*')), place, 'tests.search.fakes:short', 2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 30
    while not (tmp_path / "workers").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done: list[int] = []
    run_batch(folders, tmp_path, "tests.search.fakes:short", 2, on_done=lambda n, m: done.append(n))
    assert sorted(done) == list(range(6))
    # a worker outlives the kill: what it was training is not given to another
    assert [len((f / "begun").read_text().splitlines()) for f in folders] == [1] * 6


def test_a_killed_worker_is_replaced_once_then_the_batch_ends(tmp_path: Path) -> None:
    folder = made(tmp_path, [2])[0].rename(tmp_path / "00002")  # the trial that `dying` dies in
    with pytest.raises(CheckFailed, match="died 2 times"):
        run_batch([folder], tmp_path, "tests.search.fakes:dying", 1)
    assert len((folder / "begun").read_text().splitlines()) == 2
