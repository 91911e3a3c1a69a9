"""The paper that pictures of methods are drawn on: PNG, white, of one style."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from detsearch_cli.report.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

LEVEL_COLOURS = (
    "#e6550d",
    "#fdae2b",
    "#21b5a8",
    "#3b5bb5",
    "#9b3fae",
    "#c2255c",
)  # P2 to P7, apart on photographs


def level_colour(level: int) -> str:
    """Of a pyramid level; 3 is P3."""
    return LEVEL_COLOURS[(level - 2) % len(LEVEL_COLOURS)]


def canvas(width: float, height: float) -> Canvas:
    """Empty, in inches."""
    from matplotlib.figure import Figure as Canvas  # not pyplot, which keeps every figure alive

    return Canvas(figsize=(width, height), layout="constrained", facecolor="white")


def style() -> AbstractContextManager[None]:
    """Fonts, colours and lines for what is drawn inside."""
    import matplotlib

    return matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.color": COLOURS["ink"],
            "axes.labelcolor": COLOURS["muted"],
            "axes.edgecolor": COLOURS["line"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": COLOURS["line"],
            "xtick.color": COLOURS["ink"],
            "ytick.color": COLOURS["ink"],
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "legend.frameon": False,
        }
    )
