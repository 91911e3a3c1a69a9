"""Writing a study: the one place where trials are recorded.

The ledger is an Optuna study. Params hold the candidate; user attributes hold everything else a search needs
to go on: `asked` and `told` number the sampler's events in the order they happened, `recipe`, `recipe_hash`,
`repeat_of`, `attempts`, `worker`, `reason`, `seconds`, `elapsed`, `metrics`. A row is added in one
transaction; its outcome is written attribute by attribute and becomes true with the last write, the state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import StudyError
from detsearch_cli.search.space import Candidate, Space
from detsearch_cli.search.storage import connect, database_url, guarded, shown
from detsearch_cli.search.study import TrialRow, read_rows, to_row

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


@dataclass(frozen=True)
class Frozen:
    """What is fixed when a study begins, because its sampler is rebuilt from it.

    budget: DYCORS shrinks its steps by it and a grid is laid for it, so a study extended by more trials keeps
    the first budget. workers: pySOT's initial design depends on it.
    """

    identity: Mapping[str, Any]
    space: Space
    sampler: str
    seed: int
    budget: int
    workers: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plain = {"sampler": self.sampler, "seed": self.seed, "budget": self.budget, "workers": self.workers}
        kept = {"identity": dict(self.identity), "notes": dict(self.notes), "space": self.space.to_json()}
        return {**plain, **kept}

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Frozen:
        return Frozen(
            kept["identity"],
            Space.from_json(kept["space"]),
            kept["sampler"],
            kept["seed"],
            kept["budget"],
            kept["workers"],
            kept["notes"],
        )


class Ledger:
    """An open ledger and its rows in memory. Only one may be open on a study (see `storage.locked`)."""

    def __init__(self, database: RDBStorage, study_id: int, frozen: Frozen, folder: Path, place: str) -> None:
        self._database, self._study_id = database, study_id
        self.frozen, self.folder, self.place = frozen, folder, place
        with guarded(place):
            self.rows = read_rows(database, study_id, folder)
        self._ids: dict[int, int] = {}
        self._event = 1 + max(
            (e for row in self.rows for e in (row.asked, row.told) if e is not None), default=-1
        )

    def events(self) -> list[tuple[str, TrialRow]]:
        """The sampler's past, in order: ("ask" | "tell" | "fail", row)."""
        past: list[tuple[int, str, TrialRow]] = []
        for row in self.rows:
            if row.asked is not None:
                past.append((row.asked, "ask", row))
            if row.told is not None:
                past.append((row.told, "fail" if row.value is None else "tell", row))
        return [(kind, row) for _, kind, row in sorted(past, key=lambda event: event[0])]

    def add(
        self, candidate: Candidate | None, recipe: str, recipe_hash: str, repeat_of: int | None
    ) -> TrialRow:
        """Record that a trial begins; None is the baseline, which the sampler never hears of."""
        from optuna.trial import TrialState, create_trial

        from detsearch_cli.search.samplers._optuna import distributions

        attrs: dict[str, Any] = {"recipe": recipe, "recipe_hash": recipe_hash, "seed": self.frozen.seed}
        if candidate is None:
            attrs["kind"] = "baseline"
        else:
            attrs["asked"] = self._event
            self._event += 1
        if repeat_of is not None:
            attrs["repeat_of"] = repeat_of
        known = distributions(self.frozen.space) if candidate is not None else {}
        template = create_trial(
            state=TrialState.RUNNING, params=candidate or {}, distributions=known, user_attrs=attrs
        )
        with guarded(self.place):
            trial_id = self._database.create_new_trial(self._study_id, template)
        return self._refresh(trial_id)

    def attempt(self, row: TrialRow, attempts: int) -> TrialRow:
        """Record that the trial is tried again."""
        return self._write(row, {"attempts": attempts}, None)

    def tell(self, row: TrialRow, value: float, **facts: Any) -> TrialRow:
        """Record the trial's value; facts: seconds, elapsed, worker, metrics."""
        if not math.isfinite(value):
            raise ValueError(f"a value must be finite, got {value}")
        return self._write(row, {**facts, **self._tell_event(row)}, value)

    def fail(self, row: TrialRow, reason: str, **facts: Any) -> TrialRow:
        """Record that the trial has no value, and why."""
        return self._write(row, {**facts, "reason": reason, **self._tell_event(row)}, math.nan)

    def _tell_event(self, row: TrialRow) -> dict[str, int]:
        if row.candidate is None:
            return {}
        self._event += 1
        return {"told": self._event - 1}

    def _write(self, row: TrialRow, attrs: Mapping[str, Any], value: float | None) -> TrialRow:
        from optuna.trial import TrialState

        with guarded(self.place):
            trial_id = self._trial_id(row.number)
            for name, content in attrs.items():
                self._database.set_trial_user_attr(trial_id, name, content)
            if value is not None and math.isnan(value):
                self._database.set_trial_state_values(trial_id, TrialState.FAIL)
            elif value is not None:
                self._database.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])
        return self._refresh(trial_id)

    def _trial_id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._database.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._ids[number]

    def _refresh(self, trial_id: int) -> TrialRow:
        with guarded(self.place):
            row = to_row(self._database.get_trial(trial_id), self.folder)
        self._ids[row.number] = trial_id
        self.rows[row.number : row.number + 1] = [row]
        return row

    def close(self) -> None:
        """Let go of the database's connections."""
        self._database.remove_session()
        self._database.engine.dispose()


