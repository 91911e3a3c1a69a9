"""Versions of everything that can change a result, for reports and metrics.json."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "torchvision", "timm", "numpy", "faster-coco-eval", "pySOT", "optuna", "detsearch")


def versions() -> dict[str, str]:
    """Name -> version; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
