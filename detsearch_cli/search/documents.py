"""What a ledger and the messages of workers must hold, each as it is read back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from detsearch_cli.document import Document
from detsearch_cli.reading import LARGEST

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]


class SamplerRecord(Document):
    """A sampler, its options, and the digests of the files that they name."""

    name: str
    options: dict[str, Any]
    files: dict[str, str]


class StudyDocument(Document):
    """What is fixed when a study begins."""

    identity: dict[str, Any]
    space: dict[str, Any]
    sampler: SamplerRecord
    seed: int
    budget: Count  # 0: the baseline alone
    workers: Positive
    noise_seeds: Positive = 1  # studies of before 0.2 have neither
    races: bool = False


class TrialDocument(Document):
    """The attributes of a trial. metrics may hold NaN, which a worker's detector may have scored."""

    kind: str | None = None
    candidate: dict[str, Any] | None = None
    recipe: str = ""
    recipe_hash: str = ""
    fragment: dict[str, Any] | None = None
    repeat_of: Count | None = None
    continues: Count | None = None
    again_of: Count | None = None
    seed: Count | None = None
    epochs: Positive | None = None
    asked: Count | None = None
    told: Count | None = None
    attempts: Positive = 1
    worker: str | None = None
    seconds: float | None = None
    elapsed: float = 0.0
    reason: str | None = None
    metrics: dict[str, Any] | None = None
    scores: tuple[Annotated[list[float], Field(min_length=2, max_length=2)], ...] = Field((), strict=False)


class Result(Document):
    """result.json: what a worker reports of a trial. outage: what kept it from its work, which is not its fault."""

    seconds: float
    worker: str | None = None
    metrics: dict[str, Any] | None = None
    reason: str | None = None
    trace: str | None = None
    outage: Literal["disk", "data"] | None = None
