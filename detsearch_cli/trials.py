"""What a list of trials says: which have a score, which failed, which is the best. One rule for search and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeGuard, TypeVar

from detsearch_cli.reading import number


class TrialLike(Protocol):
    """What these questions need of a trial.

    candidate: None for the baseline, which may be trained with several seeds. state: running, complete, stopped, failed
    or repeat. value: a fraction, None until it is known; that of a stopped trial belongs to a shorter training. reason:
    why it failed.
    """

    @property
    def number(self) -> int: ...
    @property
    def candidate(self) -> Mapping[str, Any] | None: ...
    @property
    def state(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def reason(self) -> str | None: ...


def scores_in(content: Any) -> list[tuple[int, float | None]]:
    """(epoch, AP) of every evaluation in what scores.json holds, oldest first; AP is None where it is undefined.

    What is no such pair is left out: a power cut may leave an empty file, and its epochs are scored again.
    """
    pairs = content.get("scores") if isinstance(content, dict) else None
    return [
        (pair[0], None if pair[1] is None else number(pair[1]))
        for pair in (pairs if isinstance(pairs, list) else [])
        if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and pair[0] >= 0
    ]


T = TypeVar("T", bound=TrialLike)


def known(value: float | None) -> TypeGuard[float]:
    """True for a finite number."""
    return value is not None and abs(value) < float("inf")  # NaN is smaller than nothing


def failed(trial: TrialLike) -> bool:
    """The training ended without a score."""
    return trial.state == "failed"


def stopped(trial: TrialLike) -> bool:
    """The trial was trained for fewer epochs than the whole."""
    return trial.state == "stopped"


def repeated(trial: TrialLike) -> bool:
    """The candidate had been proposed before: its score comes from the ledger, not from a training."""
    return trial.state == "repeat"


def complete(trial: TrialLike) -> bool:
    """The whole training has a score. A repeat is not meant: what it repeats may have been stopped."""
    return trial.state == "complete" and known(trial.value)


def scored(trials: Sequence[T]) -> list[T]:
    """The complete trials, by number."""
    return sorted(filter(complete, trials), key=lambda t: t.number)


def baseline_scores(trials: Sequence[TrialLike]) -> list[float]:
    """The scores of the baseline, one a seed."""
    return [t.value or 0.0 for t in scored(trials) if t.candidate is None]


def baseline_of(trials: Sequence[T]) -> T | None:
    """The baseline's first trial with the mean over its seeds as value, if it has a score."""
    rows = [t for t in scored(trials) if t.candidate is None]
    if len(rows) < 2:
        return rows[0] if rows else None
    mean = sum(baseline_scores(trials)) / len(rows)
    return replace(rows[0], value=mean)  # type: ignore[type-var]


def best_of(trials: Sequence[T]) -> T | None:
    """The highest score, the baseline's mean among them. Of equals the earliest, so that a tie stays the baseline."""
    rivals = [t for t in scored(trials) if t.candidate is not None]
    baseline = baseline_of(trials)
    rivals += [] if baseline is None else [baseline]
    return max(rivals, key=lambda t: (t.value or 0.0, -t.number), default=None)
