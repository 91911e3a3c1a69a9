"""The `detsearch` command: puts the subcommands together and turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from typing import Annotated

import typer

from detsearch_cli import __version__
from detsearch_cli.cli import data, demo, evaluate, kernels, methods, predict, report, study, train
from detsearch_cli.cli.groups import Group
from detsearch_cli.errors import DetsearchError

INTERRUPTED = 130
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# Asking for completion belongs to the bare command; elsewhere Typer would import pydantic for it, a quarter of
# the time of a --help. The shell itself asks through an environment variable.
completing = len(sys.argv) < 2 or sys.argv[1].startswith("-") or "_DETSEARCH_COMPLETE" in os.environ
app = typer.Typer(
    name="detsearch",
    cls=Group,
    add_completion=completing,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Finds a better training recipe for your object detector, on your data, and tests whether it is better.",
)
for module in (demo, train, evaluate, predict, report):
    module.register(app)
app.add_typer(data.app)
methods.register(app)
for module in (study, kernels):
    app.add_typer(module.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"detsearch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a check failed, 2 the user can fix it, 130 interrupted."""
    # a cluster, or a container that stops, sends SIGTERM: what Ctrl-C does with it saves and says how to go on
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = _show_warning
    for name in (
        "COLUMNS",
        "LINES",
        "TERMINAL_WIDTH",
    ):  # rich and typer end in a traceback where they are no number
        if not (os.environ.get(name, "0").isascii() and os.environ.get(name, "0").isdigit()):
            del os.environ[name]
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([a for a in arguments if a != "--debug"], debug))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """A library's warning on stderr; it may name a file that somebody else named."""
    from detsearch_cli.cli.console import visible

    sys.stderr.write(visible(warnings.formatwarning(message, category, filename, lineno)))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run with these arguments and return the exit code."""
    try:
        code = app(arguments, prog_name="detsearch", standalone_mode=False)
    except DetsearchError as error:
        if debug:
            raise
        from detsearch_cli.cli.console import complain

        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except OSError as error:
        if debug or (error.errno != errno.EPIPE and error.filename is None and error.errno not in FULL):
            raise
        return _refused(error)
    except (ImportError, MemoryError) as error:
        # a module of our own that cannot be imported is our mistake, which a traceback tells best
        if debug or (getattr(error, "name", None) or "").startswith("detsearch"):
            raise
        return _too_little(error)
    except Exception as error:
        usage = _usage(error)
        if usage is None:
            raise
        return usage
    if code == INTERRUPTED:  # newer versions of Typer turn KeyboardInterrupt into this
        return _interrupted()
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    from detsearch_cli.cli.console import resume_hint, say

    say(f"interrupted; {resume_hint()}")
    return INTERRUPTED


def _refused(error: OSError) -> int:
    """What the system said about a file: 1 for a full disk, 2 for a path the user can choose better."""
    from detsearch_cli.cli.console import complain

    if error.errno == errno.EPIPE:  # `detsearch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    place = error.filename or "to the disk"
    if error.errno in FULL:
        complain(f"cannot write {place}: {error.strerror}; free some space, then run again")
        return 1
    complain(f"cannot use {place}: {error.strerror}; give another path")
    return 2


def _too_little(error: ImportError | MemoryError) -> int:
    """A library that this machine cannot load, or no memory: nothing that another argument would mend."""
    from detsearch_cli.cli.console import complain

    said = (str(error).splitlines() or ["out of memory"])[0]
    complain(
        f"cannot go on ({said}); free some memory or raise its limit (ulimit -v), or install the package again; "
        "--debug shows where"
    )
    return 1


def _usage(error: Exception) -> int | None:
    """Typer's own complaints about arguments, which standalone mode would have shown."""
    show = getattr(error, "show", None)
    if show is None:
        return None
    from detsearch_cli.cli.console import complain, visible

    for name, value in vars(error).items():  # what was typed is told again, control characters and all
        if isinstance(value, str):
            setattr(error, name, visible(value))
    if getattr(error, "ctx", None) is None:  # an option without its value: "Error: ..." alone, with no usage
        complain(error.format_message())  # type: ignore[attr-defined]
    else:
        show()
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
