"""What a study's folder holds: how its search was run, its ledger, what it has found. Reading changes nothing.

What is fixed when a study begins is kept once, in its ledger (search/config.py). How it is run may change each time
and is kept in search.json, the first file of the study's folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, takewhile
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from detsearch_cli import reading
from detsearch_cli.errors import DetsearchError, RecipeError, StudyError
from detsearch_cli.files import SIGNATURE
from detsearch_cli.fragments import differences, shown
from detsearch_cli.option import LARGEST_SEED, MOST_JOBS, MOST_MINUTES, MOST_NOISE_SEEDS, MOST_TRIALS
from detsearch_cli.trials import gain_in_words, points

if TYPE_CHECKING:
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.search.study import Study, Trial
    from detsearch_cli.trials import Leader

SETTINGS, BEST, LEDGER = "search.json", "best.yaml", "study.db"


@dataclass(frozen=True)
class Settings:
    """How a search is run; none of it decides which candidates are proposed first.

    trials: trainings beside the baseline's first. noise_seeds: trainings of the baseline, each with another seed; 1: the
    noise is not measured. races: leaders are trained again with further seeds (search/racing.py). stops: the search ends
    early where nothing can overtake the best any more (search/stopping.py). time_budget: seconds over all resumptions.
    storage: database URL, None for a file in the folder. runtime: that section of the recipe, where and how fast a training
    runs. command: as it was typed.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "allow_inf_nan": False,
        "extra": "forbid",
    }  # of search.json
    name: str
    storage: str | None = None
    trials: int = 100
    noise_seeds: int = 1
    races: bool = False
    stops: bool = False
    time_budget: float | None = None
    jobs: int = 1
    executor: str = "local"
    runtime: Mapping[str, Any] | None = None
    command: str = ""

    def __post_init__(self) -> None:
        for name, most in (("trials", MOST_TRIALS), ("jobs", MOST_JOBS)):
            if not 1 <= getattr(self, name) <= most:
                raise StudyError(f"a search needs 1 to {most} {name}, got {shown(getattr(self, name))}")
        if not 1 <= self.noise_seeds <= MOST_NOISE_SEEDS:
            raise StudyError(
                f"the baseline is trained with 1 to {MOST_NOISE_SEEDS} seeds, got {shown(self.noise_seeds)}"
            )
        if self.time_budget is not None and not 0 <= self.time_budget <= 60 * MOST_MINUTES:
            raise StudyError(
                f"a time budget is 0 to {MOST_MINUTES} minutes, got {shown(self.time_budget)} seconds"
            )


ENOUGH_TRIALS = 10


def noise_seeds_of(trials: int, given: int | None) -> int:
    """Trainings of the baseline where a user says nothing: 3, but one where two more would be much of a short search."""
    if given is not None:
        return given
    return 3 if trials >= ENOUGH_TRIALS else 1


def races_of(repeats: str, noise_seeds: int) -> bool:
    """Whether leaders are trained again: `auto` where the noise is measured, which tells who is near the leader.

    Raises StudyError for what is neither auto nor 1.
    """
    if repeats not in ("auto", "1"):
        raise StudyError(f"--repeats is auto or 1, got {shown(repeats)}")
    return repeats == "auto" and noise_seeds > 1


def read_settings(folder: Path) -> Settings:
    """How the search in this folder was last run. Raises StudyError."""
    from detsearch_cli.document import checked

    path = folder / SETTINGS
    if not path.exists():
        raise StudyError(f"{folder} is no study: it holds no {SETTINGS}; see `detsearch study list`")
    remedy = "give the search command again, which writes it anew"
    content = reading.read_json(path, StudyError, remedy)
    if not isinstance(content, dict) or content.pop(SIGNATURE, None) != "search":
        raise StudyError(f"{path} is damaged: it does not say that it is of a search; {remedy}")
    content.setdefault("noise_seeds", 1)  # a search of before 0.2 goes on as it was
    content.setdefault("races", False)
    content.setdefault("stops", False)
    missing = [f.name for f in fields(Settings) if f.name not in content]
    if missing:  # a default in its place would go on with another search than was begun
        raise StudyError(f"{path} is damaged: {missing[0]} is missing; {remedy}")
    try:
        return checked(content, Settings, path, StudyError, remedy)
    except StudyError as error:
        told = str(error)
        raise StudyError(
            told if told.startswith(str(path)) else f"{path} is damaged: {told}; {remedy}"
        ) from error


