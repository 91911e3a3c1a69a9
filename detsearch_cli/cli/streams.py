"""stdout and stderr that may be closed, full, or read by nobody any more.

- The reader of stdout has gone (`| head -1`), or stdout was closed (`>&-`): the rest is dropped without a word, and the
  exit code is that of the work.
- stdout cannot be written (`>/dev/full`): OSError that names it, since the result that was asked for is lost.
- stderr, whatever is wrong with it: messages are dropped, and the exit code is that of the work. A training of days
  does not end because the terminal that started it was closed.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

STDOUT = "standard output"
_GONE = (errno.EPIPE, errno.ECONNRESET)


def protect() -> None:
    """Replace sys.stdout and sys.stderr by streams that behave as described above."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed. The next file that is opened would get its number, and messages would be written into it.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _protected(sys.stdout, 1, _Stdout)
    sys.stderr = _protected(sys.stderr, 2, _Stderr)


def _protected(stream: TextIO, descriptor: int, kind: type[_Guarded]) -> TextIO:
    if stream is None:
        return kind(open(descriptor, "wb"), encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody else's, in a program that calls `main`
    return kind(
        stream.buffer, encoding=stream.encoding, errors=stream.errors, line_buffering=stream.line_buffering
    )


class _Guarded(io.TextIOWrapper):
    """A text stream whose failures go to `_failed`."""

    def write(self, text: str, /) -> int:
        self._guard(lambda: super(_Guarded, self).write(text))
        return len(text)

    def flush(self) -> None:
        self._guard(super().flush)

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError

    def _drop(self) -> None:
        """Send what is still to be written, and what was kept back, to nowhere."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


class _Stdout(_Guarded):
    def _failed(self, error: OSError) -> None:
        # in any case: Python flushes once more at its end, and would fail again
        self._drop()
        if error.errno not in _GONE:
            raise OSError(error.errno, error.strerror, STDOUT) from error


class _Stderr(_Guarded):
    def _failed(self, error: OSError) -> None:
        if error.errno in _GONE:
            self._drop()
        # else the disk of a log is full; there may be room for later messages
