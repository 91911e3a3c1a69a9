"""The same workers as Slurm jobs, through submitit; the study's folder must be shared by all nodes.

Partition, account, GPUs and the like come from sbatch's own environment variables, which win over what a job
asks for here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from detsearch_cli.errors import StudyError
from detsearch_cli.search.executors.base import Executor, environment, fresh
from detsearch_cli.search.worker import WorkerSpec, read_json, serve, write_message

_PARAMETERS = {"job_name": "detsearch", "time": 24 * 60, "signal_delay_s": 60}


class Slurm(Executor):
    """One Slurm job a worker.

    Slurm's notice before the time limit stops the worker; a new job goes on from the trial's checkpoint.
    """

    check_seconds: ClassVar[float] = 15.0
    """Slurm is asked for a job's state that often at most: accounting databases are slow."""

    def __init__(self, folder: Path, jobs: int, run_trial: str) -> None:
        super().__init__(folder, jobs, run_trial)
        self._looked: dict[int, tuple[float, bool]] = {}
        self._submitted: list[str] = []

    def launch(self, worker: int, spec: WorkerSpec) -> None:
        import submitit

        try:
            executor = submitit.SlurmExecutor(fresh(self.log(worker)))
            executor.update_parameters(**_PARAMETERS)
            with environment({"PYTHONPATH": os.pathsep.join(spec.path)}):
                job = executor.submit(serve, spec)
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            said = str(error).splitlines()[0]
            raise StudyError(
                f"Slurm takes no worker: {said}; --executor slurm needs sbatch and srun here"
            ) from error
        self._submitted.append(str(job.job_id))
        write_message(self.folder(worker) / "job.json", {"job": job.job_id})
        self._looked[worker] = (time.monotonic(), True)

    def alive(self, worker: int) -> bool:
        jobs = self._jobs(worker)
        if not jobs:
            return False
        when, lived = self._looked.get(worker, (-self.check_seconds, False))
        if time.monotonic() - when < self.check_seconds:
            return lived
        import submitit

        states = [submitit.SlurmJob.watcher.get_state(job, mode="force").split(" ")[0] for job in jobs]
        # accounting lags behind sbatch, so a job it does not know yet counts as waiting for a while
        young = _age(self.folder(worker)) < 300
        lives = any(state not in _ENDED and (state != "UNKNOWN" or young) for state in states)
        self._looked[worker] = (time.monotonic(), lives)
        return lives

    def _jobs(self, worker: int) -> list[str]:
        """The job submitted last, and the one whose worker runs: another one when a coordinator was killed
        between submitting it and noting it."""
        noted = (read_json(self.folder(worker) / name) for name in ("job.json", "ready.json"))
        return sorted({str(content["job"]) for content in noted if content and content.get("job")})

    def interrupt(self, worker: int, kill: bool = False) -> None:
        _cancel(self._jobs(worker), kill)
        self._looked.pop(worker, None)

    def kill_launched(self) -> None:
        _cancel(self._submitted, kill=True)


def _cancel(jobs: list[str], kill: bool) -> None:
    if not jobs:
        return
    command = ["scancel", *(["--signal=KILL"] if kill else []), *jobs]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, check=False, timeout=30, capture_output=True)


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
