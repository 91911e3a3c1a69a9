"""`data inspect` as tables: counts, classes, sizes, shapes, defects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detsearch_cli.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detsearch_cli.data.inspect import Bin, Inspection
    from detsearch_cli.data.types import Defect

BAR = 32
LISTED = 20  # of each kind


def show_inspection(format: str, found: Inspection) -> None:
    """Everything found in one split."""
    width, height = ("/".join(map(str, side)) for side in (found.widths, found.heights))
    console.say("")
    console.say(
        f"{found.split} ({format}): {found.images} images ({found.empty_images} without boxes), "
        f"{found.boxes} boxes, {found.crowd} crowd, {found.difficult} difficult"
    )
    console.say(f"width {width}, height {height} px (least/median/most)")
    rows = [
        [c.name, str(c.images), str(c.boxes), "-" if c.median_size is None else f"{c.median_size:.0f}"]
        for c in found.classes
    ]
    console.table("classes", ["class", "images", "boxes", "median size px"], rows)
    small, medium, large = (found.coco_sizes[k] for k in ("small", "medium", "large"))
    histogram(f"box size, sqrt(w h) px ({small} small, {medium} medium, {large} large)", found.sizes)
    histogram("box aspect, w / h", found.aspects)
    histogram("boxes an image", found.boxes_per_image, whole=True)
    show_defects(found.defects)


def show_defects(defects: Sequence[Defect]) -> None:
    """Defects by kind; of each kind the first few with their files, one a line."""
    if not defects:
        console.say("no defects")
        return
    kinds: dict[tuple[str, str], list[Defect]] = {}
    for defect in defects:
        kinds.setdefault((defect.kind, defect.handled), []).append(defect)
    console.table(
        "defects", ["kind", "count", "handled"], [[k, str(len(d)), h] for (k, h), d in kinds.items()]
    )
    for (kind, _), found in kinds.items():
        for defect in found[:LISTED]:
            console.say(f"  {kind}: {defect.file}: {defect.detail}")
        if len(found) > LISTED:
            console.say(f"  {kind}: ... and {len(found) - LISTED} more; --json lists all")


def histogram(title: str, bins: Sequence[Bin], whole: bool = False) -> None:
    """Counts as bars, one line a bin."""
    most = max((b.count for b in bins), default=0)
    rows = [[label(b, whole), str(b.count), "#" * round(BAR * b.count / most) if most else ""] for b in bins]
    console.table(title, ["from", "boxes" if not whole else "images", ""], rows)


def label(bin: Bin, whole: bool) -> str:
    """`0.35 to 0.71`; for whole numbers the last one included: `3 to 4`, `1`."""
    if not whole:
        return " to ".join(f"{edge:.0f}" if edge >= 10 else f"{edge:.2g}" for edge in (bin.low, bin.high))
    low, high = int(bin.low), int(bin.high) - 1
    return str(low) if low == high else f"{low} to {high}"
