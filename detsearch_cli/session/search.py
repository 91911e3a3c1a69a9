"""A search of any method: begun, gone on with from its folder alone, and ended with best.yaml and a report.

A candidate's way: the sampler proposes it (search/proposing.py), `_prepare` here asks the method for its fragment and
lays that over the recipe, a worker trains the recipe, the ledger keeps fragment and score, `_write_best` writes the best
fragment to best.yaml.

What is fixed when a study begins is kept once, in its ledger (search/config.py). How it is run may change each time
and is kept in search.json, the first file of the study's folder.
"""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from detsearch_cli import reading
from detsearch_cli.errors import CheckFailed, DetsearchError, RecipeError, StudyError
from detsearch_cli.files import (
    SIGNATURE,
    claim_file,
    claim_folder,
    is_ours,
    signed_yaml,
    write_signed_json,
    write_text,
)
from detsearch_cli.fragments import shown
from detsearch_cli.methods.base import Method, load_method
from detsearch_cli.option import LARGEST_SEED, MOST_JOBS, MOST_MINUTES, MOST_TRIALS
from detsearch_cli.trials import gain_in_words, points

if TYPE_CHECKING:
    from detsearch_cli.data.splits import Resolved
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.search.config import SamplerChoice
    from detsearch_cli.search.plan import Event, Outcome, Plan, Prepared, Refused
    from detsearch_cli.search.space import Candidate
    from detsearch_cli.search.study import Study, Trial
    from detsearch_cli.trials import Leader

SETTINGS, BEST, LEDGER = "search.json", "best.yaml", "study.db"
SEARCHED = {"schedule": {"eval_every": 0}, "runtime": {"cache": "ram"}}
"""Below the recipe of a search: it scores a training at its end alone, and reads the same images again and again."""
RUN_TRIAL = "detsearch_cli.engine.trial:run_trial"
OnEvent = Callable[["Event"], None]


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
        if self.noise_seeds < 1:
            raise StudyError(f"the baseline is trained with at least 1 seed, got {shown(self.noise_seeds)}")
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


@dataclass(frozen=True)
class Search:
    """A search that can be run: what is searched, and how."""

    method: Method
    recipe: Recipe
    sampler: SamplerChoice
    folder: Path
    settings: Settings


@dataclass(frozen=True)
class SearchResult:
    """What a search found. fragment: of the best trial, {} where nothing better than the baseline was found."""

    folder: Path
    outcome: Outcome
    fragment: Fragment

    @property
    def best(self) -> Trial:
        best = self.outcome.best
        assert best is not None  # a search without any score raises CheckFailed
        return best

    @property
    def baseline(self) -> Trial | None:
        return self.outcome.baseline


def new_search(
    method: Method,
    recipe: Recipe,
    settings: Settings,
    out: Path,
    sampler: str | Mapping[str, Any] | None = None,
) -> Search:
    """The search of a method in the folder out/NAME. Raises StudyError for a method, sampler or name that is none."""
    from detsearch_cli.search.config import SamplerChoice

    if method.sampler is None:
        raise StudyError(f"{method.name()} has nothing to search: its training finds what it looks for")
    name = settings.name or default_name(method, recipe)
    if not _is_plain(name):
        raise StudyError(
            f"the name of a study is one word of letters, digits, dots, dashes and underscores, at most "
            f"{_NAME_BYTES} bytes and not beginning with a dot or a dash, got {shown(name)}; choose another"
        )
    if settings.noise_seeds > settings.trials:
        raise StudyError(
            f"the baseline is trained with 1 to {settings.trials} seeds, since all but the first count among the "
            f"{settings.trials} trials, got {settings.noise_seeds}; give more --trials or fewer --noise-seeds"
        )
    if recipe.seed + settings.noise_seeds - 1 > LARGEST_SEED:
        raise StudyError(
            f"the baseline's seeds are {recipe.seed} and the {settings.noise_seeds - 1} after it, but a seed is at most "
            f"{LARGEST_SEED}; give a smaller --seed"
        )
    recipe = scored_apart(recipe)
    settings = replace(settings, name=name, runtime=recipe.runtime.model_dump(mode="json"))
    return Search(
        method,
        recipe,
        SamplerChoice.parse(method.sampler if sampler is None else sampler),
        out / name,
        settings,
    )