def exists(folder: Path, storage: str | None) -> bool:
    """False when a search in `folder` would surely begin a new ledger; opens nothing."""
    return storage is not None or (folder / "study.db").exists()


def open_ledger(name: str, folder: Path, storage: str | None, frozen: Frozen) -> Ledger:
    """The study's ledger, created when it does not exist.

    Raises StudyError when it exists and belongs to another search, naming what differs; when it is damaged;
    and when the folder holds trials of a ledger that is gone.
    """
    url = database_url(folder, storage)
    if not exists(folder, storage):
        _refuse_leftovers(folder)
        _create_sqlite(name, folder, frozen)
    database = connect(url, create=storage is not None)
    with guarded(shown(url)):
        studies = {s.study_name: s for s in database.get_all_studies()}
        if storage is None and name not in studies and len(studies) == 1:
            name = next(iter(studies))  # the folder was renamed or the study is called by its folder
        if name not in studies:
            _refuse_leftovers(folder)
            _create_study(database, name, frozen)
            studies = {s.study_name: s for s in database.get_all_studies()}
        study_id, attrs = studies[name]._study_id, studies[name].user_attrs
        if "detsearch" not in attrs:
            if database.get_n_trials(study_id):
                raise StudyError(f"{name} in {shown(url)} was not written by detsearch; use another --name")
            database.set_study_user_attr(study_id, "detsearch", frozen.to_json())
            attrs = {"detsearch": json.loads(json.dumps(frozen.to_json()))}
    kept = attrs["detsearch"]
    _refuse_others(name, kept["identity"], json.loads(json.dumps(frozen.to_json()))["identity"])
    return Ledger(database, study_id, Frozen.from_json(kept), folder, shown(url))


def _create_sqlite(name: str, folder: Path, frozen: Frozen) -> None:
    """A killed creation must not leave half a ledger: write it aside, then rename."""
    partial = folder / ".study.db.partial"
    with guarded(str(folder / "study.db")):
        partial.unlink(missing_ok=True)
        Path(f"{partial}-journal").unlink(missing_ok=True)
        database = connect(f"sqlite:///{partial.absolute()}", create=True)
        _create_study(database, name, frozen)
        database.remove_session()
        database.engine.dispose()
        partial.replace(folder / "study.db")


def _create_study(database: RDBStorage, name: str, frozen: Frozen) -> None:
    from optuna.study import StudyDirection

    study_id = database.create_new_study([StudyDirection.MAXIMIZE], name)
    database.set_study_user_attr(study_id, "detsearch", frozen.to_json())


def _refuse_leftovers(folder: Path) -> None:
    if any((folder / "trials").glob("*")):
        raise StudyError(
            f"{folder} holds trials but their ledger is gone, so nothing says what they are; "
            "move the folder away, or use another --name"
        )


def _refuse_others(name: str, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    different = sorted(k for k in {*kept, *asked} if kept.get(k) != asked.get(k))
    if different:
        changes = "; ".join(f"{k} was {_short(kept.get(k))}, now {_short(asked.get(k))}" for k in different)
        raise StudyError(
            f"study {name} was begun by a different search ({changes}); give this one another --name, "
            f"or go on with that one by `detsearch study resume` and its folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else f"{text[:57]}..."
