"""Scoring what was trained: which split, which weights, which pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detsearch_cli.data.leaks import trained_on
from detsearch_cli.data.source import load_split, open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.data.types import Split
from detsearch_cli.data.usable import left_out, usable
from detsearch_cli.engine import fingerprint
from detsearch_cli.engine.checkpoint import load_detector
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.machine import pick_device
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.errors import DataError, EvaluationError
from detsearch_cli.recipe import Data


def final_split(data: Data) -> Split:
    """The split that no search has seen: test where the set has one, else val."""
    return final_of(resolve(data, open_source(data.source)))


def final_of(data: Resolved) -> Split:
    """Of splits that are loaded, the one that no search has seen."""
    return data.test if data.test is not None else data.val


def why_no_score(split: Split) -> str | None:
    """Why AP is undefined on this split, whatever is detected; None where it can be computed."""
    if any(record.counted.any() for record in split.records):
        return None
    boxes = any(len(record.boxes) for record in split.records)
    kind = "box that is neither crowd nor difficult" if boxes else "box"
    return f"AP cannot be computed on {split.name}: none of its {len(split)} images has a {kind}"


def refuse_unscorable(split: Split) -> None:
    """Raise EvaluationError where AP is undefined on this split: trainings would end without a score."""
    reason = why_no_score(split)
    if reason is not None:
        raise EvaluationError(
            f"{reason}; mend its labels (`detsearch data inspect` lists what is wrong), take it out of the set, or "
            "choose other images by --set data.val"
        )


def open_split(spec: str, split: str | None, pictures: bool = True) -> Split:
    """A split of a data set by name; None: test where it exists, else val, else the only one there is.

    pictures: False where only annotations are needed; a missing picture then counts where its size is known.
    """
    source = open_source(spec)
    if split is None:
        split = next((name for name in ("test", "val", "train") if name in source.splits), "train")
    return load_split(source, split, pictures=pictures)


@dataclass(frozen=True)
class Scored:
    """A split, detections on it, and what a reader of the score must know: images left out, images that were trained
    on, data that changed since."""

    split: Split
    table: DetectionTable
    notes: tuple[str, ...]


def detect_with(
    run_or_file: Path, data: str | None, split: str | None, which: str, device: str
) -> tuple[Split, DetectionTable]:
    """`detect_and_note` without the notes."""
    found = detect_and_note(run_or_file, data, split, which, device)
    return found.split, found.table


def detect_and_note(
    run_or_file: Path, data: str | None, split: str | None, which: str, device: str
) -> Scored:
    """Run the detector of a run folder or weights file on a split, without the images that cannot be decoded.

    Raises EvaluationError when the data's classes are not the detector's: scores would be shifted silently; DataError
    for data that are not there.
    """
    model, recipe, classes = load_detector(run_or_file, which)
    kept = fingerprint.read(run_or_file)
    # beside other data they matter only to a weights file, or a run of an earlier version: what was trained on?
    own = _own_data(recipe.data, needed=data is None) if data is None or kept is None else None
    if own is not None and data is None and split in (None, "val"):
        chosen = own.val if split == "val" or own.test is None else own.test
    else:
        chosen = usable(open_split(data or recipe.data.source, split))
    # the order too: labels are numbers, and another order names the same classes wrongly
    if chosen.classes != classes:
        raise EvaluationError(
            f"{run_or_file} knows the classes {', '.join(classes)}, the data has {', '.join(chosen.classes)}; "
            f"score it on data with the same classes"
        )
    again = changed = None
    if kept is not None:
        again = kept.warning(chosen)
    elif own is not None:
        again = trained_on(own.train, chosen)
    if own is not None and data is None:
        changed = fingerprint.changes(run_or_file, own.train, own.val)
    # after the refusals: moving the detector to a GPU takes longer than all of them
    where = pick_device(device)
    table = detect_split(model.to(where), chosen, recipe, where)
    return Scored(chosen, table, (*left_out([chosen]), *filter(None, (again, changed))))


def _own_data(data: Data, needed: bool) -> Resolved | None:
    """What the detector was trained on; None where it is not there any more and not needed. Raises DataError."""
    try:
        return resolve(data, open_source(data.source))
    except DataError as error:
        if not needed:
            return None
        if Path(data.source.rpartition(":")[2]).expanduser().exists():
            raise
        raise DataError(
            f"the data that it was trained on is not at {data.source} any more; give --data with the place where it is "
            "now"
        ) from error
