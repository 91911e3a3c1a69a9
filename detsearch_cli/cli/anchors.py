"""`detsearch anchors fit`: shapes from boxes alone, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from detsearch_cli.cli.options import RecipeOptions, with_options
from detsearch_cli.methods.anchors.options import FitOptions


def register(app: typer.Typer) -> None:
    """Add the command to the method's group."""
    app.command("fit", no_args_is_help=True)(fit)


@with_options(options=RecipeOptions, own=FitOptions)
def fit(
    options: RecipeOptions,
    own: FitOptions,
    format: Annotated[
        str,
        typer.Option(rich_help_panel="Anchors", help="fragment, torchvision, ultralytics or mmdetection."),
    ] = "fragment",
    out: Annotated[Path, typer.Option(rich_help_panel="Anchors", help="YAML file to write.")] = Path(
        "anchors.yaml"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fit anchor shapes to the training boxes, without training: IoU k-means, and how well the shapes fit."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.methods import print_shown
    from detsearch_cli.files import claim_file, write_text
    from detsearch_cli.methods.anchors.formats import check_format, to_yaml
    from detsearch_cli.methods.anchors.method import Anchors, opened
    from detsearch_cli.methods.anchors.method import fit as fit_to_boxes

    claim_file(out, "anchors fit")
    check_format(format)
    recipe = options.compose(dict(Anchors.defaults))
    console.announce_data(opened(recipe)[0])
    shown, shapes, strides, about = fit_to_boxes(recipe, own)
    write_text(out, to_yaml(shapes, strides, format, about))
    if json:
        console.emit_json({**shown.content, "file": str(out)})
        return
    print_shown(shown)
    console.say(f"wrote {out} ({format})")
    if format == "fragment":
        console.say(f"next: detsearch anchors train --init {out} --baseline with the same options")
