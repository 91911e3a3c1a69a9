"""Text as it can be shown: control characters are spelt out everywhere, in pictures also letters that no font has.

Names of classes, files and runs come from data that somebody else made. They must not command a terminal, nor become
a row of empty boxes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# C0 without tab and newline, C1, the marks that turn the direction of what follows, and the lone surrogates that
# stand for the bytes of a name that is not UTF-8
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MAIN = "DejaVu Sans"
"""The font of all pictures: matplotlib brings it, with the letters of most alphabets, not with those of East Asia."""


def visible(text: str) -> str:
    """The text with control characters spelt out, ESC as `\\x1b`; tab and newline stay."""
    return _CONTROL.sub(lambda found: _spelt(found[0]), text)


def legible(text: str) -> str:
    """`visible` for a picture: letters that no installed font has are spelt out as well, 猫 as `\\u732b`."""
    return "".join(c if c in "\n\t" or (c.isprintable() and _font_of(c)) else _spelt(c) for c in text)


def families(text: str) -> list[str]:
    """Names of the fonts that have the letters of a legible text, for matplotlib: it tries them in this order."""
    others = {
        font.name for c in text if c.isprintable() and (font := _font_of(c)) is not None and font.name != MAIN
    }
    return [MAIN, *sorted(others)]


def one_line(text: str) -> tuple[str, str | None]:
    """(the text, a font file) for a drawing with a single font; None: any font has the letters.

    Letters that the chosen font lacks are spelt out, like tabs and ends of lines.
    """
    if text.isascii() and text.isprintable():
        return text, None
    fonts = list(dict.fromkeys(font for c in text if c.isprintable() and (font := _font_of(c)) is not None))
    main = _fonts()[0]
    best = max([main, *fonts], key=lambda font: sum(ord(c) in _letters(font.fname) for c in text))
    spelt = "".join(c if c.isprintable() and ord(c) in _letters(best.fname) else _spelt(c) for c in text)
    return spelt, best.fname


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode()


@cache
def _font_of(char: str) -> Any:
    """The first installed font that has the letter, as matplotlib's entry; None where there is none."""
    return next((font for font in _fonts() if ord(char) in _letters(font.fname)), None)


@cache
def _fonts() -> list[Any]:
    """Every installed font of upright letters: the main one first, then those with names of large collections."""
    from matplotlib.font_manager import fontManager

    # Last Resort has a box for every letter, and fonts of emoji have pictures that cannot be drawn in any size
    unfit = re.compile("Emoji|Last ?Resort")
    plain = [f for f in fontManager.ttflist if f.style == f.stretch == "normal" and not unfit.search(f.name)]
    wide = re.compile("CJK|Unicode|Han|Hei|Gothic|Noto Sans|WenQuanYi|Droid|Unifont")

    def order(font: Any) -> tuple[bool, bool, int, str]:
        # of each family the common weight; matplotlib's own copy of the main font before the system's
        return font.name != MAIN, wide.search(font.name) is None, abs(int(font.weight) - 400), font.fname

    return sorted((f for f in plain if isinstance(f.weight, int)), key=order)


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font file has; none where it cannot be opened."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a font of pictures, a damaged one: others are left
        return frozenset()
