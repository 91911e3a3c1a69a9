"""What several commands say the same way: the data that was found, the defects in it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from detsearch_cli.cli.console import say


def announce_data(resolved: Any) -> None:
    """One line a split, one line for what was decided, one line for what was mended."""
    parts = [("train", resolved.train), ("val", resolved.val), ("test", resolved.test)]
    sizes = ", ".join(f"{len(split)} {name}" for name, split in parts if split is not None)
    say(f"data: {sizes} images, {len(resolved.train.classes)} classes")
    for note in resolved.notes:
        say(f"note: {note}")
    announce_defects(resolved.train)


def announce_defects(split: Any) -> None:
    """How many defects were handled, by kind."""
    if split.defects:
        kinds = Counter(d.kind for d in split.defects)
        listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(4))
        say(f"note: handled in {split.name}: {listed}; `detsearch data inspect` lists them")
