"""Reading a study: its trials as rows, the best of them, tables for other programs.

Reading takes no lock, so a study can be looked at while its search runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detsearch_cli.errors import StudyError
from detsearch_cli.files import finite
from detsearch_cli.search.space import Candidate, Space
from detsearch_cli.search.storage import connect, database_url, guarded, shown
from detsearch_cli.trials import best_of

if TYPE_CHECKING:
    import pandas as pd
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

State = Literal["running", "complete", "failed", "repeat"]


@dataclass(frozen=True)
class TrialRow:
    """One trial of a study.

    number: its row in the ledger, 0 the baseline. candidate: None for the baseline. value: AP, higher is
    better; None while running or failed. A `repeat` proposes an earlier candidate again (`repeat_of`): it was
    answered from the ledger and not trained. seconds: the training's own time. reason: why it failed.
    """

    number: int
    candidate: Candidate | None
    state: State
    value: float | None
    seconds: float | None
    reason: str | None
    folder: Path
    recipe_yaml: str
    metrics: Mapping[str, Any]
    recipe_hash: str = ""
    repeat_of: int | None = None
    attempts: int = 1
    worker: str | None = None
    started: datetime | None = None
    asked: int | None = None
    told: int | None = None
    elapsed: float = 0.0

    @property
    def baseline(self) -> bool:
        return self.candidate is None

    @property
    def trained(self) -> bool:
        """True for trials that ran or run: neither the baseline nor answered from the ledger."""
        return self.candidate is not None and self.repeat_of is None


@dataclass(frozen=True)
class Study:
    """What a ledger holds.

    identity: what must be equal to resume it. budget: candidates planned at first. notes: those of its plan.
    """

    name: str
    folder: Path
    storage: str
    identity: Mapping[str, Any]
    space: Space
    sampler: str
    seed: int
    budget: int
    notes: Mapping[str, Any]
    rows: tuple[TrialRow, ...]

    @property
    def baseline(self) -> TrialRow | None:
        return next((row for row in self.rows if row.baseline), None)

    @property
    def best(self) -> TrialRow | None:
        """The highest value, the baseline included: then nothing better was found. Ties go to the earlier."""
        return best_of(self.rows)

    @property
    def best_candidate(self) -> TrialRow | None:
        """The highest value among the candidates alone."""
        return best_of([row for row in self.rows if not row.baseline])

    @property
    def all_failed(self) -> bool:
        return all_failed(self.rows)

    def table(self) -> pd.DataFrame:
        """One line a trial: number, state, value, seconds, ..., `param.NAME` and the scalar `metric.NAME`."""
        import pandas as pd

        return pd.DataFrame([_flat(row) for row in self.rows])


def all_failed(rows: Sequence[TrialRow]) -> bool:
    """True when candidates were trained and not one has a value, whatever the baseline did."""
    ended = [row for row in rows if row.trained and row.state in ("complete", "failed")]
    if not ended:
        ended = [row for row in rows if row.baseline and row.state in ("complete", "failed")]
    return bool(ended) and all(row.state == "failed" for row in ended)


def open_study(folder: Path, name: str | None = None, storage: str | None = None) -> Study:
    """The study in `folder` (or at the database URL `storage`), read whole.

    name: needed only where a database holds several studies. Raises StudyError.
    """
    url = database_url(folder, storage)
    database = connect(url, create=False)
    with guarded(shown(url)):
        found = {s.study_name: s for s in database.get_all_studies()}
        if name is None and len(found) == 1:
            name = next(iter(found))
        if name not in found:
            held = ", ".join(sorted(found)) or "none"
            raise StudyError(
                f"a study must be named by one of {held} in {shown(url)}, got {name or 'no name'}"
            )
        attrs = found[name].user_attrs
        if "detsearch" not in attrs:
            raise StudyError(
                f"{name} in {shown(url)} was not written by detsearch; it cannot be shown or resumed"
            )
        rows = read_rows(database, found[name]._study_id, folder)
    kept = attrs["detsearch"]
    space = Space.from_json(kept["space"])
    return Study(
        name=name,
        folder=folder,
        storage=url,
        identity=kept["identity"],
        space=space,
        sampler=kept["sampler"],
        seed=kept["seed"],
        budget=kept["budget"],
        notes=kept["notes"],
        rows=tuple(rows),
    )


def list_studies(root: Path, storage: str | None = None) -> list[Study | StudyError]:
    """Every study in `root` and the folders in it, or in the database; unreadable ones as their error."""
    if storage is not None:
        with guarded(shown(storage)):
            names = [s.study_name for s in connect(storage, create=False).get_all_studies()]
        return [_try_open(root / name, name, storage) for name in sorted(names)]
    files = [*root.glob("study.db"), *sorted(root.glob("*/study.db"))]
    return [_try_open(path.parent, None, None) for path in files]


def _try_open(folder: Path, name: str | None, storage: str | None) -> Study | StudyError:
    try:
        return open_study(folder, name, storage)
    except StudyError as error:
        return error


def to_json(study: Study) -> dict[str, Any]:
    """The whole study as plain data without NaN."""
    rows = [
        {**_common(row), "params": row.candidate, "metrics": dict(row.metrics), "recipe": row.recipe_yaml}
        for row in study.rows
    ]
    best = study.best
    head = {"name": study.name, "sampler": study.sampler, "seed": study.seed, "budget": study.budget}
    whole = {**head, "space": study.space.to_json(), "best": best.number if best else None, "trials": rows}
    return dict(finite(whole))


def _common(row: TrialRow) -> dict[str, Any]:
    # EXPORT_COLUMNS come first: they sign a table as ours
    return {
        "number": row.number,
        "state": row.state,
        "baseline": row.baseline,
        "value": row.value,
        "seconds": row.seconds,
        "reason": row.reason,
        "repeat_of": row.repeat_of,
        "attempts": row.attempts,
        "recipe_hash": row.recipe_hash,
        "folder": str(row.folder),
        "started": row.started.isoformat() if row.started else None,
    }


def _flat(row: TrialRow) -> dict[str, Any]:
    flat = _common(row)
    flat |= {f"param.{name}": value for name, value in (row.candidate or {}).items()}
    for name, value in row.metrics.items():
        scalars = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, number in scalars:
            if isinstance(number, (int, float)):
                flat[f"metric.{name}.{inner}".rstrip(".")] = float(number)
    return flat


def read_rows(database: BaseStorage, study_id: int, folder: Path) -> list[TrialRow]:
    """All rows of a study, by number; trial folders lie under `folder`."""
    return [to_row(trial, folder) for trial in database.get_all_trials(study_id)]


def to_row(trial: FrozenTrial, folder: Path) -> TrialRow:
    """Our view of one of Optuna's trials."""
    attrs = trial.user_attrs
    repeat_of = attrs.get("repeat_of")
    states: dict[str, State] = {"COMPLETE": "complete", "FAIL": "failed"}
    state = states.get(trial.state.name, "running")
    if state == "complete" and repeat_of is not None:
        state = "repeat"
    return TrialRow(
        number=trial.number,
        candidate=None if attrs.get("kind") == "baseline" else dict(trial.params),
        state=state,
        value=trial.value if state in ("complete", "repeat") else None,
        seconds=attrs.get("seconds") if state != "running" else None,
        reason=attrs.get("reason") if state == "failed" else None,
        folder=trial_folder(folder, trial.number if repeat_of is None else repeat_of),
        recipe_yaml=attrs.get("recipe", ""),
        metrics=attrs.get("metrics") or {},
        recipe_hash=attrs.get("recipe_hash", ""),
        repeat_of=repeat_of,
        attempts=attrs.get("attempts", 1),
        worker=attrs.get("worker"),
        started=trial.datetime_start,
        asked=attrs.get("asked"),
        # written before the state, so without the state it is not an event yet
        told=attrs.get("told") if state != "running" else None,
        elapsed=attrs.get("elapsed", 0.0) if state != "running" else 0.0,
    )


def trial_folder(folder: Path, number: int) -> Path:
    """Where trial `number` of the study in `folder` runs."""
    return folder / "trials" / f"{number:05d}"
