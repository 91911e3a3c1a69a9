"""Reading a study: its configuration, its trials, the best of them, tables for other programs.

Reading takes no lock, so a study can be looked at while its search runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from detsearch_cli.document import checked
from detsearch_cli.errors import DetsearchError, SpaceError, StudyError
from detsearch_cli.files import EXPORT_COLUMNS, finite
from detsearch_cli.search.config import RecordedConfig
from detsearch_cli.search.documents import TrialDocument
from detsearch_cli.search.space import Candidate, Product
from detsearch_cli.search.storage import connect, database_url, display_name, reading_rows
from detsearch_cli.trials import Leader, baseline_of, best_of, known, leader_of

if TYPE_CHECKING:
    import pandas as pd
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

State = Literal["running", "complete", "failed", "repeat", "stopped"]
Score = tuple[int, float]


@dataclass(frozen=True)
class Trial:
    """One trial of a study.

    number: its row in the ledger, 0 the baseline. candidate: None for the baseline. value: AP, higher is
    better; None while running or failed. seconds: the training's own time. reason: why it failed.
    fragment: what the candidate changes in the recipe. epochs: how many it was asked for, None for the whole.
    scores: (epoch, value) on the way, from epoch 1 on, whichever trial trained that epoch.

    A `stopped` trial was asked for at fewer epochs; its value is that at its end. continues: the candidate's
    first trial, in whose folder this one goes on. A `repeat` proposes again what the ledger already answers
    (`repeat_of`); it was not trained. again_of: the trial of the same recipe with the study's own seed; this one has
    another `seed`.
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
    fragment: Mapping[str, Any] = field(default_factory=dict)
    repeat_of: int | None = None
    continues: int | None = None
    again_of: int | None = None
    seed: int | None = None
    epochs: int | None = None
    scores: tuple[Score, ...] = ()
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
        """True for trials that ran or run, beside the baseline's first: none was answered from the ledger."""
        return (self.candidate is not None or self.again_of is not None) and self.repeat_of is None

    @property
    def result(self) -> Path:
        """The file in which its worker reports. A stage that continues has one of its own: after a kill at
        any moment the result of the stage before, in the same folder, cannot be mistaken for it."""
        return self.folder / ("result.json" if self.continues is None else f"result-{self.number:05d}.json")


@dataclass(frozen=True)
class Study:
    """What a ledger holds. storage: the database's URL."""

    name: str
    folder: Path
    storage: str
    config: RecordedConfig
    trials: tuple[Trial, ...]

    @property
    def baseline(self) -> Trial | None:
        """With the mean over its seeds as value."""
        return baseline_of(self.trials) or next((trial for trial in self.trials if trial.baseline), None)

    @property
    def best(self) -> Trial | None:
        """See `trials.best_of`; the baseline where nothing better was found."""
        return best_of(self.trials)

    @property
    def leader(self) -> Leader[Trial] | None:
        return leader_of(self.trials)

    @property
    def all_failed(self) -> bool:
        return all_failed(self.trials)

    def table(self) -> pd.DataFrame:
        """One line a trial: number, state, value, seconds, ..., `param.NAME` and the scalar `metric.NAME`."""
        import pandas as pd

        # without a trial there would be no columns, and an exported table is known by them
        rows = [_flat(trial) for trial in self.trials]
        table = pd.DataFrame(rows or None, columns=None if rows else EXPORT_COLUMNS)
        # numbers of trials, which pandas would make fractions wherever one is missing
        whole = {name: "Int64" for name in WHOLE if name in table and not table[name].isna().all()}
        return table.astype(whole)


WHOLE = ("repeat_of", "continues", "again_of", "seed", "epochs")


def all_failed(trials: Sequence[Trial]) -> bool:
    """True when candidates were trained and not one has a value, whatever the baseline did."""
    ended = [trial for trial in trials if trial.trained and not trial.baseline and trial.state in _ENDED]
    if not ended:
        ended = [trial for trial in trials if trial.baseline and trial.state in _ENDED]
    return bool(ended) and all(trial.state == "failed" for trial in ended)


