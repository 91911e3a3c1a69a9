"""Options of a method, written once: a dataclass field with its default, help and limits. Imports nothing heavy.

The command line makes parameters of them, the Python interface takes them as keywords, a study keeps their values.
The limits that options and recipes share are here, because a --help must not import pydantic to show them.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from detsearch_cli.errors import DetsearchError

O = TypeVar("O")  # noqa: E741

LARGEST_SEED = 2**32 - 1
"""scikit-learn, numpy's legacy generator and the samplers that stand on them take no larger one."""
LEAST_PIXELS, MOST_PIXELS = 16, 8192
"""Of a side. Of fewer, an oblong image keeps none on its short side; of more, one image's first features fill 4 GB."""
MOST_CHANNELS = 4096
"""One 3 x 3 convolution between so many has 151 million weights; published detectors have at most 2048."""
MOST_STEPS = 10**9
"""Of anything that only takes time: at a thousand a second it ends after eleven days."""
MOST_IMAGES = 65_536
"""In a batch; the largest published trainings on ImageNet have 65,536 small ones."""
MOST_TRIALS = 100_000
"""Samplers rebuild their model from every trial so far, so a search slows down long before."""
MOST_NOISE_SEEDS = 100
"""Trainings of a baseline: its noise is then known to 7%."""
MOST_JOBS = 1024
"""Processes at a time; each imports torch, half a gigabyte."""
MOST_SHAPES = 64
"""At a cell: a head's outputs, and every table of priors by ground truths, grow with it. RetinaNet has 9."""
MOST_BOXES = 10_000_000
"""Boxes, priors or points taken of one image, so that a million can mean all: RetinaNet has 200,000 in 800 x 1333 px."""
MOST_RESAMPLES = 100_000
"""Of a bootstrap; all are drawn at once, which takes 4 GB for the 5,000 images of COCO's val."""
MOST_MINUTES = 10 * 365 * 24 * 60
"""Ten years."""


def option(
    default: Any, help: str, *, min: float | None = None, max: float | None = None, metavar: str | None = None
) -> Any:
    """A field of a dataclass of options. min, max: both included, for numbers."""
    metadata = {"help": help, "min": min, "max": max, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def made(options: type[O], values: Mapping[str, Any], error: type[DetsearchError]) -> O:
    """The options with these values. Raises `error` for an unknown name or a value beyond its limits."""
    fields = {f.name: f for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(options)
    for name, value in values.items():
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise error(f"{name!r} is none of the options ({known})")
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"{name} must be a finite number, got {value}")
        if not _fits(value, hints[name]):
            raise error(f"{name} must be {getattr(hints[name], '__name__', hints[name])}, got {value!r}")
        low, high = fields[name].metadata["min"], fields[name].metadata["max"]
        limits = [f"at least {low:g}"] if low is not None else []
        limits += [f"at most {high:g}"] if high is not None else []
        below = low is not None and value is not None and value < low
        if below or (high is not None and value is not None and value > high):
            raise error(f"{name} must be {' and '.join(limits)}, got {value:g}")
    return options(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether the value is of a type of the hint, a type or a union of some; a whole number is a float, too."""
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)
