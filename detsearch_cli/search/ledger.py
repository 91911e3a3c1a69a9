"""Writing a study: the one place where trials are recorded.

The ledger is an Optuna study. Params hold the candidate of a product, the attribute `candidate` any other; user
attributes hold everything else that a search needs to go on. A row is added in one transaction; its outcome is
written attribute by attribute and becomes true with the last write, the state.

The sampler's events are numbered in the order in which they happened: `asked` and `told` of each row, and of
each line in the log of refused proposals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import StudyError
from detsearch_cli.search.config import RecordedConfig, StudyConfig, told_differences
from detsearch_cli.search.past import Happening, numbered
from detsearch_cli.search.refusals import REFUSED, Refusal, RefusalLog
from detsearch_cli.search.space import Candidate, Product
from detsearch_cli.search.storage import (
    connect,
    database_url,
    display_name,
    guarded,
    reading_rows,
    sqlite_file,
)
from detsearch_cli.search.study import Score, Trial, read_trials, to_trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import RDBStorage


RECORD, FOLDER = "detsearch", "folder"
"""Attributes of a study: what is fixed when it begins, and, in a shared database, the folder that writes it."""


class Ledger:
    """An open ledger and its trials in memory. Only one may be open on a study (see `storage.sole_writer`)."""

    def __init__(
        self, database: RDBStorage, study_id: int, config: StudyConfig, folder: Path, database_name: str
    ) -> None:
        self._database, self._study_id = database, study_id
        self.config, self.folder, self.database_name = config, folder, database_name
        space = config.space if isinstance(config.space, Product) else None
        self.trials = read_trials(database, study_id, folder, space, database_name)
        with guarded(database_name):
            self.refusals = RefusalLog(folder)
        self._ids: dict[int, int] = {}
        self._next_event = 1 + max(self._numbered(), default=-1)

    def _numbered(self) -> dict[int, Happening]:
        return numbered(self.trials, self.refusals.entries)

    def events(self) -> list[Happening]:
        """The sampler's past, in order. Raises StudyError when a part of it is lost."""
        past = self._numbered()
        lost = next((number for number in range(self._next_event) if number not in past), None)
        if lost is not None:
            # a sampler that misses an event would propose what the uninterrupted search would not have
            raise StudyError(
                f"event {lost} of {self._next_event} of the sampler is neither in {self.database_name} nor in "
                f"{self.folder / REFUSED}; restore that file from a copy, or start another --name"
            )
        return [past[number] for number in range(self._next_event)]

    def add(
        self,
        candidate: Candidate | None,
        recipe_yaml: str,
        recipe_hash: str,
        fragment: Mapping[str, Any],
        seed: int | None = None,
        **attributes: int | None,
    ) -> Trial:
        """Record that a trial begins; None is the baseline, which the sampler never hears of.

        seed: of the training, None for the study's own. attributes: epochs, repeat_of, continues and again_of, where
        they are not None.
        """
        from optuna.trial import TrialState, create_trial

        kept: dict[str, Any] = {
            "recipe": recipe_yaml,
            "recipe_hash": recipe_hash,
            "fragment": dict(fragment),
            "seed": self.config.seed if seed is None else seed,
            **{name: value for name, value in attributes.items() if value is not None},
        }
        params: Candidate = {}
        known: dict[str, BaseDistribution] = {}
        if candidate is None:
            kept["kind"] = "baseline"
        else:
            if attributes.get("again_of") is None:  # what is trained again was not the sampler's idea
                kept["asked"] = self._take_event()
            if isinstance(self.config.space, Product):
                from detsearch_cli.search.samplers._optuna import distributions

                params, known = candidate, distributions(self.config.space)
            else:
                kept["candidate"] = candidate
        row = create_trial(state=TrialState.RUNNING, params=params, distributions=known, user_attrs=kept)
        self._sync_refusals()
        with guarded(self.database_name):
            trial_id = self._database.create_new_trial(self._study_id, row)
        return self._refresh(trial_id)

    def attempt(self, trial: Trial, attempts: int) -> Trial:
        """Record that the trial is tried again."""
        with guarded(self.database_name):
            self._database.set_trial_user_attr(self._trial_id(trial.number), "attempts", attempts)
        return self._refresh(self._trial_id(trial.number))

    def complete(self, trial: Trial, value: float, **facts: Any) -> Trial:
        """Record the value of a whole training; facts: seconds, elapsed, worker, metrics, scores."""
        return self._end(trial, "COMPLETE", value, facts)

    def stop(self, trial: Trial, value: float, **facts: Any) -> Trial:
        """Record the value of a training of fewer epochs."""
        return self._end(trial, "PRUNED", value, facts)

    def fail(self, trial: Trial, reason: str, **facts: Any) -> Trial:
        """Record that the trial has no value, and why."""
        return self._end(trial, "FAIL", None, {**facts, "reason": reason})

    def refuse(self, candidate: Candidate, epochs: int | None, reason: str) -> None:
        """Record that a proposal was refused."""
        asked, told = self._take_event(), self._take_event()
        self.refusals.append(Refusal(asked, told, candidate, epochs, reason))

    def _take_event(self) -> int:
        self._next_event += 1
        return self._next_event - 1

    def _end(self, trial: Trial, state: str, value: float | None, facts: Mapping[str, Any]) -> Trial:
        from optuna.trial import TrialState

        if value is not None and not math.isfinite(value):
            raise ValueError(f"a value must be finite, got {value}")
        attributes = dict(facts)
        if self._is_event(trial, value):
            attributes["told"] = self._take_event()
        self._sync_refusals()
        with guarded(self.database_name):
            trial_id = self._trial_id(trial.number)
            self._keep_scores(trial_id, attributes.get("scores", ()))
            for name, content in attributes.items():
                self._database.set_trial_user_attr(trial_id, name, content)
            # last: a kill before it leaves the trial running, and its result is read again
            values = None if value is None else [value]
            self._database.set_trial_state_values(trial_id, TrialState[state], values)
        return self._refresh(trial_id)

    def _is_event(self, trial: Trial, value: float | None) -> bool:
        """Whether the sampler hears of the outcome: see `outcome`."""
        if trial.candidate is not None:
            return trial.again_of is None or value is not None
        baselines = [other for other in self.trials if other.baseline]
        # the last of several, whose outcome may be a failure: then the others tell the noise
        return len(baselines) == self.config.noise_seeds > 1 and all(
            other.number == trial.number or other.state != "running" for other in baselines
        )

    def _sync_refusals(self) -> None:
        """Called before a row gets an event: a power cut keeps the row, which the database syncs. Were refusals
        of lower numbers lost with the page cache, the sampler could not be replayed."""
        self.refusals.sync()

    def _keep_scores(self, trial_id: int, scores: Sequence[Score]) -> None:
        """As Optuna's intermediate values too, which its plots show."""
        for epoch, value in scores:
            self._database.set_trial_intermediate_value(trial_id, epoch, value)

    def _trial_id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._database.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._ids[number]

    def _refresh(self, trial_id: int) -> Trial:
        with guarded(self.database_name):
            trial = to_trial(self._database.get_trial(trial_id), self.folder, self.database_name)
        self._ids[trial.number] = trial_id
        self.trials[trial.number : trial.number + 1] = [trial]
        return trial

    def close(self) -> None:
        """Let go of the log and of the database's connections."""
        self.refusals.close()
        self._database.remove_session()
        self._database.engine.dispose()


