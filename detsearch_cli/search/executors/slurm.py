"""The same workers as Slurm jobs, through submitit; the study's folder must be shared by all nodes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detsearch_cli.errors import StudyError
from detsearch_cli.search.executors.base import Executor, environment, fresh
from detsearch_cli.search.worker import WorkerSpec, read_json, serve, write_json

_NAMES = {"gpus": "gpus_per_node", "cpus": "cpus_per_task", "memory": "mem"}
_DEFAULTS = {"job_name": "detsearch", "time": 24 * 60, "signal_delay_s": 60}


class Slurm(Executor):
    """One Slurm job a worker. options: partition, time (minutes), gpus, cpus, memory, and sbatch's own.

    Slurm's notice before the time limit stops the worker; a new job goes on from the trial's checkpoint.
    """

    check_seconds = 15.0

    def __init__(self, folder: Path, jobs: int, run_trial: str, options: Mapping[str, Any]) -> None:
        super().__init__(folder, jobs, run_trial, options)
        self.check_seconds = float(self.options.pop("check_seconds", self.check_seconds))
        self._parameters = {**_DEFAULTS, **{_NAMES.get(k, k): v for k, v in self.options.items()}}
        self._looked: dict[int, tuple[float, bool]] = {}

    def launch(self, slot: int, spec: WorkerSpec) -> None:
        import submitit

        try:
            executor = submitit.SlurmExecutor(fresh(self.log(slot)))
            executor.update_parameters(**self._parameters)
            with environment({"PYTHONPATH": os.pathsep.join(spec.path)}):
                job = executor.submit(serve, spec)
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            said = str(error).splitlines()[0]
            raise StudyError(
                f"Slurm takes no worker: {said}; --executor slurm needs sbatch and srun here"
            ) from error
        write_json(self.folder(slot) / "job.json", {"job": job.job_id})
        self._looked[slot] = (time.monotonic(), True)

    def alive(self, slot: int) -> bool:
        jobs = self._jobs(slot)
        if not jobs:
            return False
        when, verdict = self._looked.get(slot, (-self.check_seconds, False))
        if time.monotonic() - when < self.check_seconds:
            return verdict
        import submitit

        states = [submitit.SlurmJob.watcher.get_state(job, mode="force").split(" ")[0] for job in jobs]
        # accounting lags behind sbatch, so a job it does not know yet counts as waiting for a while
        young = _age(self.folder(slot)) < 300
        lives = any(state not in _ENDED and (state != "UNKNOWN" or young) for state in states)
        self._looked[slot] = (time.monotonic(), lives)
        return lives

    def _jobs(self, slot: int) -> list[str]:
        """The job submitted last, and the one whose worker runs: another one when a coordinator was killed
        between submitting it and noting it."""
        noted = (read_json(self.folder(slot) / name) for name in ("job.json", "ready.json"))
        return sorted({str(content["job"]) for content in noted if content and content["job"]})

    def interrupt(self, slot: int, kill: bool = False) -> None:
        jobs = self._jobs(slot)
        if not jobs:
            return
        command = ["scancel", *(["--signal=KILL"] if kill else []), *jobs]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, check=False, timeout=30, capture_output=True)
        self._looked.pop(slot, None)


_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


def _age(folder: Path) -> float:
    times = [path.stat().st_mtime for path in (folder / "job.json", folder / "ready.json") if path.exists()]
    return time.time() - max(times, default=0.0)
