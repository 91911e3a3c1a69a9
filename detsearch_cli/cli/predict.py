"""Run a trained detector on images."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    score_threshold: Annotated[
        float, typer.Option(help="Draw boxes from this score on.", min=0, max=1)
    ] = 0.3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="COCO results on stdout instead of pictures.")] = False,
) -> None:
    """Detect objects in images: pictures with boxes, or COCO json."""
    from detsearch_cli.cli import console
    from detsearch_cli.engine.checkpoint import load_detector
    from detsearch_cli.engine.predict import detect_split, expand_images, image_split, per_image
    from detsearch_cli.engine.score import pick_device

    files = expand_images(images)
    places = [] if json else claim_pictures(out, files)
    model, recipe, classes = load_detector(run)
    split = image_split(files, classes)
    where = pick_device(device)
    table = detect_split(model.to(where), split, recipe, where)
    if json:
        names = [{"id": r.image_id, "file_name": str(r.file)} for r in split.records]
        categories = [{"id": i, "name": n} for i, n in zip(split.category_ids, classes, strict=True)]
        console.emit_json({"images": names, "categories": categories, "annotations": table.to_coco(split)})
        return
    from detsearch_cli.data.drawing import draw
    from detsearch_cli.files import write_png

    for number, found in enumerate(per_image(table, len(split))):
        keep = found.scores >= score_threshold
        boxes, labels, scores = found.boxes[keep], found.labels[keep], found.scores[keep]
        write_png(places[number], draw(split.read(number), boxes, labels, classes, scores))
        console.say(f"{places[number]}: {int(keep.sum())} objects")


def claim_pictures(out: Path, files: Sequence[Path]) -> list[Path]:
    """Where the picture of each file is written. Raises OutputError for what a user put there."""
    from detsearch_cli.files import claim_file, claim_folder, resolved

    claim_folder(out, None, "folder of pictures")
    taken = {resolved(file) for file in files}  # no picture may replace an image that was given
    places = []
    for file in files:
        place = free_name(out / f"{file.stem}.png", taken)
        claim_file(place)
        taken.add(resolved(place))
        places.append(place)
    return places


def free_name(path: Path, taken: Container[Path]) -> Path:
    """The path, with a number where it is taken: by the input itself, or by an image of the same name."""
    from detsearch_cli.files import resolved

    number, free = 2, path
    while resolved(free) in taken:
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free
