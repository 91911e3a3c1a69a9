"""Small recipes that several tests train: seconds on one core."""

from __future__ import annotations

from typing import Any

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


def small(**changes: Any) -> Recipe:
    """A recipe of 6 training steps; keyword arguments are laid over it."""
    return compose([("small", SMALL), ("test", changes)])
