"""What a list of trials says: which have a score, which failed, which is the best. One rule for search and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeGuard, TypeVar

from detsearch_cli.reading import number

if TYPE_CHECKING:
    from detsearch_cli.estimates import Estimates, Gain

SURE = 0.8
"""A candidate is announced as better than the baseline where that is at least so probable."""


class TrialLike(Protocol):
    """What these questions need of a trial.

    candidate: None for the baseline, which may be trained with several seeds. state: running, complete, stopped, failed
    or repeat. value: a fraction, None until it is known; that of a stopped trial belongs to a shorter training. reason:
    why it failed. again_of: the number of the trial of the same recipe with the study's own seed; this one has another
    `seed`.
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
    @property
    def seed(self) -> int | None: ...


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


@dataclass(frozen=True)
class Leader(Generic[T]):
    """The candidate to rely on first. trial: its first one, with the mean over its `seeds` as value.

    gain: what is expected of it over the baseline; None where the noise is not measured. failed: further seeds with which
    its training has failed.
    """

    trial: T
    seeds: int
    gain: Gain | None
    failed: int = 0


def estimated(trials: Sequence[T]) -> tuple[list[list[T]], Estimates] | None:
    """The scored trials of each recipe, the baseline's first, and what they say of the recipes' true values.

    None where that is unknown: the baseline or every candidate is without a score, or no recipe has two scores that differ.
    """
    groups = by_candidate(trials)
    own = [group for group in groups if group[0].candidate is None]
    groups = own[:1] + [group for group in groups if group[0].candidate is not None]
    # one without a seed is of a version that trained everything with the study's
    scores = [{-1 if t.seed is None else t.seed: t.value or 0.0 for t in group} for group in groups]
    # equal scores of one recipe, such as AP 0 with every seed, do not tell its noise either
    noisy = any(len(set(by_seed.values())) > 1 for by_seed in scores)
    if not own or len(groups) < 2 or not noisy:
        return None
    from detsearch_cli.estimates import estimate  # numpy and scipy, for which reading trials need not wait

    return groups, estimate(scores)


def leader_of(trials: Sequence[T]) -> Leader[T] | None:
    """The candidate of highest expected value; where the noise is not measured, of highest mean. None without a score.

    Of equals the earliest.
    """
    known_values = estimated(trials)
    if known_values is None:
        groups = [group for group in by_candidate(trials) if group[0].candidate is not None]
        means = [mean_of(group) for group in groups]
        best = max(means, key=lambda t: (t.value or 0.0, -t.number), default=None)
        return None if best is None else Leader(best, len(groups[means.index(best)]), None)
    groups, estimates = known_values
    return _leader(trials, groups[estimates.leader], estimates.gain(estimates.leader))


def _leader(trials: Sequence[T], group: Sequence[T], gain: Gain) -> Leader[T]:
    lost = sum(failed(t) and t.again_of == group[0].number for t in trials)
    return Leader(mean_of(group), len(group), gain, lost)


def gains_of(trials: Sequence[T]) -> list[Leader[T]]:
    """Every candidate with what is expected of it, the highest first; [] where the noise is not measured."""
    known_values = estimated(trials)
    if known_values is None:
        return []
    groups, estimates = known_values
    candidates = [
        _leader(trials, group, estimates.gain(number)) for number, group in enumerate(groups) if number > 0
    ]
    return sorted(candidates, key=lambda c: -c.gain.expected if c.gain else 0.0)


def best_of(trials: Sequence[T]) -> T | None:
    """The leader where it is better than the baseline with a probability of 80%, else the baseline.

    Where the noise is not measured it is the recipe of highest value; of equals the earliest, so that a tie with the
    baseline stays the baseline.
    """
    leader, baseline = leader_of(trials), baseline_of(trials)
    if leader is None or baseline is None:
        return baseline if leader is None else leader.trial
    if leader.gain is not None:
        return leader.trial if leader.gain.better >= SURE else baseline
    return max((leader.trial, baseline), key=lambda t: (t.value or 0.0, -t.number))


def gain_in_words(gain: Gain) -> str:
    """`expected gain +1.2 AP (95%: −0.5 to +3.1), better than the baseline with 87%`."""
    reach = f"{points(gain.low, signed=True)} to {points(gain.high, signed=True)}"
    return (
        f"expected gain {points(gain.expected, signed=True)} AP (95%: {reach}), better than the baseline with "
        f"{percent(gain.better)}"
    )


def percent(probability: float) -> str:
    """`87%`; never 0% or 100%, which nothing is."""
    whole = round(100 * probability)
    return "under 1%" if whole < 1 else "over 99%" if whole > 99 else f"{whole}%"


def points(fraction: float | None, signed: bool = False) -> str:
    """AP in points, `38.1` for .381, as papers print it; more digits where one would hide the sign."""
    if fraction is None or not known(fraction):
        return "–"
    value = 100 * fraction
    value = 0.0 if abs(value) < 0.0005 else value
    digits = 1 if value == 0 or abs(value) >= 0.05 else 2 if abs(value) >= 0.005 else 3
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if signed else text
