"""What an interval allows to say. The one rule for every table, page and message that compares two detectors."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["better", "worse", "within noise"]


def verdict(low: float, high: float) -> Verdict:
    """Of a difference with the 95% interval [low, high]: better or worse only where 0 lies outside of it."""
    if low > 0:
        return "better"
    return "worse" if high < 0 else "within noise"


def sentence(above: str, below: str, low: float, high: float) -> str:
    """`above is better than below`, or `within noise`. The interval is that of above minus below."""
    found = verdict(low, high)
    return found if found == "within noise" else f"{above} is {found} than {below}"