def exists(folder: Path, storage: str | None) -> bool:
    """False when a search in `folder` would surely begin a new ledger; opens nothing."""
    return storage is not None or (folder / "study.db").exists()


def look(name: str, folder: Path, storage: str, config: StudyConfig) -> None:
    """Raises what `open_ledger` would raise for a study that a shared database holds; creates and changes nothing."""
    file = sqlite_file(storage)
    if file is not None and not file.exists():
        return
    database = connect(storage, create=False)
    with reading_rows(display_name(storage)):
        study = next((s for s in database.get_all_studies() if s.study_name == name), None)
    if study is not None and RECORD in study.user_attrs:
        kept = RecordedConfig.from_json(study.user_attrs[RECORD], f"{name} in {display_name(storage)}")
        home = _home(study.user_attrs, folder)
        _refuse_another(home, kept, RecordedConfig.from_json(config.to_json(), name))
        if home != folder:
            raise StudyError(
                f"the study {name} in {display_name(storage)} belongs to the folder {home}, and only one folder may "
                f"write it; go on with it by `detsearch study resume {home}`, or use another --name"
            )


def _home(attributes: Mapping[str, Any], folder: Path) -> Path:
    """The folder that a study in a shared database belongs to: this one, unless another is recorded and still there."""
    recorded = attributes.get(FOLDER)
    if not isinstance(recorded, str) or Path(recorded) == folder.absolute() or not Path(recorded).exists():
        return folder  # it was moved, or this is the first
    return Path(recorded)


