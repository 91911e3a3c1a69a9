"""Cheap stand-ins for training, run by real workers. AP depends on the recipe text alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from detsearch_cli.errors import DataLost


def recipe(candidate: dict[str, Any] | None) -> str:
    """A recipe as JSON, which is YAML."""
    return json.dumps({"assign": candidate}, sort_keys=True)


def score(recipe_yaml: str) -> float:
    """Concave with its maximum .5 where every number is 9, and .005 more or less by the seed."""
    content = json.loads(recipe_yaml)
    candidate = content["assign"] or {"a": 2}
    numbers = [v for v in candidate.values() if not isinstance(v, str)]
    luck = (content["seed"] * 37 % 11 - 5) / 1000 if "seed" in content else 0.0  # without: the search's own
    return 0.5 + luck - sum((v - 9) ** 2 for v in numbers) / 1000


def _count(folder: str) -> int:
    """Notes that the trial was begun; returns how often it has been."""
    path = Path(folder) / "begun"
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().splitlines())


def quick(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    _count(folder)
    return {
        "AP": score(recipe_yaml),
        "coco": {"AP50": 0.7, "APs": float("nan")},
        "per_class": [{"name": "a"}],
    }


def short(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """About a tenth of a second, in steps, so that a kill falls in the middle."""
    _count(folder)
    for _ in range(8):
        time.sleep(0.01)
    return {"AP": score(recipe_yaml)}


def uneven(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Takes 0 to 0.2 s, never twice the same."""
    _count(folder)
    time.sleep(int.from_bytes(os.urandom(1)) / 255 * 0.2)
    return {"AP": score(recipe_yaml)}


def failing(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Candidates with an odd first number raise, those with 4 return NaN."""
    candidate = json.loads(recipe_yaml)["assign"]
    first = next(iter(candidate.values())) if candidate else 0
    if first % 2:
        raise ValueError(f"bad number {first}\nand a second line")
    return {"AP": float("nan") if first == 4 else score(recipe_yaml)}


def always_failing(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    raise RuntimeError("CUDA error: nothing works")


def dying_once(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Trial 2 kills its worker the first time."""
    if folder.endswith("00002") and _count(folder) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"AP": score(recipe_yaml)}


def dying(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Trial 2 always kills its worker."""
    if folder.endswith("00002"):
        _count(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    return {"AP": score(recipe_yaml)}


def full_disk(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Trial 2 finds the disk full the first time."""
    if folder.endswith("00002") and _count(folder) == 1:
        raise OSError(28, "No space left on device")
    return {"AP": score(recipe_yaml)}


def needing_data(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Finds the data gone while there is a file `data-are-gone` beside the study."""
    if (Path(folder).parents[2] / "data-are-gone").exists():
        raise DataLost("no such folder")
    return quick(recipe_yaml, folder, epochs)


def endless(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Notes Ctrl-C, as the engine does by a checkpoint; goes on quickly when called again."""
    if _count(folder) > 1 or not folder.endswith("00002"):
        return {"AP": score(recipe_yaml)}
    try:
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        (Path(folder) / "checkpoint").touch()
        raise


WHOLE = 9


def staged(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Trains epoch by epoch from its checkpoint, as the engine does: AP grows towards the recipe's score.

    The file `trained` has a line for each epoch ever trained, so that nothing trained twice goes unseen.
    """
    trial = Path(folder)
    done = trial / "checkpoint"
    last = int(done.read_text()) if done.exists() else 0
    scores = json.loads((trial / "scores.json").read_text())["scores"] if last else []
    value = score(recipe_yaml) * last / WHOLE
    for epoch in range(last + 1, (epochs or WHOLE) + 1):
        time.sleep(0.01)
        with (trial / "trained").open("a") as file:
            file.write(f"{epoch}\n")
        value = score(recipe_yaml) * epoch / WHOLE
        scores = [*scores[: epoch - 1], [epoch, value]]
        for name, text in (("scores.json", json.dumps({"scores": scores})), ("checkpoint", str(epoch))):
            (trial / f"{name}.new").write_text(text)
            (trial / f"{name}.new").replace(trial / name)
    return {"AP": value, "epochs": epochs or WHOLE, "stopped": epochs is not None}


def failing_later(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """Odd first numbers raise as soon as they are to be trained beyond epoch 1."""
    first = next(iter((json.loads(recipe_yaml)["assign"] or {"a": 0}).values()))
    if first % 2 and epochs != 1:
        raise ValueError("fell apart")
    return staged(recipe_yaml, folder, epochs)
