"""`search`, `train` and `show` of every method found, made from its class; own commands are in a file of its name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from detsearch_cli.cli.groups import Group
from detsearch_cli.cli.options import (
    RecipeOptions,
    RunsOptions,
    SearchOptions,
    ShowOptions,
    StudyOptions,
    with_options,
)
from detsearch_cli.discovery import names, summary
from detsearch_cli.methods.base import Method, NoOptions, methods

if TYPE_CHECKING:
    from detsearch_cli.fragments import Fragment
    from detsearch_cli.methods.base import Shown
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.session.search import Search

OWN_COMMANDS = "cli"


def register(app: typer.Typer) -> None:
    """Add the group of every method."""
    for name, method in methods().items():
        app.add_typer(group(name, method))


def group(name: str, method: type[Method]) -> typer.Typer:
    """The commands of one method."""
    app = typer.Typer(name=name, cls=Group, no_args_is_help=True, help=summary("methods", name))
    if name in names(OWN_COMMANDS):  # cli/anchors.py adds `anchors fit`
        importlib.import_module(f"detsearch_cli.cli.{name}").register(app)
    if method.sampler is not None:
        app.command("search", no_args_is_help=True)(_documented(_search(method), method.search_help))
        app.command("train")(_documented(_train_found(method), method.train_help))
    else:
        app.command("train", no_args_is_help=True)(_documented(_train_own(method), method.train_help))
    app.command("show")(_documented(_show(method), method.show_help))
    return app


def _documented(command: Callable[..., None], help: str) -> Callable[..., None]:
    command.__doc__ = help
    return command


# ---------------------------------------------------------------------- search


def _search(method: type[Method]) -> Callable[..., None]:
    @with_options(options=RecipeOptions, search=SearchOptions, own=method.Options)
    def command(options: RecipeOptions, search: SearchOptions, own: Any) -> None:
        from detsearch_cli.cli import console
        from detsearch_cli.methods.base import load_method
        from detsearch_cli.session.search import SEARCHED, new_search
        from detsearch_cli.session.study import Settings, noise_seeds_of, races_of

        seeds = noise_seeds_of(search.trials, search.noise_seeds)
        settings = Settings(
            name=search.name or "",
            storage=search.storage,
            trials=search.trials,
            noise_seeds=seeds,
            races=(races := races_of(search.repeats, seeds)),
            stops=races if search.early_stop is None else search.early_stop,
            time_budget=None if search.time_budget is None else search.time_budget * 60,
            jobs=search.jobs,
            executor=search.executor,
            command=console.command_line(),
        )
        made = load_method(method.name(), asdict(own))
        recipe = options.compose({**SEARCHED, **method.defaults})
        run(new_search(made, recipe, settings, search.out, search.sampler), search.json)

    return command


def run(search: Search, as_json: bool = False) -> Any:
    """Run or resume a search with a line an event, write the page, and tell what was found; returns the result."""
    from detsearch_cli.cli import console, live
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.session.pages import write_study_page
    from detsearch_cli.session.search import as_begun, run_search

    folder = search.folder
    console.set_resume_hint(f"the study is saved in {folder}; give the same command again to go on")
    data = load_data(search.recipe.data)
    console.announce_load()
    console.announce_data(data)
    console.announce_changes(folder, data)
    if data.test is not None and data.test.name == "test":
        console.announce_scoring(data.test, "the search goes on, but what it finds cannot be tested there")
    console.announce_start(search.recipe, data.train.classes)
    kept = as_begun(search).settings.noise_seeds
    if kept != search.settings.noise_seeds:
        console.say(f"note: this study keeps the {kept} seeds of the baseline that it began with")
    result = run_search(search, live.Live())
    page = write_study_page(folder)
    live.conclude(search, result, page, as_json)
    return result


# ---------------------------------------------------------------------- train


def _train_found(method: type[Method]) -> Callable[..., None]:
    """`train` of a method that searches: with what a study has found."""

    @with_options(options=RecipeOptions, study=StudyOptions, runs=RunsOptions)
    def command(options: RecipeOptions, study: StudyOptions, runs: RunsOptions) -> None:
        train_study(method(), options, study.study, runs, study.trial)

    return command


def train_study(
    method: Method, options: RecipeOptions, study: Path | None, runs: RunsOptions, trial: str | None = None
) -> None:
    """Train the finding of a study, or the candidate of a trial, and what --baseline and --against ask for beside it."""
    from detsearch_cli.cli import console
    from detsearch_cli.errors import RecipeError
    from detsearch_cli.session.study import candidate_of, final_recipe, finding_of, study_of

    if study is None and not runs.against:
        raise RecipeError(
            f"{method.name()} train needs something to test: give --study, or --against FILE with a fragment such "
            "as best.yaml; `detsearch train` trains a recipe as it is"
        )
    if study is None and trial is not None:
        raise RecipeError("--trial is one of a study; name it by --study")
    below = final_recipe(study).model_dump(mode="json") if study else dict(method.defaults)
    recipe = options.compose(below)
    finding: Fragment = {}
    number: int | None = None
    if study is not None and trial is not None:
        chosen = candidate_of(study, trial)  # one of its further seeds may have been named
        number, finding = chosen.number, dict(chosen.fragment)
    elif study is not None:
        finding = finding_of(study)
    baseline = runs.baseline
    if study is not None and not finding:
        console.say(
            f"{study} found nothing better than the recipe as given, and that is trained"
            f"{'; --trial leader tests what comes nearest' if study_of(study).leader else ''}"
        )
        baseline = True
    _train(method, recipe, finding, runs, study, baseline, number)


def _train_own(method: type[Method]) -> Callable[..., None]:
    """`train` of a method that finds within its training: its options say where it starts."""

    @with_options(options=RecipeOptions, runs=RunsOptions, own=method.Options)
    def command(options: RecipeOptions, runs: RunsOptions, own: Any) -> None:
        from detsearch_cli.methods.base import load_method

        made = load_method(method.name(), asdict(own))
        recipe = options.compose(dict(method.defaults))
        _train(made, recipe, made.fragment(recipe, {}), runs, None, runs.baseline)

    return command


def _train(
    method: Method,
    recipe: Recipe,
    finding: Fragment,
    runs: RunsOptions,
    study: Path | None,
    baseline: bool,
    trial: int | None = None,
) -> None:
    from detsearch_cli import api
    from detsearch_cli.cli import console
    from detsearch_cli.cli.comparison import callbacks, print_comparison, print_runs
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.session.runs import Placement, compare_sides, comparison_file, sides, train_seeds
    from detsearch_cli.session.study import unused_seed

    side = method.side if trial is None else f"trial{trial}"
    every = sides(side, method.baseline(recipe), recipe, finding, runs.fragments_against(), baseline)
    data = load_data(recipe.data)
    console.announce_load()
    console.announce_data(data)
    console.announce_scoring(data.val)
    for started in {side.init: side for side in every.values()}.values():
        console.announce_start(started, data.train.classes)
    for note in method.notes(recipe):
        console.say(f"note: {note}")
    last = list(every.values())[-1]
    folder = runs.out or (
        study / ("final" if trial is None else f"final-trial{trial}")
        if study
        else api.default_folder(last, method.name())
    )
    console.set_resume_hint(f"the runs are saved in {folder}; give the same command again to go on")
    first = unused_seed(study, recipe.seed, runs.seeds) if study else recipe.seed
    if study is not None and first != recipe.seed:
        console.say(f"note: the seeds are {first} and on: the search has used {recipe.seed} or one after it")
    seeds, placement = [first + i for i in range(runs.seeds)], Placement(runs.jobs, runs.executor)
    if study is not None and len(every) > 1:
        _tell_power(study, runs.seeds, trial)
    content: dict[str, Any] = {"folder": str(folder)}
    with callbacks() as progress:
        if len(every) > 1:
            kept = comparison_file(study, trial) if study else None
            outcome = compare_sides(every, seeds, folder, placement, progress, kept)
            content |= outcome.to_json()
        else:
            ((side, only),) = every.items()
            alone = train_seeds(only, side, seeds, folder, placement, progress)
            content["runs"] = [{"run": str(done.folder), **done.metrics} for done in alone]
    if not runs.json:
        print_comparison(outcome) if len(every) > 1 else print_runs(alone)
    told = [folder / f"{side}-seed{seed}" for seed in seeds] if side in every else []
    _after(method, recipe, told, content, runs.json)
    if study is not None and len(every) > 1:
        from detsearch_cli.session.pages import write_study_page

        console.say(f"wrote {write_study_page(study)}")
    if runs.json:
        console.emit_json(content)


def _tell_power(study: Path, seeds: int, trial: int | None) -> None:
    """What the comparison can show, before it is paid for; nothing where the search did not measure its noise."""
    from detsearch_cli.cli import console
    from detsearch_cli.search.noise import noise_of, proof_in_words
    from detsearch_cli.session.study import study_of
    from detsearch_cli.trials import gains_of

    trials = study_of(study).trials
    noise = noise_of(trials)
    # what is tested by default has the highest
    tested = [c.gain.expected for c in gains_of(trials) if c.gain and trial in (None, c.trial.number)]
    told = None if noise is None else proof_in_words(seeds, tested[0] if tested else 0.0, noise)
    if told is not None:
        console.say(f"note: {told}")


def _after(method: Method, recipe: Recipe, runs: list[Path], content: dict[str, Any], as_json: bool) -> None:
    """What the method itself has to say of its trainings."""
    shown = method.trained(recipe, runs) if runs else None
    if shown is None:
        return
    content |= shown.content
    if not as_json:
        print_shown(shown)


# ---------------------------------------------------------------------- show


def _show(method: type[Method]) -> Callable[..., None]:
    groups: dict[str, type[Any]] = {"options": RecipeOptions, "show": ShowOptions}
    if method.sampler is not None:
        groups["study"] = StudyOptions
    if method.ShowOptions is not NoOptions:
        groups["own"] = method.ShowOptions

    @with_options(**groups)
    def command(options: RecipeOptions, show: ShowOptions, **more: Any) -> None:
        from detsearch_cli.cli import console

        study = more["study"].study if "study" in more else None
        trial = more["study"].trial if "study" in more else None
        recipe = options.compose(_below(method, study, trial, show.run))
        folder = show.out or Path(f"{method.name()}-show")
        _claim_pictures(folder)
        shown = method().show(recipe, show.run, more.get("own"))
        paths = write_pictures(shown, folder)
        if show.json:
            console.emit_json({**shown.content, "figures": [str(path) for path in paths]})
            return
        print_shown(shown)
        for path in paths:
            console.say(f"wrote {path}")

    return command


def _below(method: type[Method], study: Path | None, trial: str | None, runs: list[Path]) -> Fragment:
    """What the user's options are laid over: the study's recipe with its finding or the candidate of a trial, else the first
    run's recipe."""
    from detsearch_cli.engine.checkpoint import read_recipe
    from detsearch_cli.errors import RecipeError, StudyError
    from detsearch_cli.recipe import with_fragment
    from detsearch_cli.session.study import candidate_of, final_recipe, finding_of

    if study is None and trial is not None:
        raise RecipeError("--trial is one of a study; name it by --study")
    if study is not None:
        finding = finding_of(study) if trial is None else candidate_of(study, trial).fragment
        if not finding:
            raise StudyError(
                f"{study} found nothing better than the recipe as given, so there is nothing to show: its best.yaml "
                f"is empty; --trial shows a candidate, and `detsearch study show {study}` lists them"
            )
        return with_fragment(final_recipe(study), finding).model_dump(mode="json")
    if runs and runs[0].is_dir():
        return read_recipe(runs[0]).model_dump(mode="json")
    return dict(method.defaults)


def _claim_pictures(folder: Path) -> None:
    from detsearch_cli.files import claim_folder

    claim_folder(folder, None, "folder of pictures")


def write_pictures(shown: Shown, folder: Path) -> list[Path]:
    """Write every figure as a PNG into the folder, which was claimed. Raises OutputError for a foreign file."""
    from detsearch_cli.files import claim_file, replace_file

    paths = [folder / f"{name}.png" for name in shown.figures]
    for path in paths:
        claim_file(path)
    for path, figure in zip(paths, shown.figures.values(), strict=True):
        replace_file(path, lambda p, png=figure.png: p.write_bytes(png))  # type: ignore[misc]
    return paths


def print_shown(shown: Shown) -> None:
    """Tables and notes for a person."""
    from detsearch_cli.cli import console

    for table in shown.tables:
        console.table(table.title, list(table.columns), [[str(cell) for cell in row] for row in table.rows])
    for note in shown.notes:
        console.say(note)
