"""What a search may claim, in one sentence: an improvement only with an interval that excludes zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from detsearch_cli.trials import (
    SURE,
    Leader,
    TrialLike,
    baseline_of,
    best_of,
    candidates,
    failed,
    gain_in_words,
    known,
    leader_of,
    percent,
    points,
)
from detsearch_cli.verdicts import verdict

UNLEARNED = 0.01  # a detector below this AP is still at the start of its training
Kind = Literal["improved", "worse", "noise", "unproven", "same", "alone", "pending", "failed"]


@dataclass(frozen=True)
class SeedComparison:
    """Baseline and searched recipe, trained with the same seeds, on a split that the search never used.

    All values are fractions. baseline, searched: one score a seed, in the order of `seeds`. low, high: 95% interval of the
    mean difference, None where there is none. how: how the interval was computed, for the reader. side: what was tested,
    `trial 7` for a candidate that the search did not call better.
    """

    seeds: Sequence[int]
    baseline: Sequence[float]
    searched: Sequence[float]
    difference: float
    low: float | None
    high: float | None
    how: str
    split: str = "test"
    images: int | None = None
    side: str = "searched"
    metric: str = "AP"

    def __post_init__(self) -> None:
        if not len(self.seeds) == len(self.baseline) == len(self.searched) > 0:
            raise ValueError(
                "a comparison needs one score a seed for both recipes, got "
                f"{len(self.seeds)} seeds, {len(self.baseline)} and {len(self.searched)} scores"
            )

    @property
    def differences(self) -> list[float]:
        """Searched minus baseline for every seed."""
        return [s - b for b, s in zip(self.baseline, self.searched, strict=True)]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The interval, or None when it is missing or not finite."""
        if self.low is None or self.high is None or not (known(self.low) and known(self.high)):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Claim:
    """kind decides the colour; headline is the claim; detail says what it rests on and what it does not."""

    kind: Kind
    headline: str
    detail: str


def judge(
    rows: Sequence[TrialLike], comparison: SeedComparison | None, split: str, metric: str = "AP"
) -> Claim:
    """The outcome of a search in words. split: where candidates were scored, such as "val (86 images)"."""
    best, baseline = best_of(rows), baseline_of(rows)
    if best is None:
        return _without_scores(rows)
    own = candidates(rows)
    leader = leader_of(rows)
    if best.candidate is None and (comparison is None or comparison.side == "searched"):
        return _baseline_won(best, own, leader, split, metric)
    if comparison is not None:
        return _compared(comparison)
    if baseline is None:
        return Claim(
            "alone",
            f"Best candidate: {metric} {points(best.value)}, with no baseline to compare",
            f"Trial {best.number} scored highest of {len(own)} on {split}, but the baseline has no "
            "score, so whether this is an improvement is unknown.",
        )
    if leader is not None and leader.gain is not None:
        gain = leader.gain
        return Claim(
            "unproven",
            f"A candidate is expected to gain {points(gain.expected, signed=True)} {metric} over the baseline",
            f"Trial {leader.trial.number} scored {metric} {points(best.value)} on {split}, the mean over "
            f"{leader.seeds} seeds, the baseline {points(baseline.value)}: {gain_in_words(gain)}. This is not yet an "
            "improvement: train both again with several new seeds and compare them on data that the search has not seen.",
        )
    return Claim(
        "unproven",
        f"A candidate scored {metric} {points(best.value)} in the search, the baseline "
        f"{points(baseline.value)}",
        f"Trial {best.number} is the highest of {len(own)} candidates on {split}. The highest of many "
        "noisy scores is flattering by construction, so this is not yet an improvement: train both again "
        "with several seeds and compare them on data that the search has not seen.",
    )


def _without_scores(rows: Sequence[TrialLike]) -> Claim:
    broken = sum(map(failed, rows))
    if broken and broken == len(rows):
        all_of = "The only trial failed" if broken == 1 else f"All {broken} trials failed"
        return Claim("failed", all_of, "Nothing was measured. The reasons are in the table of trials.")
    detail = f"{broken} of {len(rows)} trials failed so far." if broken else "Nothing was measured so far."
    return Claim("pending", "No trial has finished yet", detail)


def _baseline_won(
    baseline: TrialLike, own: Sequence[TrialLike], leader: Leader[Any] | None, split: str, metric: str
) -> Claim:
    if not own:
        return Claim(
            "pending",
            f"Only the baseline has a score: {metric} {points(baseline.value)}",
            f"No candidate has finished on {split}, so there is nothing to compare.",
        )
    if leader is not None and leader.gain is not None:
        return Claim(
            "same",
            "Nothing better than the baseline was found",
            f"Of {len(own)} candidates on {split}, trial {leader.trial.number} leads: {gain_in_words(leader.gain)}. "
            f"Less than {percent(SURE)} is not enough: keep the baseline, or test that trial.",
        )
    highest = max(r.value or 0.0 for r in own)
    tried = "The one candidate" if len(own) == 1 else f"The best of {len(own)} candidates"
    reach = "tied with" if highest == baseline.value else "stayed below"
    return Claim(
        "same",
        "Nothing better than the baseline was found",
        f"{tried} reached {metric} {points(highest)} on {split} and {reach} the baseline's "
        f"{points(baseline.value)}. Keep the baseline.",
    )


def _compared(c: SeedComparison) -> Claim:
    tested = "" if c.side == "searched" else f"{_upper(c.side)}, which the search did not call better: "
    difference = tested + points(c.difference, signed=True)
    trainings = "one training each" if len(c.seeds) == 1 else f"{len(c.seeds)} seeds each"
    images = f", {c.images} images" if c.images else ""
    base = f"{c.split} split{images}, which the search never used; {trainings}; {c.how}."
    if len(c.seeds) == 1:
        base += " With one training each the interval covers the choice of images, not the luck of a seed."
    if c.bounds is None:
        headline = f"{difference} {c.metric} on the {c.split} split, without an interval"
        return Claim("unproven", headline, f"No improvement is claimed without an interval. {_upper(base)}")
    low, high = c.bounds
    found = verdict(low, high)
    reach = f"95% interval {points(low, True)} to {points(high, True)}"
    if found == "better":
        if max(c.baseline) < UNLEARNED:
            base += (
                f" The baseline has learned next to nothing ({c.metric} {points(max(c.baseline))} at best), so "
                "this compares the start of two trainings: train longer before relying on it."
            )
        return Claim("improved", f"{difference} {c.metric} over the baseline ({reach})", _upper(base))
    if found == "worse":
        detail = f"The search score did not carry over: keep the baseline. {_upper(base)}"
        return Claim("worse", f"{difference} {c.metric}: worse than the baseline ({reach})", detail)
    detail = f"The {reach} contains 0, so no improvement is claimed. {_upper(base)}"
    return Claim("noise", f"{difference} {c.metric}: within noise", detail)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
