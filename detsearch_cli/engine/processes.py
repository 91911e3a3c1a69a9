"""The processes of one training on one machine: rank 0 starts the others and none outlives it.

    rank 0     whoever called `train`: it alone writes, and speaks for all
    rank 1...  `python -m detsearch_cli.engine.rank`: silent; an error that stops one is raised in rank 0

When a rank stops, rank 0 notices at the next exchange of gradients, or by the thread that watches the others. When
rank 0 stops, the others end themselves (rank.py). torchrun and Slurm start and watch processes on their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric import Fabric

from detsearch_cli import errors
from detsearch_cli.engine.interrupt import SIGNALS
from detsearch_cli.errors import DetsearchError, Diverged, ProcessLost
from detsearch_cli.recipe import Recipe

GRACE_SECONDS = 5.0
POLL_SECONDS = 0.2
OUT_OF_MEMORY = torch.OutOfMemoryError.__name__
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")


@dataclass(frozen=True)
class Place:
    """Which process of a training on one machine this is. port: where rank 0 listens for the others."""

    rank: int
    world: int
    port: int


def first_place(world: int) -> Place:
    """Rank 0 of `world` processes, at a free port."""
    # asked of the system and let go at once: a fixed port would be taken by the next training on the machine
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Place(0, world, probe.getsockname()[1])


@contextlib.contextmanager
def together(place: Place | None, recipe: Recipe, folder: Path, until: int | None) -> Iterator[None]:
    """In rank 0: start the other ranks, and end them when the training ends, however it ends. In others: nothing.

    until: see `train`. Raises the error that stopped another rank, ProcessLost where that rank left no word.
    """
    if place is None or place.rank != 0 or place.world == 1:
        yield
        return
    order = {"parent": os.getpid(), "recipe": recipe.to_yaml(), "folder": str(folder), "until": until}
    others = [_Other(Place(rank, place.world, place.port), order) for rank in range(1, place.world)]
    ended = threading.Event()
    # a daemon: it must not keep rank 0 alive, whose end it only watches for
    threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
    try:
        yield
        _wait(others)
    except Exception as error:
        if not is_lost_peer(error):
            raise
        _wait(others)
        raise _reason(others) from error
    finally:
        ended.set()
        for other in others:
            other.stop()
        if torch.distributed.is_initialized():  # the next training in this process makes its own
            torch.distributed.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another process of the training has stopped."""
    if isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _LOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether CUDA or the CPU allocator ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()


class _Other:
    """A rank that rank 0 has started. An error that ends it is printed by it as one line of JSON."""

    def __init__(self, place: Place, order: dict[str, Any]) -> None:
        self.rank = place.rank
        # a file and not a pipe: nobody reads while the rank trains, and a full pipe would stop it
        self._told: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        with _blocked_signals():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "detsearch_cli.engine.rank"],
                stdin=subprocess.PIPE,
                stdout=self._told,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )
        assert self._process.stdin is not None
        # a rank that is dead already shows by its exit code, which says more than a broken pipe
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps({"place": asdict(place), **order}).encode())

    @property
    def code(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        if self.code is None:
            self._process.kill()  # it has nothing to save
        self._process.wait()
        self._told.close()

    def error(self) -> Exception:
        """What stopped it."""
        self._told.seek(0)
        lines = self._told.read().decode(errors="replace").splitlines()
        with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
            told = json.loads(lines[-1])
            if told["kind"] == OUT_OF_MEMORY:
                return torch.OutOfMemoryError(told["text"])
            error: Exception = getattr(errors, told["kind"], DetsearchError)(told["text"])
            if told["trace"]:
                error.add_note(f"in process {self.rank}:\n{told['trace']}")  # which --debug shows
            return error
        how = f"signal {-self.code}" if self.code is not None and self.code < 0 else f"exit code {self.code}"
        return ProcessLost(
            f"process {self.rank} of the training stopped ({how}), so all did; the same command goes on from "
            f"the last checkpoint"
        )


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait, here and in processes started inside, until those can ignore them (rank.py)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def gathered(own: Any, fabric: Fabric) -> list[Any]:
    """Every rank's object, in the order of the ranks."""
    if fabric.world_size == 1:
        return [own]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, own)
    return parts


@contextlib.contextmanager
def held_by_first(
    claim: contextlib.AbstractContextManager[None], rank: int, fabric: Fabric, place: Place | None
) -> Iterator[None]:
    """Rank 0 enters `claim` for all; where it is refused, every rank raises the same and none waits for the others.

    Launches Fabric where torchrun or srun has started the processes. Those of `together` begin only once rank 0
    holds the claim, so they need not be told.
    """
    if place is not None:
        with claim if rank == 0 else contextlib.nullcontext():
            yield
        return
    fabric.launch()
    own: Exception | None = None
    with contextlib.ExitStack() as held:
        if rank == 0:
            try:
                held.enter_context(claim)
            except Exception as error:  # whatever it is: the others wait at the next line
                own = error
        # ours can be pickled; another's may hold anything
        refused = (
            own if own is None or isinstance(own, DetsearchError) else ProcessLost(f"process 0 failed: {own}")
        )
        refused = fabric.broadcast(refused)
        if own is not None:
            raise own
        if refused is not None:
            raise refused
        yield


def explain(fabric: Fabric, error: Exception) -> None:
    """Under torchrun and srun one rank's error ends the training of all, but each rank sees only its own error.

    Raises ProcessLost for an error that a user could not read. Logs one of a rank other than 0, where the command
    line is silent.
    """
    if isinstance(error, Diverged):  # known to all
        return
    if is_lost_peer(error):
        raise ProcessLost(
            "another process of this training stopped, so this one did too; its own message is above, and the "
            "same command goes on from the last checkpoint"
        ) from error
    if not fabric.is_global_zero:
        logging.getLogger("detsearch").error("error in process %d: %s", fabric.global_rank, error)
    if is_out_of_memory(error):  # a rank that trained on with smaller batches would be alone
        raise ProcessLost(
            f"process {fabric.global_rank} ran out of memory; raise optim.accumulate or lower optim.batch_size"
        ) from error


def _wait(others: list[_Other]) -> None:
    """Until all have ended, or the time for that is over."""
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and any(other.code is None for other in others):
        time.sleep(POLL_SECONDS / 10)


def _reason(others: list[_Other]) -> Exception:
    """The error of the rank that stopped by itself; the others stopped because of it, without a word."""
    failed = [other.error() for other in others if other.code]
    # a rank that only lost its peers stopped because of another's error: that one is told
    own = [error for error in failed if not isinstance(error, ProcessLost)]
    return (own or failed or [ProcessLost("the processes of the training lost each other; run it again")])[0]


def _watch(others: list[_Other], ended: threading.Event) -> None:
    """End a rank 0 that waits for a stopped rank without noticing, such as while the ranks still connect."""
    while not any(other.code for other in others):
        if ended.wait(POLL_SECONDS):
            return
    # twice: rank 0 may have noticed by itself, and then waits GRACE_SECONDS for the others' words
    if ended.wait(2 * GRACE_SECONDS):
        return
    error = _reason(others)
    for other in others:
        other.stop()
    logging.getLogger("detsearch").error("error: %s", error)
    # not sys.exit: it would end this thread alone, and rank 0 waits inside of a collective call
    os._exit(getattr(error, "exit_code", 1))