_ENDED = ("complete", "failed", "stopped")


def open_study(folder: Path, name: str | None = None, storage: str | None = None) -> Study:
    """The study in `folder` (or at the database URL `storage`), read whole.

    name: needed only where a database holds several studies. Raises StudyError.
    """
    url = database_url(folder, storage)
    database = connect(url, create=False)
    with reading_rows(display_name(url)):
        studies = {s.study_name: s for s in database.get_all_studies()}
    if name is None and len(studies) == 1:
        name = next(iter(studies))
    if name not in studies:
        held = ", ".join(sorted(studies)) or "none"
        raise StudyError(
            f"a study must be named by one of {held} in {display_name(url)}, got {name or 'no name'}"
        )
    attrs = studies[name].user_attrs
    if "detsearch" not in attrs:
        raise StudyError(
            f"{name} in {display_name(url)} was not written by detsearch; it cannot be shown or resumed"
        )
    config = RecordedConfig.from_json(attrs["detsearch"], f"{name} in {display_name(url)}")
    trials = read_trials(database, studies[name]._study_id, folder, config.space, display_name(url))
    return Study(name, folder, url, config, tuple(trials))


def list_studies(root: Path, storage: str | None = None) -> list[Study | StudyError]:
    """Every study in `root` and the folders in it, or in the database; unreadable ones as their error."""
    if storage is not None:
        with reading_rows(display_name(storage)):
            names = [s.study_name for s in connect(storage, create=False).get_all_studies()]
        return [_try_open(root / name, name, storage) for name in sorted(names)]
    files = [*root.glob("study.db"), *sorted(root.glob("*/study.db"))]
    return [_try_open(path.parent, None, None) for path in files]


def _try_open(folder: Path, name: str | None, storage: str | None) -> Study | StudyError:
    try:
        return open_study(folder, name, storage)
    except StudyError as error:
        return error
    except DetsearchError as error:  # a disk that refuses: one ledger must not end the list of all
        return StudyError(str(error))


def to_json(study: Study) -> dict[str, Any]:
    """The whole study as plain data without NaN."""
    trials = [
        {
            **_common(trial),
            "params": trial.candidate,
            "fragment": dict(trial.fragment),
            "scores": trial.scores,
            "metrics": dict(trial.metrics),
            "recipe": trial.recipe_yaml,
        }
        for trial in study.trials
    ]
    best, config = study.best, study.config
    head = {
        "name": study.name,
        "sampler": config.sampler.name,
        "sampler_options": dict(config.sampler.options),
        "seed": config.seed,
        "budget": config.budget,
    }
    whole = {**head, "space": config.space_json, "best": best.number if best else None, "trials": trials}
    return dict(finite(whole))


def _common(trial: Trial) -> dict[str, Any]:
    signed = {name: getattr(trial, name) for name in EXPORT_COLUMNS}
    return {
        **signed,  # first, in this order: an exported table is known by its first columns
        "epochs": trial.epochs,
        "reason": trial.reason,
        "repeat_of": trial.repeat_of,
        "continues": trial.continues,
        "again_of": trial.again_of,
        "seed": trial.seed,
        "attempts": trial.attempts,
        "recipe_hash": trial.recipe_hash,
        "folder": str(trial.folder),
        "started": trial.started.isoformat() if trial.started else None,
    }


def _flat(trial: Trial) -> dict[str, Any]:
    flat = _common(trial)
    flat["fragment"] = json.dumps(dict(trial.fragment))
    # what a candidate holds beside numbers and names (a formula's tree) is one cell of JSON
    flat |= {
        f"param.{name}": json.dumps(value) if isinstance(value, (list, dict)) else value
        for name, value in (trial.candidate or {}).items()
    }
    for name, value in trial.metrics.items():
        scalars = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, number in scalars:
            if isinstance(number, (int, float)):
                flat[f"metric.{name}.{inner}".rstrip(".")] = float(number)
    return flat


