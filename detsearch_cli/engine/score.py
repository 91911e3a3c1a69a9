"""Scoring what was trained: which split, which weights, which pictures."""

from __future__ import annotations

from pathlib import Path

from detsearch_cli.data.source import load_split, open_source
from detsearch_cli.data.splits import Resolved, resolve
from detsearch_cli.data.types import Split
from detsearch_cli.engine.checkpoint import load_detector
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.machine import pick_device
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.errors import EvaluationError
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


def detect_with(
    run_or_file: Path, data: str | None, split: str | None, which: str, device: str
) -> tuple[Split, DetectionTable]:
    """Run the detector of a run folder or weights file on a split.

    Raises EvaluationError when the data's classes are not the detector's: scores would be shifted silently.
    """
    model, recipe, classes = load_detector(run_or_file, which)
    if split is None and data is None:
        chosen = final_split(recipe.data)
    elif split == "val" and data is None:
        chosen = resolve(recipe.data, open_source(recipe.data.source)).val
    else:
        chosen = open_split(data or recipe.data.source, split)
    # the order too: labels are numbers, and another order names the same classes wrongly
    if chosen.classes != classes:
        raise EvaluationError(
            f"{run_or_file} knows the classes {', '.join(classes)}, the data has {', '.join(chosen.classes)}; "
            f"score it on data with the same classes"
        )
    # after the refusals: moving the detector to a GPU takes longer than all of them
    where = pick_device(device)
    return chosen, detect_split(model.to(where), chosen, recipe, where)
