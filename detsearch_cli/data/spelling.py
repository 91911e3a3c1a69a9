"""Decides which names of classes mean the same class, in formats that know classes by name alone."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassNames:
    """Class names of a format that has no ids: sorted, spellings merged. `of` maps each name as written."""

    names: tuple[str, ...]
    of: dict[str, int]
    problems: tuple[tuple[str, str, str], ...]  # name as written, detail, handled


def class_names(counts: Counter[str], apart: frozenset[str] = frozenset()) -> ClassNames:
    """Decide the classes from how often each name is written, over ALL splits, so that labels agree.

    Names that differ only in spaces, "_", "-" or Unicode form are one class, spelled as most often. Of names that
    differ in case, too, the rare ones are taken for slips; those used in earnest are classes of their own, as in a
    set of letters, and reported. Names in `apart` are classes exactly as written, without a report.
    A name seen at most once per hundred of a nearly equal one is reported as a likely typo but stays a class: only
    its owner knows.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(_spaced(name).casefold(), []).append(name)
    spelled: dict[str, str] = {}  # name as written -> name of its class
    problems: list[tuple[str, str, str]] = []
    for group in groups.values():
        listed = [name for name in group if name in apart]
        spelled |= {name: name for name in listed}
        own, found = _spellings(Counter({n: counts[n] for n in group if n not in apart}), listed)
        spelled |= own
        problems += found
    total = Counter[str]()
    for name, chosen in spelled.items():
        total[chosen] += counts[name]
    names = tuple(sorted(total))
    problems += _typos({name: n for name, n in total.items() if name not in apart}, total)
    return ClassNames(names, {n: names.index(chosen) for n, chosen in spelled.items()}, tuple(problems))


def alike(names: Sequence[str]) -> bool:
    """Whether some names differ only in case, spaces, "_", "-" or Unicode form."""
    return len({_spaced(name).casefold() for name in names}) < len(names)


RARE = 10
"""A spelling is taken for a slip where another one is used this many times as often, or where it is used once."""


def _spellings(counts: Counter[str], listed: list[str]) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """(class of each name, problems) of names that differ only in spelling; listed: those decided already."""
    variants: dict[str, list[str]] = {}
    for name in counts:
        variants.setdefault(_spaced(name), []).append(name)
    usual = {key: max(names, key=lambda n: (counts[n], n)) for key, names in variants.items()}
    total = {key: sum(counts[n] for n in names) for key, names in variants.items()}
    if not total:
        return {}, []
    most = max(total, key=lambda key: (total[key], key))
    chosen, problems = {}, []
    for key, names in variants.items():
        slip = total[key] * RARE <= total[most] or total[key] == 1 < total[most]
        # one listed name says which class the others of its group belong to; several do not
        own = listed[0] if len(listed) == 1 else usual[most if slip else key]
        for name in names:
            chosen[name] = own
            if name != own:
                detail = f"{name!r} ({counts[name]} boxes) beside {own!r} ({counts[own] or 'listed'})"
                problems.append((name, detail, f"taken as {own!r}"))
            elif own != usual[most]:
                detail = f"{name!r} ({total[key]} boxes) and {usual[most]!r} ({total[most]}) differ in case"
                problems.append((name, detail, "kept as two classes; classes.txt with both says so for good"))
    return chosen, problems


def _spaced(name: str) -> str:
    """The name in Unicode's composed form, with one blank for each run of blanks, "_" and "-"."""
    return re.sub(r"[\s_\-]+", " ", unicodedata.normalize("NFC", name).strip())


def _typos(judged: dict[str, int], total: Counter[str]) -> list[tuple[str, str, str]]:
    problems = []
    for name in sorted(judged):
        others = [n for n in sorted(total) if n != name and total[name] * 100 <= total[n] and len(n) > 3]
        close = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
        if close:
            detail = f"{name!r} ({total[name]} boxes) may be a typo of {close[0]!r} ({total[close[0]]})"
            problems.append((name, detail, "kept as a class of its own"))
    return problems
