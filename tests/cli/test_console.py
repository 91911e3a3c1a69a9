"""What comes from data cannot command the terminal, and JSON stays exact."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field

import pytest

from detsearch_cli.cli import console

EVIL = "x\x1b]0;pwned\x07\x1b[31mred\r\x9b2J\x7f\u202e[bold]:car:[/]"
SHOWN = r"x\x1b]0;pwned\x07\x1b[31mred\r\x9b2J\x7f\u202e[bold]:car:[/]"
Told = pytest.CaptureFixture[str]


@dataclass
class At:
    """Where a training is, as engine.train tells it; by default with an evil loss."""

    step: int = 1
    steps: int = 2
    epoch: int = 1
    epochs: int = 1
    losses: dict[str, float] = field(default_factory=lambda: {EVIL: 1.0})
    ap: float | None = None


def bar() -> None:
    with console.training_bar(EVIL) as watch:
        watch(At(step=2))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A console of its own for every test: it keeps the stream and the width it was made with."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")
    console.err.cache_clear()


@pytest.mark.parametrize(
    "show",
    [
        lambda: console.say(EVIL),
        lambda: console.complain(EVIL),
        lambda: console.table(EVIL, ["name"], [["1"]]),
        lambda: console.table("", [EVIL], [["1"]]),
        lambda: console.table("", ["name"], [[EVIL]]),
        lambda: console.class_table([{"name": EVIL, "images": 1, "boxes": 1, "AP": 0.1, "AP50": None}]),
        bar,
    ],
    ids=["say", "complain", "title", "column", "cell", "classes", "progress"],
)
def test_control_characters_are_spelt_out(show: object, capsys: Told) -> None:
    show()  # type: ignore[operator]
    told = capsys.readouterr().err
    assert SHOWN in told
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", told)


def test_tab_and_newline_stay() -> None:
    assert console.visible("a\tb\nc") == "a\tb\nc"
    assert console.visible("Größe 鳥 😀") == "Größe 鳥 😀"


def test_json_holds_every_character(capsys: Told) -> None:
    console.emit_json({"name": EVIL})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": EVIL}
    assert "\x1b" not in out


def steps(count: int, epochs: int, scored: set[int]) -> list[At]:
    """What a training of so many steps an epoch tells; scored: epochs after which it is evaluated."""
    told = []
    for step in range(1, count * epochs + 1):
        epoch = (step - 1) // count + 1
        told.append(At(step, count * epochs, epoch, epochs, {"a": float(step), "b": 0.5}))
        if step % count == 0 and epoch in scored:
            told.append(At(step, count * epochs, epoch, epochs, {}, 0.25))
    return told


@pytest.mark.parametrize("color", [None, "1"])
def test_a_log_has_one_line_an_epoch_without_escapes(
    color: str | None, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    if color:
        monkeypatch.setenv("FORCE_COLOR", color)
        monkeypatch.delenv("NO_COLOR")
    with console.training_bar("fcos tiny") as watch:
        for at in steps(2, 3, {2, 3}):
            watch(at)
    told = capsys.readouterr().err
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", told)
    first, second, third = told.splitlines()
    assert re.fullmatch(r"fcos tiny  epoch 1/3  loss 2 \(a 1\.5  b 0\.5\)  0:00:00 left", first)
    assert re.fullmatch(r"fcos tiny  epoch 2/3  loss 4 \(a 3\.5  b 0\.5\)  0:00:00 left  AP 25\.0", second)
    assert third == "fcos tiny  epoch 3/3  loss 6 (a 5.5  b 0.5)  AP 25.0"


def test_a_training_that_stops_after_an_epoch_leaves_its_line(capsys: Told) -> None:
    with pytest.raises(KeyboardInterrupt), console.training_bar("t") as watch:
        for at in steps(2, 3, set())[:2]:
            watch(at)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("t  epoch 1/3  loss 2 ")


@pytest.mark.parametrize(("load", "says"), [(4.5, "load 4.5 on 2 cores"), (2.0, "")])
def test_a_busy_machine_is_told_once(
    load: float, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    console.announce_load.cache_clear()
    console.announce_load()
    told = capsys.readouterr().err
    assert says in told and bool(told) == bool(says)
    console.announce_load()
    assert capsys.readouterr().err == ""


def test_a_line_break_in_a_files_name_makes_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.err.cache_clear()
    console.say("wrote a\nerror: b.png")
    console.complain("a\nb is no image")
    assert capsys.readouterr().err.splitlines() == ["wrote a\\nerror: b.png", "error: a\\nb is no image"]
