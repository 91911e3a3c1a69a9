"""Running a search, the same for every method: settings in a file, live lines, best.yaml and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.cli import console
from detsearch_cli.errors import CheckFailed, DetsearchError, StudyError

if TYPE_CHECKING:
    from detsearch_cli.cli.options import RecipeOptions, SearchOptions
    from detsearch_cli.recipe import Recipe
    from detsearch_cli.search.plan import Event, Outcome, Plan
    from detsearch_cli.search.study import TrialRow

SETTINGS, BEST_FRAGMENT, PAGE, CONTEST = "search.json", "best.yaml", "report.html", "contest.json"
HOLD_OUT = 0.2


@dataclass(frozen=True)
class Settings:
    """Everything a search was asked for; kept in the study's folder, so `study resume` needs nothing else."""

    method: str
    method_options: dict[str, Any]
    recipe: str
    name: str
    folder: str
    storage: str | None
    sampler: str
    trials: int
    time_budget: float | None
    jobs: int
    executor: str
    seed: int
    command: str
    executor_options: dict[str, Any] = field(default_factory=dict)


def settings_of(
    method: str,
    method_options: dict[str, Any],
    default_sampler: str,
    options: RecipeOptions,
    search: SearchOptions,
) -> Settings:
    """Settings of a new search, or of the same search given again."""
    recipe = searchable(options.compose({"schedule": {"eval_every": 0}, "runtime": {"cache": "ram"}}))
    data = Path(recipe.data.source.partition(":")[0]).name
    name = search.name or f"{method}-{recipe.detector.name}-{data}"
    if Path(name).name != name:
        raise StudyError(f"--name is one word, the study's folder in --out, got {name!r}; choose a plain one")
    return Settings(
        method=method,
        method_options=method_options,
        recipe=recipe.to_yaml(),
        name=name,
        folder=str(search.out / name),
        storage=search.storage,
        sampler=search.sampler or default_sampler,
        trials=search.trials,
        time_budget=None if search.time_budget is None else search.time_budget * 60,
        jobs=search.jobs,
        executor=search.executor,
        seed=recipe.seed,
        command=console.command_line(),
    )


def searchable(recipe: Recipe) -> Recipe:
    """The recipe with candidates scored on images that the final evaluation never uses.

    A set with val and test scores on val; any other has a part of its training images held out.
    """
    from detsearch_cli.data.source import open_source

    splits = open_source(recipe.data.source).splits
    if recipe.data.val_fraction is not None or {recipe.data.val, "test"} <= set(splits):
        return recipe
    return recipe.with_({"data": {"val_fraction": HOLD_OUT}})


def final(recipe: Recipe) -> Recipe:
    """The study's recipe for the final training: all training images, scored on what the search never saw."""
    return recipe.with_({"data": {"subset": None, "val_fraction": None}})


def read_settings(folder: Path) -> Settings:
    """The settings a study's folder holds. Raises StudyError."""
    path = folder / SETTINGS
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StudyError(
            f"{folder} is no study: it holds no {SETTINGS}; see `detsearch study list`"
        ) from error
    except (ValueError, TypeError) as error:
        raise StudyError(
            f"{path} is damaged ({error}); give the search command again to write it anew"
        ) from error


def base_recipe(settings: Settings) -> Recipe:
    """The recipe of trial 0."""
    import yaml

    from detsearch_cli.recipe import validate

    return validate(yaml.safe_load(settings.recipe))


def make_plan(settings: Settings) -> Plan:
    """The coordinator's plan. Raises SpaceError when the method does not fit the recipe."""
    from detsearch_cli.methods.base import load_method
    from detsearch_cli.search.plan import Plan

    recipe = base_recipe(settings)
    method = load_method(settings.method, settings.method_options)
    return Plan(
        name=settings.name,
        folder=Path(settings.folder),
        storage=settings.storage,
        space=method.space(recipe),
        sampler=settings.sampler,
        seed=settings.seed,
        trials=settings.trials,
        time_budget=settings.time_budget,
        jobs=settings.jobs,
        executor=settings.executor,
        identity={
            "method": settings.method,
            "options": settings.method_options,
            "recipe": recipe.identity(),
        },
        make_recipe=lambda c: (recipe if c is None else method.apply(recipe, c)).to_yaml(),
        executor_options=settings.executor_options,
    )


def run_search(settings: Settings, as_json: bool = False) -> Outcome:
    """Run or resume the search, then write best.yaml and report.html. Raises CheckFailed when all failed."""
    from detsearch_cli.cli.console import announce_data
    from detsearch_cli.cli.report import write_study_page
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.files import write_json
    from detsearch_cli.search.coordinator import run

    folder = Path(settings.folder)
    console.set_resume_hint(f"the study is saved in {folder}; give the same command again to go on")
    refuse_another(settings)
    plan = make_plan(settings)
    data = load_data(base_recipe(settings).data)
    announce_data(data)
    refuse_untrainable(base_recipe(settings), len(data.train.classes), settings.executor == "local")
    live = Live()
    accepted = False

    def on_event(event: Event) -> None:
        # written once the ledger has accepted these settings: a refused command changes nothing
        nonlocal accepted
        if not accepted:
            write_json(folder / SETTINGS, asdict(settings))
            accepted = True
        live(event)

    outcome = run(plan, "detsearch_cli.engine.trial:run_trial", on_event)
    if outcome.all_failed:
        reasons = sorted({row.reason or "unknown" for row in outcome.rows if row.state == "failed"})
        raise CheckFailed(f"every trial of {settings.name} failed: {'; '.join(reasons[:3])}")
    write_best(settings, outcome)
    page = write_study_page(folder)
    conclude(settings, outcome, page, as_json)
    return outcome


