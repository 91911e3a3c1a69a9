"""What the commands offer: their options are changed on purpose, and --help answers at once."""

from __future__ import annotations

import difflib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from tests.cli.interface import commands, interface
from tests.cli.small import ANCHORED, DATA, ENVIRONMENT, MAIN, SMALL, start

FROZEN = Path(__file__).with_name("options.txt")
HEAVY = ("torch", "numpy", "optuna", "matplotlib", "pandas", "PIL", "pydantic", "yaml")


def test_the_options_are_those_of_options_txt() -> None:
    frozen, now = FROZEN.read_text(encoding="utf-8").splitlines(), interface()
    changes = "\n".join(difflib.unified_diff(frozen, now, "options.txt", "the commands", lineterm="", n=0))
    assert frozen == now, (
        f"the command line changed:\n{changes}\n"
        "if it is meant: python -m tests.cli.interface > tests/cli/options.txt, and say it in the changelog"
    )


def test_every_help_is_shown_without_heavy_imports() -> None:
    every = [words.split() for words in commands()]
    code = (
        "import io, json, sys, contextlib\n"
        "from detsearch_cli.cli.app import run\n"
        "found = {}\n"
        f"for words in {every!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        code = run([*words, '--help'])\n"
        f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    found[' '.join(words)] = [code, 'Usage: detsearch' in shown.getvalue(), heavy]\n"
        "print(json.dumps(found))"
    )
    # the first word after the program's name is what a user would have typed
    done = subprocess.run(
        [sys.executable, "-c", code, "train"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    found = json.loads(done.stdout)
    assert len(found) > 15
    assert found == {" ".join(words): [0, True, []] for words in every}


@pytest.mark.parametrize("words", [[], ["assign", "search"], ["study", "list"]])
def test_help_takes_a_fraction_of_a_second(words: list[str]) -> None:
    def spent(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    # processor time, the least of several: the wall clock of a busy machine says nothing about the program
    least = min(spent([*MAIN, *words, "--help"]) for _ in range(3))
    pace = max(1.0, min(spent([sys.executable, "-c", "import asyncio"]) for _ in range(3)) / 0.07)
    assert least < 0.3 * pace


@pytest.mark.parametrize("words", [["train"], ["assign", "search"], ["anchors", "train"]])
def test_a_long_training_is_not_begun_by_its_bare_name(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    assert "--detector" in "".join(capsys.readouterr())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--help"], ["study", "show", "STUDY", "--json"]])
def test_a_reader_that_stops_early_sees_no_traceback(words: list[str], study: Path) -> None:
    process = start([str(study) if word == "STUDY" else word for word in words], study)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # `detsearch ... | head -1`
    told = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in told and "Exception ignored" not in told


def no_constant(name: str) -> None:
    pytest.fail(f"{name} is no JSON")


def test_json_is_the_only_thing_on_stdout(
    trained: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (80, 50)).save(tmp_path / "image.png")
    (tmp_path / "f.yaml").write_text("assign: {name: dynamic, counts: [[3]]}\n")
    (tmp_path / "loss.yaml").write_text("loss: {name: parameterized_ap, curves: square}\n")
    again = ["--bins", "1", "--trials", "2", "--name", "s", "--out", str(study.parent)]
    counts = ["--set", "assign={name: dynamic, counts: [[3]]}"]
    every = {
        "train": [*SMALL, "--out", str(trained)],
        "eval": [str(trained), "--compare", str(trained)],
        "predict": [str(trained), str(tmp_path / "image.png")],
        "data inspect": [DATA],
        "assign search": [*SMALL, *again],
        "assign train": [
            *SMALL,
            "--against",
            str(tmp_path / "f.yaml"),
            "--baseline",
            "--out",
            str(tmp_path / "both"),
        ],
        "assign show": [*SMALL, *counts, "--images", "2", "--samples", "0", "--out", str(tmp_path / "show")],
        "aploss search": [*SMALL, "--segments", "2", "--trials", "1", "--name", "p", "--out", str(tmp_path)],
        "aploss train": [
            *SMALL,
            "--against",
            str(tmp_path / "loss.yaml"),
            "--baseline",
            "--out",
            str(tmp_path / "losses"),
        ],
        "aploss show": [*SMALL, "--set", "loss=parameterized_ap", "--out", str(tmp_path / "curves")],
        "anchors fit": [*ANCHORED, "--out", str(tmp_path / "anchors.yaml")],
        "anchors train": [*ANCHORED, "--baseline", "--out", str(tmp_path / "anchors")],
        "anchors show": [
            *ANCHORED,
            "--run",
            str(tmp_path / "anchors" / "learned-seed0"),
            "--out",
            str(tmp_path / "pictures"),
        ],
        "study list": [str(study.parent)],
        "study show": [str(study)],
        "study compare": [str(study), "--out", str(tmp_path / "searches.png")],
        "study resume": [str(study)],
        "kernels info": [],
    }
    offered = {
        words for words, command in commands().items() if any("--json" in p.opts for p in command.params)
    }
    assert offered == set(every)
    for words, arguments in every.items():
        capsys.readouterr()
        assert run([*words.split(), *arguments, "--json"]) == 0, words
        told = json.loads(capsys.readouterr().out, parse_constant=no_constant)
        assert isinstance(told, dict | list), words
