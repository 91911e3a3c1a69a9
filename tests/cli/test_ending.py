"""SIGINT and SIGTERM at any moment end in exit code 130, one line, and no half-written file.

A module named `typer` in the working directory stands in for the moment: the program imports it once its handlers are
set, before anything else of weight.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detsearch_cli.cli import ending
from detsearch_cli.files import write_text
from tests.cli.small import MAIN, ROOT

BOTH = [signal.SIGINT, signal.SIGTERM]
STUBBORN = """
import pathlib, time
pathlib.Path("ready").touch()
for _ in range(1000):
    try:
        time.sleep(0.05)
    except BaseException:  # as C code that drops what is raised in it
        pass
"""
WRITING = """
import pathlib, time
from detsearch_cli import files

def write(path):
    path.write_text("half")
    pathlib.Path("ready").touch()
    time.sleep(60)

with files.unfinished(pathlib.Path(".set.draft")):
    pathlib.Path(".set.draft/images").mkdir(parents=True)
    files.replace_file(pathlib.Path("page"), write)
"""
FORKING = """
import os, pathlib, time
child = os.fork()
if not child:
    time.sleep(60)
pathlib.Path("ready").write_text(str(child))
os.waitpid(child, 0)
pathlib.Path("waited").touch()
time.sleep(60)
"""


def begin(folder: Path, moment: str) -> subprocess.Popen[str]:
    """The program at the moment at which its `typer` has made the file `ready`."""
    (folder / "typer.py").write_text(moment)
    process = subprocess.Popen(
        MAIN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    wait_for(folder / "ready")
    return process


def wait_for(file: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.005)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_while_a_library_loads_ends_it_even_where_exceptions_are_dropped(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = begin(tmp_path, STUBBORN)
    for _ in range(3):  # pressed again and again
        process.send_signal(number)
    out, told = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert told == "interrupted; give the same command again to go on\n"


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_in_a_write_leaves_the_old_file_and_no_other(tmp_path: Path, number: signal.Signals) -> None:
    write_text(tmp_path / "page", "old")
    process = begin(tmp_path, WRITING)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith("interrupted; ") and told.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page", "ready", "typer.py"]
    assert (tmp_path / "page").read_text() == "old"


def test_a_signal_after_the_work_ends_it_with_the_code_of_the_work(tmp_path: Path) -> None:
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
    ready = "import atexit, pathlib\nthreading._register_atexit(pathlib.Path('ready').touch)\n"
    process = begin(tmp_path, f"{thread}{ready}raise SystemExit(3)")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 3


def test_a_pipe_that_is_full_keeps_no_process_alive(tmp_path: Path) -> None:
    full = """
import os, pathlib
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
"""
    process = begin(tmp_path, full + STUBBORN)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    process.communicate()


def test_a_forked_process_leaves_ctrl_c_to_its_parent_and_can_be_terminated(tmp_path: Path) -> None:
    process = begin(tmp_path, FORKING)
    while not (child := (tmp_path / "ready").read_text()):
        time.sleep(0.005)
    os.kill(int(child), signal.SIGINT)
    time.sleep(0.1)
    assert not (tmp_path / "waited").exists()
    os.kill(int(child), signal.SIGTERM)
    wait_for(tmp_path / "waited")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert (process.returncode, told.count("interrupted")) == (130, 1)


def test_nothing_of_weight_is_loaded_before_the_handlers_are_set() -> None:
    code = (
        "import sys; before = set(sys.modules); import detsearch_cli.cli.app; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert loaded.stdout.split() == ["detsearch_cli"]


@pytest.mark.parametrize(("rank", "said"), [("0", "interrupted; x\n"), ("1", "")])
def test_only_the_first_rank_speaks_and_once(monkeypatch: pytest.MonkeyPatch, rank: str, said: str) -> None:
    monkeypatch.setattr(ending, "_hint", "x")
    monkeypatch.setattr(ending, "_told", False)
    monkeypatch.setenv("RANK", rank)
    assert ending.interrupted_line() == said
    assert ending.interrupted_line() == ""
