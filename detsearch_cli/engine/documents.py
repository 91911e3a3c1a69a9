"""What the files of a run folder must hold, each as it is read back."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from detsearch_cli.document import Document
from detsearch_cli.reading import LARGEST

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Score = float | None
"""A fraction; None where it is undefined, such as the AP of a class without boxes."""


class ClassRow(Document):
    """One class in metrics.json."""

    name: str
    images: Count
    boxes: Count
    AP: Score
    AP50: Score


class OperatingPoint(Document):
    """The score from which on detections have the highest F1."""

    F1: Score
    score: Score


class Metrics(Document):
    """metrics.json: what is read of it. Further keys stay."""

    AP: Score
    coco: dict[str, Score]
    voc: dict[str, Score]
    per_class: list[ClassRow]
    split: str
    val_images: Count
    train_seconds: float
    versions: dict[str, str]
    proposals: dict[str, Score] | None = None
    operating_point: OperatingPoint | None = None  # runs of before have none


Marks = Annotated[list[str], Field(min_length=2, max_length=2)]


class KeptData(Document):
    """data.json: of each image by name, what its pixels and its labels are."""

    train: dict[str, Marks]
    val: dict[str, Marks]


class StepEntry(Document):
    """A line of log.jsonl, one a step: the learning rate and every loss by its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    epoch: Count
    step: Count


class EpochEntry(Document):
    """A line of log.jsonl at the end of an epoch: its score, or what was learned beside the weights."""

    epoch: Count
    AP: Score = None


class Position(Document):
    """Where a training stands, in resume.safetensors. precision: the state of float16's loss scale. stuck, losses: see
    State."""

    step: Count
    seconds: Annotated[float, Field(ge=0)]
    precision: dict[str, Any]
    stuck: Count = 0  # trainings of before have neither
    losses: dict[str, dict[str, float]] = Field(default_factory=dict)


ClassNames = Annotated[list[str], Field(min_length=1)]
"""The classes of a weights file."""