def read_trials(
    database: BaseStorage, study_id: int, folder: Path, space: Product | None, ledger: str
) -> list[Trial]:
    """All trials of a study, by number; their folders lie under `folder`.

    space: what the candidates must lie in, None where only the method knows it. ledger: its name, for the message.
    Raises StudyError naming the trial and the field that is damaged.
    """
    with reading_rows(ledger):
        rows = database.get_all_trials(study_id)
    trials = [to_trial(row, folder, ledger) for row in rows]
    for number, trial in enumerate(trials):
        why = _damage(trial, number, space)
        if why is not None:
            raise StudyError(f"{_who(trial.number, ledger)} is damaged: {why}; {_REMEDY}")
    return trials


def _damage(trial: Trial, number: int, space: Product | None) -> str | None:
    """What is wrong with the trial in row `number`; None for nothing."""
    if trial.number != number:
        return f"it stands where trial {number} should be"
    for name in ("repeat_of", "continues", "again_of"):
        other = getattr(trial, name)
        if other is not None and other >= number:
            return f"{name} should be an earlier trial, got {other}"
    if trial.state not in ("running", "failed") and not known(trial.value):
        return f"it is {trial.state} without a finite value, got {trial.value}"
    if space is not None and trial.candidate is not None:
        try:
            space.check(trial.candidate)
        except SpaceError as error:
            return str(error)
    return None


def _who(number: int, ledger: str) -> str:
    return f"trial {number} in {ledger}"


_REMEDY = "restore the ledger from a copy, or start another --name"


def to_trial(row: FrozenTrial, folder: Path, ledger: str) -> Trial:
    """Our view of one of Optuna's trials. ledger: its name, for the message. Raises StudyError for a damaged field."""
    kept = checked(row.user_attrs, TrialDocument, _who(row.number, ledger), StudyError, _REMEDY)
    state = _state(row.state.name, kept.repeat_of is not None)
    ended = state != "running"
    place = next(n for n in (kept.continues, kept.repeat_of, row.number) if n is not None)
    return Trial(
        number=row.number,
        candidate=_candidate(row, kept),
        state=state,
        value=row.values[0] if row.values and ended and state != "failed" else None,
        seconds=kept.seconds if ended else None,
        reason=kept.reason if state == "failed" else None,
        folder=trial_folder(folder, place),
        recipe_yaml=kept.recipe,
        metrics=kept.metrics or {},
        recipe_hash=kept.recipe_hash,
        fragment=kept.fragment or {},
        repeat_of=kept.repeat_of,
        continues=kept.continues,
        again_of=kept.again_of,
        seed=kept.seed,
        epochs=kept.epochs,
        scores=tuple((int(epoch), value) for epoch, value in kept.scores),
        attempts=kept.attempts,
        worker=kept.worker,
        started=row.datetime_start,
        asked=kept.asked,
        # attributes are written before the state, so without the state this is not an event yet
        told=kept.told if ended else None,
        elapsed=kept.elapsed if ended else 0.0,
    )


def _state(optuna_state: str, repeat: bool) -> State:
    states: dict[str, State] = {"COMPLETE": "complete", "FAIL": "failed", "PRUNED": "stopped"}
    state = states.get(optuna_state, "running")
    return "repeat" if repeat and state in ("complete", "stopped") else state


def _candidate(row: FrozenTrial, kept: TrialDocument) -> Candidate | None:
    if kept.kind == "baseline":
        return None
    # of a space that is no product
    return dict(row.params) if kept.candidate is None else kept.candidate


def trial_folder(folder: Path, number: int) -> Path:
    """Where trial `number` of the study in `folder` runs."""
    return folder / "trials" / f"{number:05d}"
