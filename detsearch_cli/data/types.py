"""What a data set is once read: records of images and boxes, whatever file format they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Defect:
    """Something wrong in the data, and what was done about it."""

    kind: str
    file: str
    detail: str
    handled: str


@dataclass(frozen=True)
class Record:
    """One image and its objects.

    image_id: unique in its split (COCO's own where given, else 1..N in file order). file: None when rendered.
    boxes (N, 4) float32 xyxy px in the image as shown (EXIF applied); labels (N,) int64 in [0, C);
    crowd, difficult (N,) bool; area (N,) float64 px^2, COCO's own where given. key: names a rendered image's
    pixels wherever the record goes; None: the file does.
    """

    image_id: int
    file: Path | None
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    area: np.ndarray
    key: str | None = None

    @property
    def counted(self) -> np.ndarray:
        """Which objects a score counts as found or missed, (N,) bool: those neither crowd nor difficult."""
        return ~(self.crowd | self.difficult)

    @property
    def trainable(self) -> np.ndarray:
        """Which objects a detector is trained on, (N,) bool: those that are counted and have an area."""
        return self.counted & (self.boxes[:, 2:] > self.boxes[:, :2]).all(1)


@dataclass(frozen=True)
class Split:
    """One annotated set of images. `read(i)` gives image i as uint8 (H, W, 3) RGB.

    own_ids: image ids are those that the data set writes (COCO); else the images were only counted.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[Record, ...]
    defects: tuple[Defect, ...]
    read: Callable[[int], np.ndarray]
    own_ids: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: list[int], name: str | None = None) -> Split:
        """The images at `indices`, in that order."""
        read = self.read
        return replace(
            self,
            name=name or self.name,
            records=tuple(self.records[i] for i in indices),
            read=lambda i: read(indices[i]),
        )


class Source(Protocol):
    """A data set that was found. `splits` are those it can load, of train, val, test."""

    @property
    def spec(self) -> str:
        """What the user wrote."""
        ...

    @property
    def format(self) -> str:
        """Name of the file format, or of the embedded set."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of train, val, test that can be loaded."""
        ...

    def load(self, split: str, strict: bool = False) -> Split:
        """Read one split.

        Raises DataError for an unknown split, for files that cannot be handled, and, strict, for any defect.
        """
        ...
