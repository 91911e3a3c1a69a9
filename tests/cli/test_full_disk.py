"""A disk that fills up: exit 1, one sentence, what was there before is whole, and the same command goes on.

A limit on the size of a file (RLIMIT_FSIZE) stands in for the full disk: the system refuses the write in the
same place, with EFBIG instead of ENOSPC.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from tests.cli.small import DATA, ENVIRONMENT, SMALL

# several commands in one process, which has paid for importing torch; each with its limit in bytes
PROGRAM = """
import json, resource, signal, sys
from detsearch_cli.cli.app import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
codes = []
for limit, command in json.loads(sys.argv[1]):
    print('$', *command, file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited))
    codes.append(run(command))
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
print(json.dumps(codes))
"""


def with_limit(folder: Path, commands: list[tuple[int, list[str]]]) -> list[tuple[int, str]]:
    """(exit code, what was said) of every command, run in `folder` with files of at most so many bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    told = ["$".join(part.splitlines()[1:]) for part in ("\n" + done.stderr).split("\n$ ")[1:]]
    return list(zip(json.loads(done.stdout.splitlines()[-1]), told, strict=True))


def whole(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def told(trained: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """What each command says on a full disk; their files lie in `place`."""
    place = tmp_path_factory.mktemp("full")
    assert run(["eval", str(trained), "--plots", str(place / "plots")]) == 0
    assert run(["report", str(trained)]) == 0
    before = whole(place), whole(trained)
    commands = {
        "train": (20_000, ["train", *SMALL, "--out", "run"]),
        "eval": (4_000, ["eval", str(trained), "--plots", "plots"]),
        "report": (4_000, ["report", str(trained)]),
        "convert": (1_000, ["data", "convert", DATA, "--out", "set"]),
        "preview": (1_000, ["data", "preview", DATA, "--out", "sheet.png"]),
        "export": (100, ["study", "export", str(study), "trials.json"]),
    }
    found = dict(zip(commands, with_limit(place, list(commands.values())), strict=True))
    after = whole(place)
    found["place"] = (0, str(place))
    assert {k: v for k, v in after.items() if k in before[0]} == before[0]
    assert whole(trained) == before[1]
    return found


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("train", "run/last.safetensors"),
        ("eval", "plots/precision_recall.png"),
        ("report", "report.html"),
        ("convert", "set"),
        ("preview", "sheet.png"),
        ("export", "trials.json"),
    ],
)
def test_a_full_disk_is_one_sentence_that_names_the_file(
    command: str, file: str, told: dict[str, tuple[int, str]]
) -> None:
    code, said = told[command]
    assert code == 1, said
    assert said.count("error: ") == 1 and "Traceback" not in said
    assert f"{file}: " in said and "File too large" in said


def test_with_space_again_the_same_training_goes_on(told: dict[str, tuple[int, str]]) -> None:
    place = Path(told["place"][1])
    assert not (place / "set").exists() and not (place / "sheet.png").exists()
    assert run(["train", *SMALL, "--out", str(place / "run")]) == 0


def test_a_search_goes_on_when_there_is_space_again(tmp_path: Path) -> None:
    search = ["assign", "search", *SMALL, "--bins", "1", "--trials", "1", "--name", "s", "--out", "."]
    # the ledger alone is larger; then it fits, and the trials' weights do not
    first, second = with_limit(tmp_path, [(50_000, search), (200_000, search)])
    for code, said in (first, second):
        assert code == 1, said
        assert "error: " in said and "Traceback" not in said and "give the same command again" in said
    assert run(["study", "list", str(tmp_path)]) == 0
    (last,) = with_limit(tmp_path, [(-1, search)])
    assert last[0] == 0, last[1]
    assert (tmp_path / "s" / "report.html").is_file()
