"""Run a trained detector on images."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detsearch_cli.errors import CheckFailed, DataError

if TYPE_CHECKING:
    from detsearch_cli.engine.predict import DetectedFiles

FROM = 0.3  # score
NAMED = 5  # lines for files that cannot be read; their number comes last


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("predict")(predict)


def predict(
    run: Annotated[Path, typer.Argument(help="Run folder or .safetensors file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    score_threshold: Annotated[
        float | None,
        typer.Option(
            help="Draw boxes from this score on; default: the run's of the highest F1, else 0.3.",
            min=0,
            max=1,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="COCO results on stdout instead of pictures.")] = False,
) -> None:
    """Detect objects in images: pictures with boxes, or COCO json.

    Files that cannot be read as images are named and passed over; the exit code is then 1.
    """
    from detsearch_cli.cli import console
    from detsearch_cli.engine.checkpoint import load_detector
    from detsearch_cli.engine.predict import detect_files, expand_images
    from detsearch_cli.engine.score import pick_device

    files = expand_images(images)
    places = {} if json else dict(enumerate(claim_pictures(out, files), 1))
    model, recipe, classes = load_detector(run)
    where = pick_device(device)
    least = operating_score(run) if score_threshold is None else score_threshold
    unread: list[tuple[Path, str]] = []
    document: dict[str, list[Any]] = {"images": [], "categories": [], "annotations": [], "unreadable": []}
    for part in detect_files(model.to(where), files, recipe, classes, where):
        for file, reason in part.unreadable:
            unread.append((file, reason))
            if len(unread) <= NAMED:
                console.say(f"{file} is passed over: {reason}")
        if json:
            add_to_document(document, part)
        else:
            draw_pictures(part, places, least)
    if len(unread) == len(files):
        raise DataError(
            f"none of the {len(files)} files can be read as an image; the first, {unread[0][0]}: {unread[0][1]}"
        )
    if json:
        document["categories"] = [{"id": i, "name": n} for i, n in enumerate(classes, 1)]
        console.emit_json(document)
    if unread:
        raise CheckFailed(
            f"{len(unread)} of {len(files)} files cannot be read as images and were passed over; "
            "the others were predicted"
        )


def operating_score(run: Path) -> float:
    """The score of the highest F1 on the run's validation split; FROM where it is unknown, as of a weights file."""
    from detsearch_cli.engine.checkpoint import read_metrics

    metrics = read_metrics(run) if run.is_dir() else None
    point = (metrics or {}).get("operating_point") or {}
    return FROM if point.get("score") is None else float(point["score"])


def add_to_document(document: dict[str, list[Any]], part: DetectedFiles) -> None:
    """Add to COCO results: images, annotations, and the files that are no images."""
    document["images"] += [{"id": r.image_id, "file_name": str(r.file)} for r in part.split.records]
    document["annotations"] += part.table.to_coco(part.split)
    document["unreadable"] += [{"file_name": str(file), "reason": reason} for file, reason in part.unreadable]


def draw_pictures(part: DetectedFiles, places: Mapping[int, Path], score_threshold: float) -> None:
    """Write each image with its boxes to the place of its id."""
    from detsearch_cli.cli import console
    from detsearch_cli.data.drawing import draw
    from detsearch_cli.engine.predict import per_image
    from detsearch_cli.files import write_png

    split = part.split
    for number, found in enumerate(per_image(part.table, len(split))):
        place = places[split.records[number].image_id]
        keep = found.scores >= score_threshold
        boxes, labels, scores = found.boxes[keep], found.labels[keep], found.scores[keep]
        write_png(place, draw(split.read(number), boxes, labels, split.classes, scores))
        console.say(f"{place}: {int(keep.sum())} objects")


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
