"""The tree of commands; `app` is what cli/app.py runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from detsearch_cli import __version__
from detsearch_cli.cli import data, demo, evaluate, kernels, methods, predict, report, study, train
from detsearch_cli.cli.groups import Group

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
