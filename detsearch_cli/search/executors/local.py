"""Worker processes on this machine, through submitit; they outlive the coordinator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from detsearch_cli.reading import whole
from detsearch_cli.search.executors.base import Executor, environment, fresh
from detsearch_cli.search.worker import WorkerSpec, read_json, serve

_YEAR_MINUTES = 365 * 24 * 60
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Local(Executor):
    """`--jobs N` workers share the machine: CPU threads are divided, GPUs go round by worker."""

    def __init__(self, folder: Path, jobs: int, run_trial: str) -> None:
        super().__init__(folder, jobs, run_trial)
        self._launched: dict[int, Any] = {}
        self._processes: dict[int, int] = {}  # worker -> its process, once it is ready

    def spec(self, worker: int) -> WorkerSpec:
        known = visible_gpus()
        return replace(super().spec(worker), gpu=known[worker % len(known)] if known else None, detach=True)

    def launch(self, worker: int, spec: WorkerSpec) -> None:
        import submitit

        executor = submitit.LocalExecutor(fresh(self.log(worker)))
        executor.update_parameters(timeout_min=_YEAR_MINUTES)
        threads = str(threads_per_worker(self.jobs))
        changes = dict.fromkeys(_THREADS, threads)
        changes["PYTHONPATH"] = os.pathsep.join(spec.path)
        with environment(changes), _sigint_ignored():
            self._launched[worker] = executor.submit(serve, spec)

    def alive(self, worker: int) -> bool:
        path = self.folder(worker) / "lock"
        with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._note_process(worker)
                return True
        job = self._launched.get(worker)
        # before it takes the lock, only the process that launched it knows that it is starting
        return job is not None and not self.ready(worker) and not job.done()

    def _note_process(self, worker: int) -> None:
        if worker not in self._processes:
            ready = read_json(self.folder(worker) / "ready.json")
            if ready is not None and isinstance(ready.get("process"), int):
                self._processes[worker] = ready["process"]

    def kill_launched(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for worker, job in self._launched.items():
            if worker not in self._processes and not job.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)  # not begun; see `interrupt`

    def close(self) -> None:
        self._launched.clear()  # submitit's jobs complain when they are collected at the interpreter's end

    def interrupt(self, worker: int, kill: bool = False) -> None:
        ready = read_json(self.folder(worker) / "ready.json")
        with contextlib.suppress(ProcessLookupError):
            if ready is not None:
                os.kill(int(ready["process"]), signal.SIGKILL if kill else signal.SIGINT)
            elif (job := self._launched.get(worker)) is not None and not job.done():
                # not begun: submitit's own process passes SIGTERM on to it
                os.kill(int(job.job_id), signal.SIGTERM)


def visible_gpus() -> list[str]:
    """CUDA devices that workers may use, by number or name; found without importing torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    listed = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(listed.glob("*"))))] if listed.is_dir() else []


def threads_per_worker(jobs: int) -> int:
    """CPU threads for each of `jobs` workers: an equal share, never more than OMP_NUM_THREADS allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // max(1, jobs))
    given = whole(os.environ.get("OMP_NUM_THREADS"))
    return min(share, given) if given is not None and given > 0 else share


@contextlib.contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C: submitit's would kill the worker before it saved its trial."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread, where Python lets nobody set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
