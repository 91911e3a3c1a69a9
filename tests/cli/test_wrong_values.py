"""Every option of every command with values that are wrong for its type: one sentence, exit 2, before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.cli.app import run
from tests.cli.interface import commands
from tests.cli.small import DATA
from tests.cli.test_bad_input import Told, contents, refused

NUMBERS = ["nan", "inf", "1e400", "abc", "", "9" * 5000, "-1", str(2**63), "1.5e9", "٣x"]
"""Wrong for whole numbers and for fractions."""
ESCAPE = "\x1b]0;title\x07\x1b[31m"
TEXTS = ["a" + ESCAPE, "x" * 5000, "caf\udce9", "\u202ename", "../../name", "a{}b?c"]
FREE = {
    # any text is taken: what it names is made, or only looked up once a study is open
    "--name", "--storage", "--out", "--plots",
}  # fmt: skip
BASE: dict[str, list[str]] = {
    "train": ["--data", DATA, "--backbone", "tiny"],
    "anchors fit": ["--data", DATA, "--backbone", "tiny"],
    "anchors train": ["--data", DATA, "--backbone", "tiny"],
    "anchors show": ["--data", DATA, "--backbone", "tiny"],
    "aploss search": ["--data", DATA, "--backbone", "tiny"],
    "aploss show": ["--data", DATA, "--backbone", "tiny", "--set", "loss=parameterized_ap"],
    "aploss train": ["--data", DATA, "--backbone", "tiny", "--against", "fragment.yaml"],
    "assign search": ["--data", DATA, "--backbone", "tiny"],
    "assign show": ["--data", DATA, "--backbone", "tiny", "--set", "assign=dynamic"],
    "assign train": ["--data", DATA, "--backbone", "tiny", "--against", "fragment.yaml"],
    "data inspect": [DATA],
    "data preview": [DATA],
    "data convert": [DATA, "--out", "converted"],
    "data split": [DATA, "--out", "divided"],
    "eval": ["no-run"],
    "predict": ["no-run", "no.png"],
    "report": ["no-run"],
    "study show": ["no-study"],
    "study compare": ["no-study", "another"],
    "study resume": ["no-study"],
    "study export": ["no-study", "table.csv"],
}
"""What makes a command whole but for the option that is tried. Where a run is needed there is none, so none works."""


def options(kind: str) -> Iterator[tuple[str, str]]:
    """(command, option) of every option whose values are of the kind, `int` or `list[str]` say."""
    for words, command in commands().items():
        for parameter in command.params:
            annotation = parameter.type_descriptor.annotation
            inner = getattr(annotation, "__args__", (annotation,))[0].__name__
            if parameter.opts[0].startswith("--") and inner == kind and "completion" not in parameter.opts[0]:
                yield words, parameter.opts[0]


def spread(kinds: list[str], values: list[str], each: int) -> list[Any]:
    """`each` of the values for every option, other ones for the same option of the next command."""
    every = [pair for kind in kinds for pair in options(kind)]
    return [
        pytest.param(words, option, values[(number * each + i) % len(values)], id=f"{words} {option} {i}")
        for number, (words, option) in enumerate(every)
        for i in range(each)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder for all cases, since none may write anything."""
    made = tmp_path_factory.mktemp("wrong")
    (made / "fragment.yaml").write_text("optim: {lr: 0.02}\n")
    (made / "folder").mkdir()
    (made / "binary").write_bytes(bytes(range(256)))
    return made


def told_once(words: str, option: str, value: str, folder: Path, told: Told) -> str:
    before = contents(folder)
    sentence = refused([*words.split(), *BASE.get(words, []), f"{option}={value}"], told)
    assert not any(ord(c) < 32 or c in "\u202e\udce9" for c in sentence)
    assert len(sentence) < 1000
    assert contents(folder) == before
    return sentence


@pytest.mark.parametrize(("words", "option", "value"), spread(["int", "float"], NUMBERS, 2))
def test_a_wrong_number_is_one_sentence(
    words: str, option: str, value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.chdir(folder)
    sentence = told_once(words, option, value, folder, capsys)
    assert option in sentence


def test_every_number_that_is_no_key_of_a_recipe_has_both_limits() -> None:
    keys = {"val_fraction", "subset", "epochs", "batch_size", "seed", "devices", "num_nodes", "workers"}
    for words, command in commands().items():
        for parameter in command.params:
            about = parameter.type_descriptor
            if about.annotation in (int, float) and (words in ("demo",) or parameter.name not in keys):
                assert about.parameter_info.min is not None, f"{words} {parameter.name}"
                assert about.parameter_info.max is not None, f"{words} {parameter.name}"


TEXT_OPTIONS = [p for p in spread(["str"], TEXTS, 1) if p.values[1] not in FREE]


@pytest.mark.parametrize(("words", "option", "value"), TEXT_OPTIONS)
def test_a_wrong_word_is_one_sentence_without_control_characters(
    words: str, option: str, value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.chdir(folder)
    told_once(words, option, value, folder, capsys)


READ = {
    "--recipe",
    "--against",
    "--backbone-weights",
    "--study",
    "--run",
    "--weights",
    "--detections",
    "--compare",
}
PATHS = [
    "none",
    "folder",
    "binary",
    "/dev/null/x",
    "x" * 5000,
    "~nosuchuser/x",
    "loop",
    "pipe",
    "none" + ESCAPE,
]
READ_OPTIONS = [p for p in spread(["Path"], PATHS, 2) if p.values[1] in READ]


@pytest.mark.parametrize(("words", "option", "value"), READ_OPTIONS)
def test_a_path_that_cannot_be_read_is_one_sentence(
    words: str, option: str, value: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.chdir(folder)
    if not (folder / "pipe").exists():
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to(folder / "loop")
    told_once(words, option, value, folder, capsys)


@pytest.mark.parametrize("words", ["a\x1b[31m", "train --x\x1b[31m", "train \x1b[31m", "data in\x1bspect"])
def test_usage_errors_spell_control_characters_out(words: str, capsys: Told) -> None:
    capsys.readouterr()
    assert run(words.split()) == 2
    assert "\x1b" not in "".join(capsys.readouterr())
