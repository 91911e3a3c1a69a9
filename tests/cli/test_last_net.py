"""Whatever ends a command is one sentence and an exit code that says whose it is to mend."""

from __future__ import annotations

import errno
import os
import sys

import pytest

from detsearch_cli.cli import app, commands, console
from detsearch_cli.errors import DataError, ProgramError, StorageError, unforeseen

Told = pytest.CaptureFixture[str]


class Panic(BaseException):
    """As libraries that are written in Rust raise."""


def chained(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    console.err.cache_clear()


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch, debug: bool = False) -> int:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(commands, "app", fails)
    return app.run([], debug)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            TypeError("int + str\nmore"),
            70,
            "detsearch itself has failed (TypeError: int + str, in detsearch_cli/cli/app",
        ),
        (KeyError("x"), 70, "detsearch itself has failed (KeyError: 'x', in "),
        (Panic("index out of bounds"), 70, "(Panic: index out of bounds, in "),
        (RecursionError(), 70, "(RecursionError, in "),
        (OSError("no number"), 70, "(OSError: no number, in "),
        (ImportError("no name", name="detsearch_cli.lost"), 70, "(ImportError: no name, in "),
        (ImportError("libx.so is missing", name="x"), 1, "cannot go on (libx.so is missing); "),
        (ModuleNotFoundError("No module named 'dill'", name="dill"), 1, "the module dill is not installed; "),
        (MemoryError(), 1, "cannot go on (out of memory); "),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "cannot go on (DefaultCPUAllocator: ",
        ),
        (OSError(errno.ENOSPC, "No space left"), 1, "cannot write to the disk: No space left; free "),
        (OSError(errno.ENOSPC, "No space left", "a.png"), 1, "cannot write a.png: No space left; free "),
        (OSError(errno.EMFILE, "Too many open files"), 1, "the system refused (Too many open files); "),
        (PermissionError(errno.EACCES, "Permission denied", "a"), 2, "cannot use a: Permission denied; "),
        (DataError("a rule"), 2, "a rule"),
        (StorageError("a disk"), 1, "a disk"),
    ],
)
def test_every_error_is_one_sentence_and_an_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    assert ended(error, monkeypatch) == code
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "Traceback" not in told
    assert said in told


def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    for error, code in ((TypeError("x"), 70), (DataError("x"), 2), (MemoryError(), 1)):
        assert ended(error, monkeypatch, debug=True) == code
        told = capsys.readouterr().err
        assert "Traceback (most recent call last)" in told and "error: " in told


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), chained(ImportError("initialization failed"), KeyboardInterrupt())],
)
def test_what_a_library_makes_of_ctrl_c_is_still_an_interruption(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(error, monkeypatch) == 130


def test_a_failure_to_save_after_ctrl_c_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Told) -> None:
    assert ended(chained(StorageError("the disk is full"), KeyboardInterrupt()), monkeypatch) == 1
    assert "error: the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "code"), [(3, 3), (None, 0), ("words", 1)])
def test_a_library_that_ends_the_program_sets_its_code(
    asked: object, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(SystemExit(asked), monkeypatch) == code


def test_an_error_names_the_innermost_line_of_this_program() -> None:
    try:
        console.percent("x")  # type: ignore[arg-type]
    except TypeError as error:
        line = error.__traceback__.tb_next.tb_lineno  # type: ignore[union-attr]
        own = unforeseen(error)
    assert isinstance(own, ProgramError) and own.exit_code == 70
    assert f"in detsearch_cli/cli/console.py:{line})" in str(own)


def test_without_the_library_that_prints_there_is_still_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.setitem(sys.modules, "detsearch_cli.cli.console", None)
    assert ended(ImportError("No module named 'rich'", name="rich"), monkeypatch) == 1
    assert capsys.readouterr().err.startswith("error: cannot go on (No module named 'rich')")


@pytest.mark.parametrize(
    ("given", "kept"), [("0", False), ("1", False), ("abc", False), ("٣", False), ("80", True)]
)
def test_a_terminal_of_no_width_is_no_reason_to_show_nothing(
    given: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", given)
    app._drop_senseless_sizes()
    assert ("COLUMNS" in os.environ) is kept
