"""A worker: a long-lived process that trains one trial after another, so that imports and data are paid once.

It talks to the coordinator through files in its own folder, each written beside and renamed into place:

    task.json     coordinator -> worker   a trial to run (see Task)
    running.json  worker                  the same file once taken
    <trial>/result.json  worker -> coordinator, under the name that the task gives
    ready.json    worker                  process, host and job id, once run_trial is imported
    error.json    worker                  why it could not begin
    stop          coordinator -> worker   end after this trial
    lock          held while the worker lives; the system releases it however the process ends

`../heartbeat` is touched by a living coordinator; a worker without work and without a heartbeat ends itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detsearch_cli import reading
from detsearch_cli.errors import DataLost, DetsearchError, StorageError, StudyError
from detsearch_cli.files import replace_file

POLL_SECONDS = 0.02
T = TypeVar("T")
RunTrial = Callable[..., dict[str, Any]]
"""run_trial(recipe_yaml, folder), and with a third argument the number of epochs where they are fewer than all."""


@dataclass(frozen=True)
class Task:
    """A trial that a worker is handed.

    recipe: YAML; the one in the folder may be another by now, with half the batch after running out of memory.
    epochs: how many to train up to, None for all. result: the name of the file to report in.
    """

    trial: int
    folder: str
    recipe: str
    epochs: int | None = None
    result: str = "result.json"


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told at its start.

    run_trial: "module:function". gpu: CUDA device, None leaves all. detach: leave the terminal's session.
    """

    folder: str
    run_trial: str
    path: tuple[str, ...]
    gpu: str | None = None
    idle_seconds: float = 180.0
    detach: bool = False


def serve(spec: WorkerSpec) -> None:
    """Run trials until told to stop. The function that executors submit."""
    if spec.detach:
        with contextlib.suppress(OSError):  # it already leads a session
            os.setsid()  # out of the terminal's reach: Ctrl-C there is the coordinator's to handle
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        # SIGUSR2 is Slurm's notice before the time limit: stop like Ctrl-C, the trial goes on elsewhere
        signal.signal(number, signal.default_int_handler)
    if spec.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.gpu
    folder = Path(spec.folder)
    with _held(folder / "lock") as held:
        if not held:
            return  # a restarted coordinator launched a second worker in this folder
        try:
            run_trial = _begin(folder, spec)
            if run_trial is not None:
                _loop(folder, run_trial, spec.idle_seconds)
        except KeyboardInterrupt:
            _put_back(folder)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    with path.open("a") as file:
        for _ in range(100):  # a coordinator that looks whether we live holds the lock for an instant
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield True
                return
            except OSError:
                time.sleep(POLL_SECONDS)
        yield False


def _begin(folder: Path, spec: WorkerSpec) -> RunTrial | None:
    sys.path.extend(p for p in spec.path if p not in sys.path)
    module, _, name = spec.run_trial.partition(":")
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:
        write_message(folder / "error.json", {"reason": reason(error), "trace": traceback.format_exc()})
        return None
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    write_message(folder / "ready.json", {"process": os.getpid(), "host": socket.gethostname(), "job": job})
    return function


def _loop(folder: Path, run_trial: RunTrial, idle_seconds: float) -> None:
    heartbeat, seen, since = folder.parent / "heartbeat", 0.0, time.monotonic()
    while not (folder / "stop").exists():
        try:
            # one step, so that a trial is either waiting or taken, whenever this process is killed
            (folder / "task.json").replace(folder / "running.json")
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                # compare with the last beat seen, not with our clock: the coordinator may be another machine
                if (beat := heartbeat.stat().st_mtime) != seen:
                    seen, since = beat, time.monotonic()
            if time.monotonic() - since > idle_seconds:
                return
            time.sleep(POLL_SECONDS)
            continue
        task = read_task(folder / "running.json")
        sound = task is None or _run(task, run_trial)
        (folder / "running.json").unlink(missing_ok=True)  # this worker's own: it renamed task.json to it
        if not sound:
            return
        since = time.monotonic()


def _run(task: Task, run_trial: RunTrial) -> bool:
    """Train one trial and write its result; False when this process should not be trusted with another."""
    start = time.perf_counter()
    result: dict[str, Any] = {"trial": task.trial, "worker": f"{socket.gethostname()}:{os.getpid()}"}
    sound = True
    try:
        # a function that is only ever asked for the whole need not know of shorter trainings
        shorter = () if task.epochs is None else (task.epochs,)
        metrics = run_trial(task.recipe, task.folder, *shorter)
        result["metrics"] = json.loads(json.dumps(metrics, default=_plain))
    except Exception as error:
        result |= {"reason": reason(error), "trace": traceback.format_exc(), "outage": _outage(error)}
        # after a CUDA error every later call fails too, and running out of memory leaves fragments
        sound = isinstance(error, DetsearchError) or not isinstance(error, (RuntimeError, MemoryError))
    result["seconds"] = time.perf_counter() - start
    path = Path(task.folder) / task.result
    while True:
        try:
            write_message(path, result)
            break
        except StorageError as error:
            # a full disk: the training is done, so hold on to its result until there is room or Ctrl-C
            print(error, file=sys.stderr, flush=True)
            time.sleep(1.0)
    return sound


def _outage(error: Exception) -> str | None:
    """What failed beside the trial: the disk that it writes to, or the data that it reads."""
    from detsearch_cli.search.storage import is_disk_error

    if isinstance(error, DataLost):  # first: a disk that cannot be read is among its causes
        return "data"
    return "disk" if is_disk_error(error) else None


def _put_back(folder: Path) -> None:
    """Interrupted: an unfinished trial is as if it had not been taken; it goes on from its checkpoint."""
    task = read_task(folder / "running.json")
    with contextlib.suppress(OSError):
        # both files are this worker's own, in its own folder
        if task is not None and (Path(task.folder) / task.result).exists():
            (folder / "running.json").unlink()
        else:
            (folder / "running.json").replace(folder / "task.json")


def reason(error: BaseException) -> str:
    """The error in one line: its type and the first line of its message."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:500].removesuffix(": ")


def _plain(value: Any) -> Any:
    """numpy and torch scalars, paths and the like as JSON values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def write_message(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the whole file or none. Raises StorageError when the disk refuses.

    Not `files.write_json`: a metric that is NaN must reach the ledger as NaN, not as null.
    """
    replace_file(path, lambda p: p.write_text(json.dumps(content), encoding="utf-8"))


def read_task(path: Path) -> Task | None:
    """The task in the file; None when there is no whole one, or one of another version of detsearch."""
    return _message(path, Task)


def read_result(path: Path) -> dict[str, Any] | None:
    """What a worker reported, as `Result` describes it; None when there is nothing that can be used."""
    from detsearch_cli.search.documents import Result

    found = _message(path, Result)
    # a report has an outcome: metrics, or why there are none
    if found is None or (found.metrics is None and found.reason is None):
        return None
    return {name: value for name, value in found if value is not None}


def _message(path: Path, kind: type[T]) -> T | None:
    from detsearch_cli.document import checked  # here: a worker that only waits need not import pydantic

    content = read_json(path)
    try:
        return None if content is None else checked(content, kind, path, StudyError, "")
    except StudyError:
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content; None when there is no such file or it is not whole."""
    try:
        content = reading.read_json(path, StudyError)
    except StudyError:
        return None
    return content if isinstance(content, dict) else None
