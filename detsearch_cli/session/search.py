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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli import reading
from detsearch_cli.errors import CheckFailed, DetsearchError, RecipeError, StudyError
from detsearch_cli.files import (
    claim_file,
    claim_folder,
    is_ours,
    signed_yaml,
    write_signed_json,
    write_text,
)
from detsearch_cli.fragments import shown
from detsearch_cli.methods.base import Method, load_method
from detsearch_cli.session.study import (
    BEST,
    LEDGER,
    SETTINGS,
    Settings,
    identity_of,
    label,
    read_settings,
    recipe_of,
    standing,
    study_of,
)

if TYPE_CHECKING:
    from detsearch_cli.data.splits import Resolved
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.search.config import SamplerChoice
    from detsearch_cli.search.plan import Event, Outcome, Plan, Prepared, Refused
    from detsearch_cli.search.space import Candidate
    from detsearch_cli.search.study import Trial

SEARCHED = {"schedule": {"eval_every": 0}, "runtime": {"cache": "ram"}}
"""Below the recipe of a search: it scores a training at its end alone, and reads the same images again and again."""
RUN_TRIAL = "detsearch_cli.engine.trial:run_trial"
OnEvent = Callable[["Event"], None]


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
            return Prepared(scored_on_the_way(recipe).to_yaml(), recipe.hash(), {})
        fragment: Fragment = {}
    else:
        reason = search.method.refuse(search.recipe, candidate)
        if reason is not None:
            return Refused(reason)
        fragment = search.method.fragment(search.recipe, candidate)
        recipe = with_fragment(search.recipe, fragment)
    return Prepared(recipe.to_yaml(), recipe.hash(), fragment)


def scored_on_the_way(recipe: Recipe) -> Recipe:
    """The recipe with three to five scores within its training, fewer where it has fewer epochs: what shows whether it is
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
