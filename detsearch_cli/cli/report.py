"""Write the HTML page of a study or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("report")(report)


def report(folder: Annotated[Path, typer.Argument(help="Folder of a study or a run.")]) -> None:
    """Write report.html of a study or a run: one self-contained page."""
    from detsearch_cli.cli import console
    from detsearch_cli.session.pages import write_page

    console.say(f"wrote {write_page(folder)}")
