"""One trained run and one finished study, which the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from tests.cli.small import SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert run(["train", *SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studies")
    search = ["assign", "search", *SMALL, "--bins", "1", "--trials", "2", "--name", "s", "--out", str(root)]
    assert run(search) == 0
    return root / "s"
