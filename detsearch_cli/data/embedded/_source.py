"""What the embedded sets share: reading their options, and a Source that renders instead of reading files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from detsearch_cli.data.types import Record, Split
from detsearch_cli.errors import DataError
from detsearch_cli.reading import whole

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Option:
    """An integer option: its default (None: derived from `images`) and its bounds."""

    default: int | None
    low: int
    high: int


_MOST_IMAGES = 1_000_000
"""Their boxes are drawn when a set is opened, which then takes ten minutes."""
COMMON = {
    "images": Option(400, 1, _MOST_IMAGES),
    "val": Option(None, 0, _MOST_IMAGES),
    "test": Option(None, 0, _MOST_IMAGES),
    "size": Option(160, 32, 2048),
    "seed": Option(0, 0, 2**31 - 1),
}


def parse(name: str, options: Mapping[str, str], allowed: Mapping[str, Option]) -> dict[str, int]:
    """Options of `--data name:key=value,...` as integers, defaults filled in.

    val defaults to images // 4, test to images // 2. Raises DataError naming the option.
    """
    for key in options:
        if key not in allowed:
            raise DataError(f"{name} has no option {key!r}; it takes {', '.join(allowed)}")
    values: dict[str, int] = {}
    for key, option in allowed.items():
        text = options.get(key)
        if text is None:
            derived = (
                {"val": values["images"] // 4, "test": values["images"] // 2}
                if key in ("val", "test")
                else {}
            )
            values[key] = derived[key] if option.default is None else option.default
            continue
        value = whole(text)
        if value is None or not option.low <= value <= option.high:
            raise DataError(
                f"{name}:{key} must be a whole number from {option.low} to {option.high}, got {text!r};"
                f" {name} takes {', '.join(allowed)}"
            )
        values[key] = value
    return values


@dataclass(frozen=True)
class Labels:
    """Objects of one rendered image: boxes (N, 4) float32 xyxy px, labels (N,) int64."""

    boxes: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class EmbeddedSource:
    """A rendered data set; a `Source`.

    annotate(split number, index) gives an image's objects, render(split number, index) its pixels as uint8
    (size, size, 3); both must depend on their arguments only. `identity` names all else that decides them.
    """

    spec: str
    format: str
    splits: tuple[str, ...]
    counts: tuple[int, ...]
    classes: tuple[str, ...]
    size: int
    identity: str
    annotate: Callable[[int, int], Labels]
    render: Callable[[int, int], np.ndarray]

    def load(self, split: str, strict: bool = False) -> Split:
        """All objects of a split; images are rendered when read. Raises DataError for an unknown split."""
        if split not in self.splits:
            raise DataError(f"{self.spec} has the splits {', '.join(self.splits)}, not {split!r}")
        number = SPLITS.index(split)
        count = self.counts[self.splits.index(split)]
        records = tuple(self._record(split, number, index) for index in range(count))
        ids = tuple(range(1, len(self.classes) + 1))
        return Split(split, self.classes, ids, records, (), partial(self.render, number))

    def _record(self, split: str, number: int, index: int) -> Record:
        found = self.annotate(number, index)
        no = np.zeros(len(found.labels), dtype=bool)
        sides = (found.boxes[:, 2:] - found.boxes[:, :2]).astype(np.float64)
        return Record(
            image_id=index + 1,
            file=None,
            height=self.size,
            width=self.size,
            boxes=found.boxes,
            labels=found.labels,
            crowd=no,
            difficult=no,
            area=sides.prod(1),
            key=f"{self.identity}/{split}/{index}",
        )


def build(
    name: str,
    values: Mapping[str, int],
    classes: tuple[str, ...],
    annotate: Callable[[int, int], Labels],
    render: Callable[[int, int], np.ndarray],
) -> EmbeddedSource:
    """The source for parsed options; splits of zero images are left out."""
    counts = {"train": values["images"], "val": values["val"], "test": values["test"]}
    kept = tuple(s for s in SPLITS if counts[s])
    look = ",".join(f"{k}={v}" for k, v in values.items() if k not in ("images", "val", "test"))
    return EmbeddedSource(
        spec=f"{name}:" + ",".join(f"{k}={v}" for k, v in values.items()),
        format=name,
        splits=kept,
        counts=tuple(counts[s] for s in kept),
        classes=classes,
        size=values["size"],
        identity=f"{name}:{look}",
        annotate=annotate,
        render=render,
    )
