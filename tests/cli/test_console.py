"""What comes from data cannot command the terminal, and JSON stays exact."""

from __future__ import annotations

import json
import re

import pytest

from detsearch_cli.cli import console

EVIL = "x\x1b]0;pwned\x07\x1b[31mred\r\x9b2J\x7f\u202e[bold]:car:[/]"
SHOWN = r"x\x1b]0;pwned\x07\x1b[31mred\r\x9b2J\x7f\u202e[bold]:car:[/]"
Told = pytest.CaptureFixture[str]


class At:
    """A step of a training with an evil loss."""

    ap, losses, epoch, epochs, step, steps = 0.5, {EVIL: 1.0}, 1, 1, 1, 2


def bar() -> None:
    with console.training_bar(EVIL) as watch:
        watch(At())


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
