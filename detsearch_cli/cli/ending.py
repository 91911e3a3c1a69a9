"""How the process ends on Ctrl-C and SIGTERM: at any moment, with one line, exit code 130 and no half-written file.

The handler ends the process itself. Raising KeyboardInterrupt would be shorter, but it is raised wherever the program
happens to be: a library that is being loaded turns it into an ImportError, a callback drops it, and a second Ctrl-C
interrupts the cleaning up. Code that has something to save takes the signals over for that time
(engine/interrupt.py, search/signals.py).

Imports next to nothing: until `watch` has run, a signal ends Python as it ends any program.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # a cluster, or a container that stops, sends SIGTERM
_SHOW_CURSOR = "\x1b[?25h\n"  # a progress bar hides it, and ends in the middle of a line

_hint = "give the same command again to go on"
_told = False
_watching = False
_code: int | None = None


def watch() -> None:
    """End the process with exit code 130 and one line whenever it gets SIGINT or SIGTERM. For the main thread."""
    global _watching
    for number in SIGNALS:
        signal.signal(number, _end)
    if _watching:
        return
    _watching = True
    import atexit

    # called last: until then a signal still ends a process that waits for its threads
    atexit.register(_ignore)
    os.register_at_fork(after_in_child=_leave_to_parent)


def done(code: int) -> None:
    """From now on a signal ends the process with this code, without a word: the work is over."""
    global _code
    _code = code


def set_resume_hint(text: str) -> None:
    """What an interruption tells the user about going on."""
    global _hint
    _hint = text


def interrupted_line() -> str:
    """What to say about an interruption; empty where it has been said, and in all but the first of several ranks."""
    global _told
    first = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")).strip() in ("0", "")
    said, _told = _told, True
    return f"interrupted; {_hint}\n" if first and not said else ""


def _end(number: int, frame: object) -> None:
    _ignore()  # a second signal must not interrupt the removal of what is half written
    if _code is not None:
        os._exit(_code)
    try:
        _tell(interrupted_line())
        # not an import: the module may be half imported at this moment, and then it has written nothing yet
        remove = getattr(sys.modules.get("detsearch_cli.files"), "remove_unfinished", None)
        if remove is not None:
            remove()
    finally:
        # not sys.exit, which raises; and whatever failed above, even for want of stack
        os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    import select

    try:
        if os.isatty(2):
            line = _SHOW_CURSOR + line
        # a pipe that is full would hold this process for ever, now that it hears no signal
        if select.select([], [2], [], 1.0)[1]:
            # not sys.stderr: the signal may have come while that was writing, and it refuses to be entered twice
            os.write(2, line.encode(errors="backslashreplace"))
    except OSError:
        pass  # nobody listens


def _ignore() -> None:
    # ignored, not left to the handler: Python takes its handlers away at its very end, and the signal would kill
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """A forked data loader gets the terminal's Ctrl-C too, and what it means is for its parent to decide."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how the parent ends it
