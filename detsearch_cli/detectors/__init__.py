"""Detectors, one a file; `build` makes the one a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detsearch_cli import parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detsearch_cli.detectors._backbones import Published
    from detsearch_cli.detectors._starting import Source, Started
    from detsearch_cli.detectors.base import Detector
    from detsearch_cli.schema import Recipe

PRETRAINED = "pretrained"
"""`backbone.weights` for what timm publishes."""


def build(recipe: Recipe, num_classes: int) -> Detector:
    """The recipe's detector with its backbone weights loaded, in training mode, on the CPU.

    Raises RecipeError for parts that do not fit together, CheckpointError for weights that do not fit.
    """
    from detsearch_cli.detectors.base import Detector

    named: type[Detector] = parts.find("detectors", recipe.detector.name, Detector)  # type: ignore[type-abstract]
    return named(recipe, num_classes)


def find_trained(value: str) -> Source:
    """The trained detector that `init` names: a run folder, a weights file, or a checkpoint of torchvision's.

    Raises CheckpointError where it cannot be found, fetched or read.
    """
    from detsearch_cli.detectors._starting import find

    return find(value)


def find_published(backbone: str) -> Published:
    """The weights that timm publishes for a backbone. Raises RecipeError for one it has none for, CheckpointError where
    they cannot be fetched.
    """
    from detsearch_cli.detectors._backbones import published

    return published(backbone)


def start(detector: Detector, recipe: Recipe, classes: Sequence[str]) -> Started | None:
    """Fill a detector that was just built with the weights of the recipe's `init`; None where it has none.

    Raises CheckpointError for weights that are gone, changed, or of another network.
    """
    if recipe.init is None:
        return None
    from detsearch_cli.detectors._starting import take_over

    return take_over(detector, recipe, classes)
