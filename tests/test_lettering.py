"""Names that somebody else made are shown without commanding a terminal and without a row of empty boxes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detsearch_cli import lettering
from detsearch_cli.data.drawing import contact_sheet, draw
from detsearch_cli.data.types import Record, Split
from detsearch_cli.lettering import families, legible, one_line, visible
from detsearch_cli.report import curves

UNKNOWN = "\U000e0041"  # a letter that no font draws
NAMES = [
    "cat",
    "кот",
    "قطة",
    "猫",
    "a\nb",
    "\x1b[31mred",
    "\ud800",
    "$x$ $\\frac",
    "_hidden",
    UNKNOWN,
    "y" * 3000,
]


def test_letters_that_a_font_has_stay_and_others_are_spelt_out() -> None:
    assert legible("Größe кот قطة") == "Größe кот قطة"
    assert families("Größe кот") == [lettering.MAIN]
    assert legible(f"a{UNKNOWN}\x1b\ud800") == "a\\U000e0041\\x1b\\ud800"
    assert one_line("plain") == ("plain", None)
    text, font = one_line("кот\n1")
    assert text == "кот\\n1" and font is not None and font.endswith("DejaVuSans.ttf")


def test_east_asian_letters_take_a_font_of_their_own_where_one_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Installed:
        def __init__(self, name: str, letters: str) -> None:
            self.name, self.fname, self.letters = name, name, frozenset(map(ord, letters))

    fonts = [Installed(lettering.MAIN, "ab "), Installed("Wide CJK", "ab 猫")]
    lettering._font_of.cache_clear()
    monkeypatch.setattr(lettering, "_fonts", lambda: fonts)
    monkeypatch.setattr(lettering, "_letters", lambda path: next(f.letters for f in fonts if f.fname == path))
    try:
        assert legible("猫 a犬") == "猫 a\\u72ac"
        assert families("猫 a") == [lettering.MAIN, "Wide CJK"]
        assert one_line("猫 a犬") == ("猫 a\\u72ac", "Wide CJK")
    finally:
        lettering._font_of.cache_clear()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(), max_size=20))
def test_what_is_drawn_has_no_control_character(text: str) -> None:
    assert legible(text).replace("\n", "").replace("\t", "").isprintable()
    assert one_line(text)[0].isprintable()
    assert "\x1b" not in visible(text) and "\x9b" not in visible(text)


def test_pictures_and_figures_take_any_name_without_a_warning() -> None:
    number = len(NAMES)
    record = Record(
        1, None, 60, 60, np.tile(np.float32([[5, 5, 55, 55]]), (number, 1)), np.arange(number),
        np.zeros(number, bool), np.zeros(number, bool), np.ones(number),
    )  # fmt: skip
    split = Split("train", tuple(NAMES), tuple(range(1, number + 1)), (record,), (), lambda i: pixels)
    pixels = np.zeros((60, 60, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(pixels, record.boxes, record.labels, NAMES, np.linspace(0, 1, number))
        contact_sheet(split, [0], 1, 64)
        precision = np.full((10, 101, number), 0.5)
        figures = (
            curves.precision_recall(precision, NAMES, title=NAMES[7]),
            curves.confusion(np.eye(number + 1, dtype=int), NAMES, title=NAMES[3]),
        )
        for figure in figures:
            assert curves.to_png(figure, dpi=40).startswith(b"\x89PNG")
