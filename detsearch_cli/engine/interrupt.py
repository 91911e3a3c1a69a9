"""Ctrl-C and SIGTERM during a training: noted when they come, so that the step can be finished and saved first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# a terminal and the program that started us (torchrun, a script) often both pass on one Ctrl-C
SAME_SECONDS = 0.5


@contextmanager
def noting_signals(note: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `note` and do nothing more; a second one does what it did before, and ends at once.

    Outside of the main thread: nothing changes.
    """
    # Python allows handlers in the main thread alone; another thread is interrupted by whoever started it
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            note()
            return
        handler = before[signal.Signals(number)]
        # what is ignored outside is no callable, and stays ignored
        if callable(handler) and time.monotonic() - first > SAME_SECONDS:
            handler(number, frame)

    # read before any is set: a signal between the two would find no `before`
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