_NAME_BYTES = 200
"""File systems take 255; what is written beside the folder for a moment has a longer name."""


def _is_plain(name: str) -> bool:
    """Whether a name is a word in any shell, path and database; letters are those of every script."""
    if name[:1] in (".", "-", "") or not all(map(_is_of_a_word, name)):
        return False
    return len(name.encode()) <= _NAME_BYTES


def _is_of_a_word(character: str) -> bool:
    # M are the marks that many scripts write vowels with
    return character in "._-" or unicodedata.category(character)[0] in "LMN"


def default_name(method: Method, recipe: Recipe) -> str:
    """`assign-fcos-bccd`."""
    data = Path(recipe.data.source.partition(":")[0]).name
    word = "".join(c if _is_of_a_word(c) else "-" for c in data)[:50]
    return f"{method.name()}-{recipe.detector.name}-{word}"


def scored_apart(recipe: Recipe) -> Recipe:
    """The recipe with candidates scored on images that the final evaluation never uses.

    A set with val and test scores on val; any other has a part of its training images held out.
    """
    from detsearch_cli.data.source import open_source
    from detsearch_cli.data.splits import HELD_OUT
    from detsearch_cli.recipe import with_fragment

    splits = open_source(recipe.data.source).splits
    if recipe.data.val_fraction is not None or {recipe.data.val, "test"} <= set(splits):
        return recipe
    return with_fragment(recipe, {"data": {"val_fraction": HELD_OUT}})


def reopened(folder: Path) -> Search:
    """The search that a study's folder holds. Raises StudyError where it holds none, or one that is damaged."""

    settings = read_settings(folder)
    study = study_of(folder)
    recipe = recipe_of(study, settings)
    method = load_method(identity_of(study)["method"], identity_of(study)["options"])
    return Search(method, recipe, study.config.sampler, folder, settings)


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


# ---------------------------------------------------------------------- running


def run_search(search: Search, on_event: OnEvent = lambda event: None) -> SearchResult:
    """Run or go on with a search, then write best.yaml.

    Raises OutputError for a folder that is no study, StudyError for another search's, CheckFailed where every trial
    failed, KeyboardInterrupt after Ctrl-C, and whatever would fail every training.
    """
    from detsearch_cli.engine import fingerprint
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.search.coordinator import run

    plan = _plan(search)
    _claim(search, plan)
    search = as_begun(search)
    data = load_data(search.recipe.data)
    refuse_unscored(data)
    refuse_untrainable(search.recipe, data.train.classes, search.settings.executor == "local")
    accepted = False

    def on_locked() -> None:
        # the first file of a new study, so that a search killed early is known again; that of another stays
        if not (search.folder / SETTINGS).exists():
            _write_settings(search)

    def accept(event: Event) -> None:
        # not before the first event: it tells that the ledger has accepted this search
        nonlocal accepted
        if not accepted:
            accepted = True
            _write_settings(search)
            fingerprint.keep(search.folder, data.train, data.val)
        on_event(event)

    outcome = run(plan, RUN_TRIAL, accept, on_locked)
    if outcome.all_failed:
        reasons = sorted({t.reason or "unknown" for t in outcome.trials if t.state == "failed"})
        raise CheckFailed(f"every trial of {search.settings.name} failed: {'; '.join(reasons[:3])}")
    if outcome.best is None:
        raise CheckFailed(
            f"no trial of {search.settings.name} was trained to its end, so none is the best; give more --trials"
        )
    fragment = _write_best(search, outcome)
    if outcome.refused and not any(trial.trained for trial in outcome.trials):
        # else "nothing better was found" would read as if something had been tried
        raise CheckFailed(f"no candidate of {search.settings.name} was trained: {outcome.reason}")
    return SearchResult(search.folder, outcome, fragment)


def as_begun(search: Search) -> Search:
    """The search with the seeds that its study began with, which later commands cannot change."""
    if not (search.folder / SETTINGS).exists():
        return search
    try:
        begun = study_of(search.folder).config
    except StudyError:  # killed before there was a ledger
        return search
    settings = replace(search.settings, noise_seeds=begun.noise_seeds, races=begun.races)
    return replace(search, settings=settings)


