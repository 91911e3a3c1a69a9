"""Ctrl-C without torn writes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# a terminal and the program that started us (srun, a script) often both pass on one Ctrl-C
SAME_SECONDS = 0.5


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted and acted on between two writes; a second one interrupts at once."""
    noted: list[float] = []

    def note(number: int, frame: Any) -> None:
        now = time.monotonic()
        noted.append(now)
        if now - noted[0] > SAME_SECONDS:
            raise KeyboardInterrupt

    with _handled_by(note):
        # in another thread nothing is ever noted
        yield lambda: bool(noted)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing: for the moment in which workers are killed, of which none may be forgotten."""
    with _handled_by(signal.SIG_IGN):
        yield


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    # Python allows handlers in the main thread alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
