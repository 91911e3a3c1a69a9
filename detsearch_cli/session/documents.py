"""What comparison.json must hold: the trainings of a comparison, and what came out of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detsearch_cli.document import Document
from detsearch_cli.reading import LARGEST

Count = Annotated[int, Field(ge=0, le=LARGEST)]


class Scores(Document):
    """The score of one training that the page shows, a fraction."""

    AP: float


class ScoredRunRecord(Document):
    """One training of one side."""

    side: str
    seed: Count
    coco: Scores


class DifferenceRecord(Document):
    """A difference with its 95% interval, None where there is none."""

    difference: float
    low: float | None
    high: float | None


class SideRecord(Document):
    """One side against the baseline."""

    over_images: DifferenceRecord
    over_seeds: DifferenceRecord | None


class ComparisonDocument(Document):
    """The whole file, as far as it is read."""

    split: str
    images: Count
    runs: Annotated[list[ScoredRunRecord], Field(min_length=2)]
    comparisons: Annotated[dict[str, SideRecord], Field(min_length=1)]
