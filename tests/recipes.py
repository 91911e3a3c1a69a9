"""Small recipes that several tests train: seconds on one core."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from detsearch_cli.recipe import Recipe, compose

SMALL: dict[str, Any] = {
    "detector": "fcos",
    "backbone": "tiny",
    "neck": {"channels": 16, "levels": [3, 5]},
    "head": {"convs": 1},
    "data": {"source": "shapes:images=24,val=8,test=8,size=64"},
    "augment": {"image_size": 64},
    "optim": {"name": "adamw", "lr": 0.002, "batch_size": 8},
    "schedule": {"epochs": 2},
    "runtime": {"device": "cpu"},
}


EXTRAS = {"deformable_detr": "transformers"}
"""Detectors, and the package that each needs beyond what is always installed."""


def skip_without_extra(recipe: Recipe) -> None:
    """Skip the test where the recipe's detector needs a package that is not installed."""
    package = EXTRAS.get(recipe.detector.name)
    # not by importing it, which takes seconds
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{recipe.detector.name} needs {package}; pip install 'detsearch[detr]'")


def small(**changes: Any) -> Recipe:
    """A recipe of 6 training steps; keyword arguments are laid over it."""
    return compose([("small", SMALL), ("test", changes)])
