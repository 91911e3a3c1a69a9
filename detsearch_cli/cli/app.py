"""The `detsearch` command: puts the subcommands together and turns errors into one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from detsearch_cli import __version__
from detsearch_cli.cli import assign, data, demo, evaluate, predict, report, study, train
from detsearch_cli.errors import DetsearchError

app = typer.Typer(
    name="detsearch",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Finds a better training recipe for your object detector, on your data, and proves that it is better.",
)
for module in (demo, train, evaluate, predict, report):
    module.register(app)
for module in (data, assign, study):
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
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    sys.exit(run([a for a in arguments if a != "--debug"], debug))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run with these arguments and return the exit code."""
    from detsearch_cli.cli.console import complain, resume_hint

    try:
        code = app(arguments, standalone_mode=False)
        if code == 130:  # Typer's own word for KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except DetsearchError as error:
        if debug:
            raise
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain(f"interrupted; {resume_hint()}")
        return 130
    except BrokenPipeError:  # `detsearch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        complain(
            f"cannot write {error.filename or 'to the disk'}: {error.strerror}; free some space, then run again"
        )
        return 1
    except Exception as error:
        code = _usage(error)
        if code is None:
            raise
        return code


def _usage(error: Exception) -> int | None:
    """Typer's own complaints about arguments, which standalone mode would have shown."""
    show = getattr(error, "show", None)
    if show is None:
        return None
    show()
    return int(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