def study_of(folder: Path) -> Study:
    """The ledger of a study's folder, read whole. Raises StudyError."""
    from detsearch_cli.search.study import open_study

    settings = read_settings(folder)
    return open_study(folder, settings.name, settings.storage)


def studies_elsewhere(root: Path) -> list[Study | StudyError]:
    """The studies in `root` whose ledgers are in a shared database; one that cannot be read as its error."""
    studies: list[Study | StudyError] = []
    for path in sorted(root.glob(f"*/{SETTINGS}")):
        if not (path.parent / LEDGER).exists():
            try:
                studies.append(study_of(path.parent))
            except DetsearchError as error:  # of any kind: it must not end the list of all
                studies.append(StudyError(str(error)))
    return studies


def recipe_of(study: Study, settings: Settings) -> Recipe:
    """The recipe that a study's candidates were laid over. Raises StudyError where this version knows it no more."""
    from detsearch_cli.recipe import validate

    try:
        return validate({**identity_of(study)["recipe"], "runtime": dict(settings.runtime or {})})
    except RecipeError as error:
        raise StudyError(
            f"the recipe of {study.folder} is damaged or of another version: {error}; restore {LEDGER} and "
            f"{SETTINGS} from a copy, or start another --name"
        ) from error


def identity_of(study: Study) -> Mapping[str, Any]:
    """method, options and recipe of a study. Raises StudyError for a damaged record."""
    identity = study.config.identity
    for key, kind in (("method", str), ("options", dict), ("recipe", dict)):
        if not isinstance(identity.get(key), kind):
            raise StudyError(
                f"the record of the study {study.folder} is damaged: identity.{key} should be a {kind.__name__}, got "
                f"{identity.get(key)!r}; restore {LEDGER} from a copy, or start another --name"
            )
    return identity


def compared(folders: Sequence[Path]) -> Comparison:
    """Several searches of one method for one recipe, by their samplers. Raises StudyError where they are of different ones.

    Searches of one sampler count up to the length of the shortest of all; their seeds may differ.
    """
    twice = [
        folder
        for number, folder in enumerate(folders)
        if folder.resolve() in {f.resolve() for f in folders[:number]}
    ]
    if twice:
        raise StudyError(f"{twice[0]} was given twice; name every search once")
    studies = [study_of(folder) for folder in folders]
    first = _without_seed(studies[0])
    for folder, study in zip(folders[1:], studies[1:], strict=True):
        told = differences(_without_seed(study), first)
        if told:
            raise StudyError(
                f"{folder} and {folders[0]} did not search the same: {'; '.join(told[:3])}; compare studies that differ in "
                "--sampler and --seed alone"
            )
    seen = [best_so_far(study.trials) for study in studies]
    empty = next((folder for folder, values in zip(folders, seen, strict=True) if not values), None)
    if empty is not None:
        raise StudyError(f"no candidate of {empty} has a score yet; see `detsearch study show {empty}`")
    length, by_sampler = min(map(len, seen)), defaultdict(list)
    for study, values in zip(studies, seen, strict=True):
        by_sampler[study.config.sampler.name].append(values[:length])
    own = [
        study.baseline.value
        for study in studies
        if study.baseline is not None and study.baseline.value is not None
    ]
    return Comparison(dict(by_sampler), fmean(own) if own else None)


@dataclass(frozen=True)
class Comparison:
    """Of each sampler its searches: the highest score after each candidate. baseline: mean score of the recipe as given."""

    searches: Mapping[str, Sequence[Sequence[float]]]
    baseline: float | None


