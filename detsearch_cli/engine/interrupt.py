"""Ctrl-C and SIGTERM during a training: noted when they come, so that the step can be finished and saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noting_signals(note: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `note` and do nothing more. Outside of the main thread: nothing changes."""
    # Python allows handlers in the main thread alone; another thread is interrupted by whoever started it
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: Any) -> None:
        note()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
