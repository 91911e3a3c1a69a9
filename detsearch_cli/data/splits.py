"""Decides which images train, which score candidates, and which only the final evaluation sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from detsearch_cli.data.leaks import trained_on
from detsearch_cli.data.source import load_split
from detsearch_cli.data.types import Source, Split
from detsearch_cli.data.usable import left_out, usable
from detsearch_cli.errors import DataError
from detsearch_cli.schema import Data

HELD_OUT = 0.2


@dataclass(frozen=True)
class Resolved:
    """The splits of one run. `test` is None where the data set has none left; notes tell what was decided."""

    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...]


def holdout(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """(the rest, the held-out part), both in the split's own order.

    A seeded permutation of the image ids decides, so the order of the records does not. Both get at least one
    image. Raises DataError for fewer than two images, or a fraction that is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the fraction to hold out must be between 0 and 1, got {fraction}")
    if len(split) < 2:
        raise DataError(f"holding out needs at least 2 images, split {split.name!r} has {len(split)}")
    order = permutation(split, seed)
    count = min(max(round(len(split) * fraction), 1), len(split) - 1)
    held, rest = sorted(order[:count]), sorted(order[count:])
    return split.take(rest), split.take(held, f"{split.name}, held out")


def subset(split: Split, amount: float, seed: int) -> Split:
    """A seeded choice of images, in the split's own order; a larger one contains the smaller ones.

    amount: an int is a number of images, at most all of them; a float in (0, 1] a part of them, at least one.
    Raises DataError for any other amount.
    """
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise DataError(
                f"a part of the images must be in (0, 1], got {amount}; a whole number counts images"
            )
        count = max(round(len(split) * amount), 1)
    else:
        if amount < 1:
            raise DataError(f"a subset needs at least 1 image, got {amount}")
        count = min(amount, len(split))
    return split.take(sorted(permutation(split, seed)[:count]))


def resolve(data: Data, source: Source) -> Resolved:
    """Load what the recipe asks for. Raises DataError when a split does not exist or cannot be read.

    val scores the candidates. With `val_fraction` it is that part of train, else the split that the recipe names.
    Where that does not exist or is trained on, it is a fifth of train, with a note.

    test is for the final evaluation; a search never sees it. It is the source's test split. Where there is none
    and `val_fraction` is given, it is the source's val split, or a fifth of train that is set aside first. It is
    None where training or val already use it.

    `subset` applies to train alone, after the hold-outs. What cannot be decoded is left out last, so that one broken
    image does not deal the others anew. Strict, images that are scored and trained on raise DataError.
    """
    notes: list[str] = []
    train = load_split(source, data.train, data.strict)
    training, scoring = _names(data.train), set[str]()
    train, test = _set_aside(data, source, train, training, notes)
    fraction = data.val_fraction
    if fraction is None:
        scoring = _names(data.val)
        reason = _why_not(source, data.val, scoring, training)
        if reason:
            fraction, scoring = HELD_OUT, set()
            notes.append(f"{reason}: {HELD_OUT:.0%} of {data.train!r} is held out to score candidates")
    if fraction is None:
        val = load_split(source, data.val, data.strict)
    else:
        train, val = holdout(train, fraction, data.split_seed)
    if data.subset is not None:
        if isinstance(data.subset, int) and data.subset > len(train):
            notes.append(f"a subset of {data.subset} images was asked for, all {len(train)} are used")
        # after the hold-outs, so that val and test are the same images for every subset
        train = subset(train, data.subset, data.split_seed)
    if "test" in source.splits:
        if "test" in training | scoring:
            notes.append("the test split is used before the final evaluation, so there is none left for it")
        else:
            test = load_split(source, "test", data.strict)
    return _checked(Resolved(train, val, test, tuple(notes)), data.strict)


def _checked(found: Resolved, strict: bool) -> Resolved:
    """Without the images that cannot be decoded, and with notes about them and about those trained and scored on."""
    train, val, test = found.train, found.val, found.test
    if not strict:  # else every image was decoded in loading
        train, val, test = usable(train), usable(val), test and usable(test)
    scored = [val] if test is None else [val, test]
    leaks = [said for split in scored if (said := trained_on(train, split))]
    if strict and leaks:
        raise DataError(f"strict: {leaks[0]}; take them out of one split or load without strict")
    return Resolved(train, val, test, (*found.notes, *left_out([train, *scored]), *leaks))


def _set_aside(
    data: Data, source: Source, train: Split, training: set[str], notes: list[str]
) -> tuple[Split, Split | None]:
    """(train, test) of a source without a test split, where `val_fraction` leaves its val split unused."""
    if data.val_fraction is None or "test" in source.splits:
        return train, None
    if "val" in source.splits and "val" not in training:
        return train, load_split(source, "val", data.strict)
    notes.append(f"{source.spec} is not split: {HELD_OUT:.0%} of {data.train!r} is kept for the end")
    # the same seed as for val: without `val_fraction` these images are val, so that run was not trained on them
    return holdout(train, HELD_OUT, data.split_seed)


def _names(split: str) -> set[str]:
    return {part.strip() for part in split.split("+")}


def _why_not(source: Source, val: str, scoring: set[str], training: set[str]) -> str | None:
    """Why the named split cannot score candidates; None when it can. Raises DataError for a misspelt name."""
    unknown = scoring - {"train", "val", "test"}
    if unknown:
        raise DataError(f"data.val must be train, val or test, or some of them joined by +, got {val!r}")
    if scoring & training:
        return f"split {val!r} is trained on"
    missing = scoring - set(source.splits)
    return f"{source.spec} has no split {val!r}" if missing else None


def permutation(split: Split, seed: int) -> list[int]:
    """Rows of `split` in an order that depends on the image ids and the seed alone."""
    by_id = np.argsort([r.image_id for r in split.records], kind="stable")
    return [int(i) for i in by_id[np.random.default_rng(seed).permutation(len(by_id))]]


def fractions_of(total: int, fractions: tuple[float, ...]) -> tuple[int, ...]:
    """How many of `total` images each fraction gets: sums to `total`, largest remainders first."""
    exact = [total * f for f in fractions]
    counts = [math.floor(e) for e in exact]
    for i in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
