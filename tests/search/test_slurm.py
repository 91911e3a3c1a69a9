"""The Slurm executor against stand-ins for sbatch, srun, sacct and scancel that run jobs on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from detsearch_cli.errors import StudyError
from detsearch_cli.search.executors.slurm import Slurm
from detsearch_cli.search.worker import read_json
from tests.search.driving import begun, process, read, search, story, wait_for

SBATCH = """#!/bin/sh
id=$(($(ls "$FAKE_SLURM"/*.job 2>/dev/null | wc -l) + 1001))
cp "$1" "$FAKE_SLURM/$id.job"
SLURM_JOB_ID=$id SLURM_NTASKS=1 setsid sh "$1" >"$FAKE_SLURM/$id.out" 2>&1 </dev/null &
echo $! >"$FAKE_SLURM/$id.pid"
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/sh
while [ $# -gt 0 ]; do case "$1" in
  --output|--error) shift 2;; --*) shift;; *) break;;
esac; done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for arg in "$@"; do if [ -f "$FAKE_SLURM/$arg.pid" ]; then
  state=FAILED  # a zombie has ended, too
  grep -q "^State:[^Z]*$" "/proc/$(cat "$FAKE_SLURM/$arg.pid")/status" 2>/dev/null && state=RUNNING
  echo "$arg|$state|here"
fi; done
"""
SCANCEL = """#!/bin/sh
for arg in "$@"; do if [ -f "$FAKE_SLURM/$arg.pid" ]; then
  kill -s TERM -- "-$(cat "$FAKE_SLURM/$arg.pid")" 2>/dev/null
  echo "$arg" >>"$FAKE_SLURM/cancelled"
fi; done
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setattr(Slurm, "check_seconds", 0.1)
    return folder


def test_workers_run_as_slurm_jobs(tmp_path: Path, slurm: Path) -> None:
    outcome = search(tmp_path / "s", trials=4, jobs=2, executor="slurm")
    assert [trial.state for trial in outcome.trials] == ["complete"] * 5
    script = (slurm / "1001.job").read_text()
    for line in ("--job-name=detsearch", "--time=1440"):
        assert line in script
    assert len(list(slurm.glob("*.job"))) == 2
    assert (read_json(tmp_path / "s" / "workers" / "0" / "ready.json") or {})["job"] == "1001"


def test_a_lost_slurm_job_is_replaced_and_a_restarted_coordinator_finds_the_others(
    tmp_path: Path, slurm: Path
) -> None:
    folder = tmp_path / "s"
    whole = search(tmp_path / "whole", "short", trials=6, sampler="random")
    ready = folder / "workers" / "0" / "ready.json"
    first = process(folder, "short", trials=6, executor="slurm", environment=dict(os.environ))
    wait_for(lambda: len(begun(folder)) >= 2)
    first.kill()
    first.join()
    second = process(folder, "short", trials=6, executor="slurm", environment=dict(os.environ))
    wait_for(lambda: len(begun(folder)) >= 4)
    with contextlib.suppress(ProcessLookupError):
        os.kill((read_json(ready) or {})["process"], signal.SIGKILL)
    second.join()
    assert second.exitcode == 0
    assert story(read(folder)) == story(whole.trials)
    assert len(list(slurm.glob("*.job"))) == 2


def test_ctrl_c_cancels_the_slurm_jobs(tmp_path: Path, slurm: Path) -> None:
    folder = tmp_path / "s"
    running = process(folder, "endless", trials=4, executor="slurm", environment=dict(os.environ))
    wait_for(lambda: folder / "trials" / "00002" in begun(folder))
    os.kill(running.pid or 0, signal.SIGINT)
    running.join()
    assert running.exitcode == 130
    assert (slurm / "cancelled").read_text().split() == ["1001"]
    assert (folder / "trials" / "00002" / "checkpoint").exists()


def test_without_slurm_the_error_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match=r"needs sbatch and srun"):
        search(tmp_path / "s", executor="slurm")