def _claim(search: Search, plan: Plan) -> None:
    """Raise OutputError for a folder that is no study, StudyError for one whose ledger is another; write nothing."""
    from detsearch_cli.search.ledger import look
    from detsearch_cli.search.study import open_study

    folder, storage = search.folder, search.settings.storage
    if (folder / LEDGER).exists():
        if storage is not None:
            raise StudyError(
                f"{folder} keeps its ledger in {LEDGER}; leave out --storage, or take another --name"
            )
        open_study(folder)  # raises unless it is a ledger of ours, which makes the folder ours
    else:
        claim_folder(folder, SETTINGS, "study")
        if is_ours(folder / SETTINGS):
            kept = read_settings(folder).storage
            if kept is not None and storage is None:
                raise StudyError(
                    f"{folder} keeps its ledger in the database of --storage; give it again, or go on by "
                    f"`detsearch study resume {folder}`"
                )
    if storage is not None:
        look(plan.name, folder, storage, plan.config)
    claim_file(folder / BEST, f"{search.method.name()} search")


def _plan(search: Search) -> Plan:
    """The coordinator's plan. Raises SpaceError where the method does not fit the recipe."""
    from detsearch_cli.search.config import StudyConfig
    from detsearch_cli.search.plan import Plan
    from detsearch_cli.search.racing import searched

    settings, recipe = search.settings, search.recipe
    method: dict[str, Any] = {"method": search.method.name(), "options": asdict(search.method.options)}
    config = StudyConfig(
        identity={**method, "recipe": recipe.identity()},
        space=search.method.space(recipe),
        sampler=search.sampler,
        seed=recipe.seed,
        budget=searched(settings.trials, settings.noise_seeds, settings.races)[0],
        workers=settings.jobs,
        noise_seeds=settings.noise_seeds,
        races=settings.races,
    )
    return Plan(
        name=settings.name,
        folder=search.folder,
        storage=settings.storage,
        config=config,
        trials=settings.trials,
        time_budget=settings.time_budget,
        jobs=settings.jobs,
        executor=settings.executor,
        epochs=recipe.schedule.epochs,
        prepare=lambda candidate: _prepare(search, candidate),
        with_seed=_with_seed,
        stops=settings.stops,
        images=lambda trials: image_noise(recipe, trials),
    )


def _prepare(search: Search, candidate: Candidate | None) -> Prepared | Refused:
    """What is trained for a candidate, None for the baseline; or why it is not worth a training."""
    from detsearch_cli.recipe import with_fragment
    from detsearch_cli.search.plan import Prepared, Refused

    if candidate is None:
        recipe = search.method.baseline(search.recipe)
        if search.settings.noise_seeds > 1:
            # named by what it trains, so that a candidate that is the same is known again
            return Prepared(_scored_on_the_way(recipe).to_yaml(), recipe.hash(), {})
        fragment: Fragment = {}
    else:
        reason = search.method.refuse(search.recipe, candidate)
        if reason is not None:
            return Refused(reason)
        fragment = search.method.fragment(search.recipe, candidate)
        recipe = with_fragment(search.recipe, fragment)
    return Prepared(recipe.to_yaml(), recipe.hash(), fragment)


def _scored_on_the_way(recipe: Recipe) -> Recipe:
    """The recipe with four or five scores within its training, three in one of three epochs: what shows whether it is
    long enough. They change nothing in the training."""
    from detsearch_cli.recipe import with_fragment

    if recipe.schedule.eval_every:
        return recipe  # as the user wants it
    return with_fragment(recipe, {"schedule": {"eval_every": max(1, round(recipe.schedule.epochs / 4))}})


def image_noise(recipe: Recipe, trials: Sequence[Trial]) -> float | None:
    """The part of the variance of scores over seeds that the choice of the held-out images explains.

    trials: of one recipe with several seeds. Bootstrap over images, the same draws for all: what two detectors' scores
    differ by from draw to draw is the images', and what is left of the variance is the seeds'. None where a trial's
    detections are gone, or scores are equal.
    """
    from detsearch_cli.engine.checkpoint import DETECTIONS
    from detsearch_cli.engine.compare import image_variance
    from detsearch_cli.engine.detections import DetectionTable
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.trials import scored

    rows = scored(trials)
    values = [trial.value or 0.0 for trial in rows]
    files = [trial.folder / DETECTIONS for trial in rows]
    if len(set(values)) < 2 or not all(path.is_file() for path in files):
        return None
    split = load_data(recipe.data).val
    try:
        tables = [DetectionTable.load(path, split) for path in files]
    except DetsearchError:  # of other data than are there now, which the search itself does not read
        return None
    return min(1.0, image_variance(split, tables) / statistics.variance(values))