def best_so_far(trials: Sequence[Trial]) -> list[float]:
    """The highest score after each candidate that was trained, up to the first that is under way.

    A candidate that failed counts as 0; nothing where none has a score.
    """
    own = [t for t in trials if t.candidate is not None and t.repeat_of is None and t.again_of is None]
    ended = list(takewhile(lambda trial: trial.state != "running", own))
    if not any(trial.state == "complete" for trial in ended):
        return []
    return list(accumulate((trial.value or 0.0 for trial in ended), max))


def _without_seed(study: Study) -> dict[str, Any]:
    identity = identity_of(study)
    return {**identity, "recipe": {key: value for key, value in identity["recipe"].items() if key != "seed"}}


def label(trial: Trial) -> str:
    """`baseline`, `trial 7`, or of either with another seed `trial 7, seed 1`."""
    if trial.again_of is None:
        return "baseline" if trial.baseline else f"trial {trial.number}"
    return f"{'baseline' if trial.baseline else f'trial {trial.again_of}'}, seed {trial.seed}"


def standing(leader: Leader[Trial]) -> str:
    """`trial 7, AP 33.8 over 4 seeds, expected gain ...`."""
    seeds = "1 seed" if leader.seeds == 1 else f"{leader.seeds} seeds"
    told = f"{label(leader.trial)}, AP {points(leader.trial.value)} over {seeds}"
    if leader.failed:
        told += f" ({leader.failed} more failed)"
    return told if leader.gain is None else f"{told}, {gain_in_words(leader.gain)}"


def unused_seed(folder: Path, given: int, count: int = 1) -> int:
    """The first of `count` seeds for a test: the one given, or the next from which on the search has used none.

    A candidate was chosen for its luck with the search's seeds, too; the test must not share it.
    """
    study = study_of(folder)
    # a row without one is of a version that trained everything with the study's
    used = {study.config.seed if trial.seed is None else trial.seed for trial in study.trials}
    first = given
    while used & set(range(first, first + count)):
        first += 1
    if first + count - 1 <= LARGEST_SEED:
        return first
    return unused_seed(folder, 0, count)  # the range is used up: from its beginning


def candidate_of(folder: Path, given: str) -> Trial:
    """The first trial of the candidate that trial number `given` trained, or that is the `leader`.

    Raises StudyError where that is none.
    """
    study = study_of(folder)
    trials = {trial.number: trial for trial in study.trials}
    number = (
        study.leader.trial.number if given == "leader" and study.leader is not None else reading.whole(given)
    )
    if number is None:
        why = (
            "no candidate of it has a score yet"
            if given == "leader"
            else "that is the number of a trial, or leader"
        )
        raise StudyError(
            f"--trial {shown(given)} of {folder}: {why}; `detsearch study show {folder}` lists its trials"
        )
    row = trials.get(number)
    if row is None or row.candidate is None:
        which = "is the baseline" if row is not None else "is none of its trials"
        raise StudyError(
            f"trial {number} {which}, so there is no candidate to take from {folder}; `detsearch study show {folder}` "
            "lists them"
        )
    return row if row.again_of is None else trials[row.again_of]


def finding_of(folder: Path) -> Fragment:
    """What a finished search has found, {} for nothing better. Raises StudyError where it has not ended."""
    from detsearch_cli.recipe import read_fragment

    read_settings(folder)  # a folder that is no study is told first
    if not (folder / BEST).is_file():
        raise StudyError(
            f"the search in {folder} has not ended, it holds no {BEST} yet; go on with it by "
            f"`detsearch study resume {folder}`"
        )
    return read_fragment(folder / BEST)


def final(recipe: Recipe) -> Recipe:
    """A study's recipe for the final training: all training images, scored on what the search never saw."""
    from detsearch_cli.recipe import with_fragment

    return with_fragment(recipe, {"data": {"subset": None, "val_fraction": None}})


def final_recipe(folder: Path) -> Recipe:
    """The recipe as given to the search in this folder, for the final training. Raises StudyError."""
    return final(recipe_of(study_of(folder), read_settings(folder)))