def open_ledger(name: str, folder: Path, storage: str | None, config: StudyConfig) -> Ledger:
    """The study's ledger, created when it does not exist.

    Raises StudyError when it exists and belongs to another search, naming what differs; when it is damaged;
    and when the folder holds trials of a ledger that is gone.
    """
    url = database_url(folder, storage)
    if not exists(folder, storage):
        _refuse_leftovers(folder)
        _create_sqlite(name, folder, config)
    database = connect(url, create=storage is not None)
    with reading_rows(display_name(url)):
        studies = {s.study_name: s for s in database.get_all_studies()}
    with guarded(display_name(url)):
        if storage is None and name not in studies and len(studies) == 1:
            name = next(iter(studies))  # the folder was renamed or the study is called by its folder
        if name not in studies:
            _refuse_leftovers(folder)
            _create_study(database, name, config)
            studies = {s.study_name: s for s in database.get_all_studies()}
        study_id, attributes = studies[name]._study_id, studies[name].user_attrs
        if RECORD not in attributes:
            if database.get_n_trials(study_id):
                raise StudyError(
                    f"{name} in {display_name(url)} was not written by detsearch; use another --name"
                )
            # a kill between the two writes of _create_study left it without
            database.set_study_user_attr(study_id, RECORD, config.to_json())
            attributes = {RECORD: config.to_json()}
    kept = RecordedConfig.from_json(attributes[RECORD], f"{name} in {display_name(url)}")
    _refuse_another(folder, kept, RecordedConfig.from_json(config.to_json(), name))
    # the sampler was built for the first budget and the first number of workers, so it is rebuilt for these; and what
    # the baseline's seeds have told is known, and was acted on
    begun = replace(
        config,
        budget=kept.budget,
        workers=kept.workers,
        noise_seeds=kept.noise_seeds,
        races=kept.races,
    )
    if storage is not None:
        look(name, folder, storage, config)  # again: another search may have begun it since the caller looked
        database.set_study_user_attr(study_id, FOLDER, str(folder.absolute()))
    return Ledger(database, study_id, begun, folder, display_name(url))


def _create_sqlite(name: str, folder: Path, config: StudyConfig) -> None:
    """A killed creation must not leave half a ledger: write it aside, then rename."""
    partial = folder / ".study.db.partial"
    with guarded(str(folder / "study.db")):
        # both names are ours alone, in a folder that was claimed: what a killed creation left
        partial.unlink(missing_ok=True)
        Path(f"{partial}-journal").unlink(missing_ok=True)
        database = connect(f"sqlite:///{partial.absolute()}", create=True)
        _create_study(database, name, config)
        database.remove_session()
        database.engine.dispose()
        partial.replace(folder / "study.db")  # only called where there is none, by the folder's only writer


def _create_study(database: RDBStorage, name: str, config: StudyConfig) -> None:
    from optuna.study import StudyDirection

    study_id = database.create_new_study([StudyDirection.MAXIMIZE], name)
    database.set_study_user_attr(study_id, RECORD, config.to_json())


def _refuse_leftovers(folder: Path) -> None:
    if any((folder / "trials").glob("*")):
        raise StudyError(
            f"{folder} holds trials but their ledger is gone, so nothing says what they are; "
            "move the folder away, or use another --name"
        )


def _refuse_another(folder: Path, there: RecordedConfig, here: RecordedConfig) -> None:
    changes = told_differences(there, here)
    if changes is not None:
        raise StudyError(
            f"{folder} holds another search ({changes}); give this one another --name, or go on with "
            f"that one by `detsearch study resume {folder}`"
        )