def _with_seed(prepared: Prepared, seed: int) -> Prepared:
    """The same recipe, trained with another seed."""
    from detsearch_cli.recipe import validate, with_fragment

    recipe = with_fragment(
        validate(reading.parse_yaml(prepared.recipe_yaml, "the recipe of a trial", RecipeError)),
        {"seed": seed},
    )
    return replace(prepared, recipe_yaml=recipe.to_yaml(), recipe_hash=recipe.hash())


def refuse_unscored(data: Resolved) -> None:
    """Raise EvaluationError, before the first trial, where no candidate could be scored or val was never labelled.

    A test split without labels is usual, and no obstacle: candidates are scored on others.
    """
    from detsearch_cli.engine.score import refuse_unscorable

    refuse_unscorable(data.val)
    if data.test is not None and data.test.name == "val":
        refuse_unscorable(data.test)


def refuse_untrainable(recipe: Recipe, classes: Sequence[str], here: bool = True) -> None:
    """Raise now, before anything is written, what would fail every training: an unknown backbone, weights or
    counts that do not fit, a missing GPU. here: it trains on this machine; of another its GPU says nothing."""
    from detsearch_cli.detectors import build, start
    from detsearch_cli.engine.machine import pick_device

    if here:
        pick_device(recipe.runtime.device)
    start(build(recipe, len(classes)), recipe, classes)


def _write_settings(search: Search) -> None:
    write_signed_json(search.folder / SETTINGS, "search", asdict(search.settings))


def _write_best(search: Search, outcome: Outcome) -> Fragment:
    """best.yaml: the fragment of the best trial; an empty one, saying so, when that is the baseline."""
    import yaml

    best = outcome.best
    assert best is not None and best.value is not None
    leader = outcome.leader
    about = (
        f"{search.method.name()} search {search.settings.name}: {label(best)}, "
        f"AP {100 * best.value:.1f} on held-out images"
    )
    if best.baseline:
        body = "# Nothing better than the recipe as given was found, so this fragment changes nothing.\n"
        body += f"# Ahead lies {standing(leader)}.\n{{}}\n" if leader is not None and leader.gain else "{}\n"
    else:
        body = yaml.safe_dump(dict(best.fragment), sort_keys=False, default_flow_style=None)
        if leader is not None and leader.gain:
            body = f"# {standing(leader)}\n{body}"
    # it was claimed before the search: what is there is that of an earlier end of this search
    write_text(search.folder / BEST, signed_yaml(about, body))
    return dict(best.fragment)


def label(trial: Trial) -> str:
    """`baseline`, `trial 7`, or of either with another seed `trial 7, seed 1`."""
    if trial.again_of is None:
        return "baseline" if trial.baseline else f"trial {trial.number}"
    return f"{'baseline' if trial.baseline else f'trial {trial.again_of}'}, seed {trial.seed}"


def standing(leader: Leader[Trial]) -> str:
    """`trial 7, AP 33.8 over 4 seeds, expected gain ...`."""
    seeds = "1 seed" if leader.seeds == 1 else f"{leader.seeds} seeds"
    told = f"{label(leader.trial)}, AP {points(leader.trial.value)} over {seeds}"
    return told if leader.gain is None else f"{told}, {gain_in_words(leader.gain)}"


# ---------------------------------------------------------------------- what a study found


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


def finding_of(folder: Path, trial: int | None = None) -> Fragment:
    """What a finished search has found, {} for nothing better. Raises StudyError where it has not ended.

    trial: its candidate instead, whether the search has ended or not.
    """
    from detsearch_cli.recipe import read_fragment

    if trial is not None:
        row = next((t for t in study_of(folder).trials if t.number == trial), None)
        if row is None or row.candidate is None:
            which = "is the baseline" if row is not None else "is none of its trials"
            raise StudyError(
                f"{trial} {which}, so there is no candidate to take from {folder}; `detsearch study show {folder}` lists "
                "them"
            )
        return dict(row.fragment)
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
