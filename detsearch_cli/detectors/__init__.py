"""Detectors, one a file; `build` makes the one a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detsearch_cli import parts

if TYPE_CHECKING:
    from detsearch_cli.detectors.base import Detector
    from detsearch_cli.schema import Recipe


def build(recipe: Recipe, num_classes: int) -> Detector:
    """The recipe's detector with its backbone weights loaded, in training mode, on the CPU.

    Raises RecipeError for parts that do not fit together, CheckpointError for weights that do not fit.
    """
    from detsearch_cli.detectors.base import Detector

    named: type[Detector] = parts.find("detectors", recipe.detector.name, Detector)  # type: ignore[type-abstract]
    return named(recipe, num_classes)
