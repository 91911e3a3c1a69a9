"""`data inspect` as tables: counts, classes, sizes, shapes, defects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detsearch_cli.cli import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detsearch_cli.data.inspect import Bin, Inspection

BAR = 32
LISTED = 50


def show_inspection(format: str, found: Inspection) -> None:
    """Everything found in one split."""
    width, height = ("/".join(map(str, side)) for side in (found.widths, found.heights))
    console.say("")
    console.say(
        f"{found.split} ({format}): {found.images} images ({found.empty_images} without boxes), {found.boxes} boxes, "
        f"{found.crowd} crowd, {found.difficult} difficult; "
        f"width {width}, height {height} px (least/median/most)"
    )
    rows = [
        [c.name, str(c.images), str(c.boxes), "-" if c.median_size is None else f"{c.median_size:.0f}"]
        for c in found.classes
    ]
    console.table("classes", ["class", "images", "boxes", "median size px"], rows)
    small, medium, large = (found.coco_sizes[k] for k in ("small", "medium", "large"))
    histogram(f"box size, sqrt(w h) px ({small} small, {medium} medium, {large} large)", found.sizes)
    histogram("box aspect, w / h", found.aspects)
    histogram("boxes an image", found.boxes_per_image)
    if not found.defects:
        console.say("no defects")
        return
    kinds = [[kind, str(count)] for kind, count in found.defect_counts.items()]
    console.table("defects", ["kind", "count"], kinds)
    rows = [[d.kind, d.file, d.detail, d.handled] for d in found.defects[:LISTED]]
    console.table("each", ["kind", "file", "detail", "handled"], rows)
    if len(found.defects) > LISTED:
        console.say(f"... and {len(found.defects) - LISTED} more; --json lists all")


def histogram(title: str, bins: Sequence[Bin]) -> None:
    """Counts as bars, one line a bin."""
    most = max((b.count for b in bins), default=0)
    rows = [[label(b), str(b.count), "#" * round(BAR * b.count / most) if most else ""] for b in bins]
    console.table(title, ["", "count", "bar"], rows)


def label(bin: Bin) -> str:
    return f"{bin.low:g} to {bin.high:g}"
