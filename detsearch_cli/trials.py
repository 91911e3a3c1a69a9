"""What a list of trials says: which have a score, which failed, which is the best. One rule for search and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, Protocol, TypeGuard, TypeVar

from detsearch_cli.reading import number


class TrialLike(Protocol):
    """What these questions need of a trial.

    candidate: None for the baseline, which may be trained with several seeds. state: running, complete, stopped, failed
    or repeat. value: a fraction, None until it is known; that of a stopped trial belongs to a shorter training. reason:
    why it failed. again_of: the number of the trial of the same recipe with the study's own seed; this one has another.
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
    @property
    def again_of(self) -> int | None: ...


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


def candidates(trials: Sequence[T]) -> list[T]:
    """The scored candidates, each once, by number."""
    return [t for t in scored(trials) if t.candidate is not None and t.again_of is None]


def by_candidate(trials: Sequence[T]) -> list[list[T]]:
    """The scored trials of each recipe, its first seed in front; the baseline's among them. By number of the first."""
    groups: dict[int, list[T]] = {}
    for trial in scored(trials):
        groups.setdefault(trial.number if trial.again_of is None else trial.again_of, []).append(trial)
    return [group for number, group in sorted(groups.items()) if group[0].number == number]


def baseline_scores(trials: Sequence[TrialLike]) -> list[float]:
    """The scores of the baseline, one a seed."""
    return [t.value or 0.0 for t in scored(trials) if t.candidate is None]


def mean_of(group: Sequence[T]) -> T:
    """The first trial of a recipe with the mean over its seeds as value."""
    if len(group) == 1:
        return group[0]
    # exact: three equal scores must have themselves as mean, which no sum of floats grants
    return replace(group[0], value=mean([t.value or 0.0 for t in group]))  # type: ignore[type-var]


def baseline_of(trials: Sequence[T]) -> T | None:
    """The baseline's first trial with the mean over its seeds as value, if it has a score."""
    return next((mean_of(group) for group in by_candidate(trials) if group[0].candidate is None), None)


def best_of(trials: Sequence[T]) -> T | None:
    """The recipe of highest mean over its seeds: the baseline, or one of the candidates with the most seeds.

    Fewer seeds are no equal terms: the highest score of many is luck, which further seeds have taken from the others.
    Of equals the earliest, so that a tie with the baseline stays the baseline.
    """
    groups = by_candidate(trials)
    most = max((len(group) for group in groups if group[0].candidate is not None), default=0)
    rivals = [mean_of(g) for g in groups if g[0].candidate is None or len(g) == most]
    return max(rivals, key=lambda t: (t.value or 0.0, -t.number), default=None)


def points(fraction: float | None, signed: bool = False) -> str:
    """AP in points, `38.1` for .381, as papers print it; more digits where one would hide the sign."""
    if fraction is None or not known(fraction):
        return "–"
    value = 100 * fraction
    digits = 1 if value == 0 or abs(value) >= 0.05 else 2 if abs(value) >= 0.005 else 3
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if signed else text
