"""Look at a data set, convert it, split it. Nothing given is ever changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detsearch_cli.cli.groups import Group
from detsearch_cli.option import LARGEST_SEED

app = typer.Typer(name="data", cls=Group, no_args_is_help=True, help=__doc__)
DataArgument = Annotated[
    str, typer.Argument(help="Folder (format detected), or a name: shapes, voc, coco, ...")
]


@app.command("inspect")
def inspect(
    data: DataArgument,
    split: Annotated[str | None, typer.Option(help="train, val or test; default: all.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 2 when there is any defect.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Counts, classes, box sizes and shapes, and every defect with its file."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.inspection import show_inspection
    from detsearch_cli.data.checks import refuse_defects
    from detsearch_cli.data.inspect import inspect as inspect_split
    from detsearch_cli.data.source import load_split, open_source

    source = open_source(data)
    loaded = [load_split(source, name, strict) for name in (source.splits if split is None else [split])]
    found = [inspect_split(part, before=loaded[:number]) for number, part in enumerate(loaded)]
    if strict:  # what loading cannot see: it reads one split
        for part, inspection in zip(loaded, found, strict=True):
            refuse_defects(source.spec, part, inspection.defects)
    if json:
        console.emit_json({"data": data, "format": source.format, "splits": [i.to_json() for i in found]})
        return
    for inspection in found:
        show_inspection(source.format, inspection)


@app.command("preview")
def preview(
    data: DataArgument,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
    images: Annotated[int, typer.Option(help="How many images.", min=1, max=400)] = 24,
    columns: Annotated[int, typer.Option(help="Images a row.", min=1, max=20)] = 6,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels.", min=32, max=1024)] = 256,
    seed: Annotated[int, typer.Option(help="Which images are drawn.", min=0, max=LARGEST_SEED)] = 0,
) -> None:
    """A contact sheet with boxes."""
    import numpy as np

    from detsearch_cli.cli import console
    from detsearch_cli.data.drawing import contact_sheet
    from detsearch_cli.data.source import load_split, open_source
    from detsearch_cli.data.usable import left_out, usable
    from detsearch_cli.errors import DataError
    from detsearch_cli.files import claim_file, write_png

    claim_file(out)
    if out.suffix.lower() != ".png":
        raise DataError(f"a preview is a PNG file such as preview.png, got --out {out}")
    loaded = load_split(open_source(data), split)
    chosen = np.random.default_rng(seed).permutation(len(loaded))[:images]
    shown = usable(loaded.take(sorted(chosen.tolist())))
    sheet = contact_sheet(shown, range(len(shown)), columns, tile)
    write_png(out, sheet)
    console.say(f"{out}: {len(shown)} of {len(loaded)} images")
    for note in left_out([shown]):
        console.say(f"note: {note}")


@app.command("convert")
def convert(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="New folder.")],
    to: Annotated[str, typer.Option(help="coco, voc or yolo.")] = "coco",
) -> None:
    """Write the data set in another format into a new folder."""
    from detsearch_cli.cli import console
    from detsearch_cli.data.convert import convert as write
    from detsearch_cli.data.source import open_source

    source = open_source(data)
    converted = write(source, out, to)
    console.say(f"{out}: {source.format} -> {to}, splits {', '.join(source.splits)}")
    for note in converted.notes:
        console.say(f"note: {note}")


@app.command("split")
def split(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="New folder (COCO format).")],
    fractions: Annotated[str, typer.Option(help="Parts of train, val and test.")] = "0.7,0.1,0.2",
    seed: Annotated[int, typer.Option(help="Which images go where.", min=0, max=LARGEST_SEED)] = 0,
) -> None:
    """Deal all images anew into train, val and test, into a new folder."""
    from detsearch_cli.cli import console
    from detsearch_cli.data.convert import split as write
    from detsearch_cli.data.source import open_source
    from detsearch_cli.errors import DataError

    try:
        parts = tuple(float(p) for p in fractions.split(","))
    except ValueError:
        raise DataError(f"--fractions takes three numbers such as 0.7,0.1,0.2, got {fractions!r}") from None
    made = write(open_source(data), out, parts, seed)  # type: ignore[arg-type]
    console.say(f"{out}: train, val and test written")
    for note in made.notes:
        console.say(f"note: {note}")