def refuse_another(settings: Settings) -> None:
    """Raise StudyError, naming what differs, when the folder holds another search; the ledger is the judge of
    what this does not see."""
    folder = Path(settings.folder)
    try:
        there = identifying(read_settings(folder))
    except DetsearchError:
        return  # a new study, or a search.json that is about to be written anew
    here = identifying(settings)
    changed = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if changed:
        listed = "; ".join(f"{key} is {there.get(key)} there, {here.get(key)} here" for key in changed[:3])
        more = f"; {len(changed) - 3} more" if len(changed) > 3 else ""
        raise StudyError(
            f"{folder} holds another search ({listed}{more}); give this one another --name, or go on with "
            f"that one by `detsearch study resume {folder}`"
        )


def identifying(settings: Settings) -> dict[str, Any]:
    """What must be equal to resume a search, by option or recipe key."""
    own = {"method": settings.method, "sampler": settings.sampler, "seed": settings.seed}
    options = {f"--{key.replace('_', '-')}": value for key, value in settings.method_options.items()}
    whole = {**own, **options, **flattened(base_recipe(settings).identity())}
    return dict(json.loads(json.dumps(whole)))  # as a file gives it back: lists, not tuples


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def refuse_untrainable(recipe: Recipe, num_classes: int, here: bool = True) -> None:
    """Raise now, before anything is written, what would fail every training: an unknown backbone, weights or
    counts that do not fit, a missing GPU. here: trained on this machine; else its GPU says nothing."""
    from detsearch_cli.detectors import build
    from detsearch_cli.engine.score import pick_device

    if here:
        pick_device(recipe.runtime.device)
    build(recipe, num_classes)


class Live:
    """One line an event: what finished, and the best so far."""

    def __call__(self, event: Event) -> None:
        row = event.row
        if event.kind == "resumed":
            console.say(f"resumed: {event.message}")
        if row is None or event.kind in ("started", "waiting", "resumed"):
            if event.kind == "waiting":
                console.say(f"waiting: {event.message}")
            return
        best = ""
        if event.best is not None:
            best = f"   best {console.percent(event.best.value)} ({label(event.best)})"
        seconds = f"{row.seconds:.0f} s" if row.seconds is not None else ""
        if event.kind == "finished":
            console.say(
                f"{label(row):>10}  AP {console.percent(row.value):>5}  {seconds:>6}{best}   {shown(row)}"
            )
        elif event.kind == "failed":
            console.say(f"{label(row):>10}  failed: {row.reason}")
        elif event.kind == "repeated":
            console.say(
                f"{label(row):>10}  AP {console.percent(row.value):>5}  as trial {row.repeat_of}{best}"
            )
        elif event.kind == "retried":
            console.say(f"{label(row):>10}  its worker died; it goes on in a new one")


def label(row: TrialRow) -> str:
    """`baseline` or `trial 7`."""
    return "baseline" if row.baseline else f"trial {row.number}"


def shown(row: TrialRow) -> str:
    """The candidate in a few characters: its values in the order of the space."""
    if row.candidate is None:
        return "the detector's own"
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in row.candidate.values())


def write_best(settings: Settings, outcome: Outcome) -> None:
    """best.yaml: the fragment of the best trial; an empty one, saying so, when that is the baseline."""
    import yaml

    from detsearch_cli.files import write_text
    from detsearch_cli.methods.base import load_method

    best = outcome.best
    if best is None:
        return
    head = f"# {settings.method} search {settings.name}: {label(best)}, AP {console.percent(best.value)} on held-out"
    if best.candidate is None:
        text = f"{head}\n# Nothing better than the detector's own was found, so this fragment changes nothing.\n{{}}\n"
    else:
        method = load_method(settings.method, settings.method_options)
        fragment = method.fragment(base_recipe(settings), best.candidate)
        text = f"{head}\n{yaml.safe_dump(fragment, sort_keys=False, default_flow_style=None)}"
    write_text(Path(settings.folder) / BEST_FRAGMENT, text)


def conclude(settings: Settings, outcome: Outcome, page: Path, as_json: bool) -> None:
    """What was found, and what to do next."""
    best, baseline = outcome.best, outcome.baseline
    assert best is not None
    folder = Path(settings.folder)
    if as_json:
        console.emit_json(
            {
                "study": str(folder),
                "reason": outcome.reason,
                "baseline": baseline.value if baseline else None,
                "best": {"number": best.number, "AP": best.value, "candidate": best.candidate},
                "trials": len(outcome.rows),
                "fragment": str(folder / BEST_FRAGMENT),
                "report": str(page),
            }
        )
        return
    console.say(f"{outcome.reason}")
    if baseline is not None and baseline.value is not None:
        console.say(f"baseline AP {console.percent(baseline.value)} on the held-out split")
    if best.candidate is None:
        console.say("nothing better than the detector's own was found")
    else:
        console.say(
            f"best     AP {console.percent(best.value)} ({label(best)}), chosen among many: not yet proof"
        )
        console.say(f"prove it: detsearch {settings.method} train --study {folder} --baseline --seeds 3")
    console.say(f"wrote {folder / BEST_FRAGMENT} and {page}")
