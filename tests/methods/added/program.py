"""`python -m tests.methods.added.program ...`: the program with the methods of this folder added."""

from __future__ import annotations

from pathlib import Path

import detsearch_cli.methods
from detsearch_cli import discovery


def add() -> None:
    """Add the methods of this folder to the program in this process."""
    folder = str(Path(__file__).parent / "methods")
    if folder not in detsearch_cli.methods.__path__:
        detsearch_cli.methods.__path__.append(folder)
        discovery.forget()


if __name__ == "__main__":
    add()
    from detsearch_cli.cli.app import main

    main()
