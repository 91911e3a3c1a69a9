"""Closed, full and unread streams: a lost result is an error, a lost message is none, and no traceback is shown."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.small import ENVIRONMENT, MAIN

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
INSPECT = ["data", "inspect", "shapes:images=2,val=1,test=1,size=32", "--json"]
LOST = "error: cannot write standard output: No space left on device; free some space, then run again\n"


def shell(arguments: list[str], streams: str) -> subprocess.CompletedProcess[str]:
    """The program in a shell that arranges its streams; the exit code is the program's."""
    script = f'set -o pipefail; "$@" {streams}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *MAIN, *arguments], capture_output=True, text=True, env=ENVIRONMENT
    )


@pytest.mark.parametrize("arguments", [["--version"], ["study", "--help"], INSPECT])
def test_a_result_that_cannot_be_written_is_one_sentence_and_exit_1(arguments: list[str]) -> None:
    done = shell(arguments, ">/dev/full")
    assert (done.returncode, done.stderr) == (1, LOST)


@pytest.mark.parametrize(
    ("arguments", "streams", "code"),
    [
        (["study", "--help"], "| true", 0),
        (INSPECT, "| head -c 1", 0),
        (INSPECT, ">&-", 0),
        (["study", "--help"], "<&- >&- 2>&-", 0),
        (["data", "inspect", "nowhere"], "| true", 2),
        (["data", "inspect", "nowhere"], ">&-", 2),
    ],
)
def test_a_reader_that_has_gone_changes_no_exit_code(arguments: list[str], streams: str, code: int) -> None:
    done = shell(arguments, streams)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
    assert done.stderr.count("error: ") == (code == 2)


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_message_that_cannot_be_shown_changes_no_exit_code(streams: str, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    # it says where it wrote, and so would fail before the end
    done = shell(["data", "preview", INSPECT[2], "--out", str(out), "--tile", "32"], streams)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert out.is_file()
    assert shell(["data", "inspect", "nowhere"], streams).returncode == 2


def test_what_is_written_to_a_closed_stderr_goes_into_no_file(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert shell(["data", "convert", INSPECT[2], "--out", str(out)], "<&- >&- 2>&-").returncode == 0
    for file in out.glob("annotations/*.json"):
        json.loads(file.read_text())
    assert len(list(out.glob("annotations/*.json"))) == 3
