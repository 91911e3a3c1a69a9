"""The `detsearch` program: runs a command and turns whatever ends it into one sentence and an exit code.

    0    done
    1    a check failed, or the machine refused: no space, no memory
    2    the user can fix it
    70   an error of this program
    130  interrupted

The commands are in commands.py. It is imported late, like everything else that takes a millisecond: a signal while
modules load must find the handlers set.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings

from detsearch_cli.cli import ending

LEAST_COLUMNS = 10  # narrower tables are blank
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_NO_MEMORY = ("out of memory", "can't allocate memory", "can't start new thread", "cannot allocate memory")


def main() -> None:
    """Run the command line and end the process."""
    ending.watch()
    from detsearch_cli.cli import streams

    streams.protect()
    warnings.showwarning = _show_warning
    _drop_senseless_sizes()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code = run([a for a in arguments if a != "--debug"], debug)
    ending.done(code)
    sys.exit(code)


def _drop_senseless_sizes() -> None:
    """Forget a size of the terminal that is none: at text rich and typer end in a traceback, at 0 they show nothing."""
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
        given = os.environ.get(name)
        if given is not None and not (
            given.isascii() and given.isdigit() and int(given[:6]) >= LEAST_COLUMNS
        ):
            del os.environ[name]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """A library's warning on stderr; it may name a file that somebody else named."""
    from detsearch_cli.lettering import visible

    sys.stderr.write(visible(warnings.formatwarning(message, category, filename, lineno)))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run with these arguments and return the exit code. debug: show the traceback of an error as well."""
    try:
        from detsearch_cli.cli.commands import app

        code = app(arguments, prog_name="detsearch", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk still becomes a sentence
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as wanted:  # a library's wish
        return wanted.code if isinstance(wanted.code, int) else int(wanted.code is not None)
    except BaseException as error:  # a panic in a library that is written in Rust is no Exception
        return _explain(error, debug)
    if code == ending.INTERRUPTED:  # newer versions of Typer turn KeyboardInterrupt into this
        return _interrupted()
    return code if isinstance(code, int) else 0


def _explain(error: BaseException, debug: bool) -> int:
    """Say what ended the command; returns the exit code."""
    from detsearch_cli.errors import DetsearchError, unforeseen

    show = getattr(error, "show", None)
    if show is not None:  # Typer's own complaints about arguments, which standalone mode would have shown
        from detsearch_cli.lettering import visible

        for name, value in vars(error).items():  # what was typed is told again, control characters and all
            if isinstance(value, str):
                setattr(error, name, visible(value))
        if (
            getattr(error, "ctx", None) is None
        ):  # an option without its value: "Error: ..." alone, with no usage
            _complain(error.format_message())  # type: ignore[attr-defined]
        else:
            show()
        return int(getattr(error, "exit_code", 2))
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, DetsearchError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        return _refused(error)
    if _from_interruption(error):
        return _interrupted()
    # a module of our own that cannot be imported is our mistake
    foreign = isinstance(error, ImportError) and not (error.name or "").startswith("detsearch")
    if foreign or isinstance(error, MemoryError) or any(s in str(error).lower() for s in _NO_MEMORY):
        return _too_little(error)
    own = unforeseen(error)
    _complain(str(own))
    return own.exit_code


def _from_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused it: libraries that are being loaded, and Typer, make other errors of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
            return True
        error = error.__cause__ or error.__context__
    return False


def _interrupted() -> int:
    sys.stderr.write(ending.interrupted_line())
    return ending.INTERRUPTED


def _complain(text: str) -> None:
    try:
        from detsearch_cli.cli.console import complain
    except (ImportError, MemoryError):  # what is told about may be just this
        sys.stderr.write(f"error: {text}\n")
    else:
        complain(text)


def _refused(error: OSError) -> int:
    """What the system said about a file: 2 for a path the user can choose better, 1 for a full disk and the rest."""
    said, place = error.strerror or str(error), error.filename
    if error.errno in FULL:
        _complain(f"cannot write {place or 'to the disk'}: {said}; free some space, then run again")
        return 1
    if place is None:
        _complain(
            f"the system refused ({said}); raise its limits (ulimit -a), then run again; --debug shows where"
        )
        return 1
    _complain(f"cannot use {place}: {said}; give another path")
    return 2


def _too_little(error: BaseException) -> int:
    """A library that this machine cannot load, or no memory: nothing that another argument would mend."""
    if isinstance(error, ModuleNotFoundError):
        _complain(
            f"the module {error.name} is not installed; install detsearch again, with all that it needs"
        )
        return 1
    said = (str(error).splitlines() or ["out of memory"])[0]
    _complain(
        f"cannot go on ({said}); free some memory or raise its limit (ulimit -v), or install the package again; "
        "--debug shows where"
    )
    return 1


if __name__ == "__main__":
    main()
