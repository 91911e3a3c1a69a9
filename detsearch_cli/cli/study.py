"""The ledger of every search: list, show, compare, resume, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from detsearch_cli.cli.groups import Group
from detsearch_cli.errors import StudyError
from detsearch_cli.option import MOST_JOBS, MOST_MINUTES, MOST_TRIALS

app = typer.Typer(name="study", cls=Group, no_args_is_help=True, help=__doc__)
MOST_REASONS = 5
MOST_GAINS = 10
Folder = Annotated[Path, typer.Argument(help="The study's folder.")]
Storage = Annotated[str | None, typer.Option(help="Ledger database URL, where it is not in the folder.")]


@app.command("list")
def list_(
    root: Annotated[Path, typer.Argument(help="Folder that holds studies.")] = Path("studies"),
    storage: Storage = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Every study below a folder, with its baseline and best."""
    from detsearch_cli.cli import console
    from detsearch_cli.search.study import Study, list_studies
    from detsearch_cli.session.study import studies_elsewhere

    if storage is None and not root.is_dir():
        raise StudyError(f"there is no folder {root}; give the folder that holds the studies")
    found = [*list_studies(root, storage), *(studies_elsewhere(root) if storage is None else ())]
    studies = [s for s in found if isinstance(s, Study)]
    if json:
        console.emit_json([_summary(s) for s in studies])
    else:
        rows = [
            [
                s["name"],
                str(s["trials"]),
                str(s["failed"]),
                console.percent(s["baseline"]),
                console.percent(s["best"]),
                str(s["folder"]),
            ]
            for s in map(_summary, studies)
        ]
        console.table(
            f"studies in {root}", ["study", "trials", "failed", "baseline AP", "best AP", "folder"], rows
        )
    for damaged in found:
        if not isinstance(damaged, Study):
            console.complain(str(damaged))


def _summary(study: Any) -> dict[str, Any]:
    baseline, best = study.baseline, study.best
    return {
        "name": study.name,
        "folder": str(study.folder),
        "sampler": study.config.sampler.name,
        "trials": len(study.trials),
        "failed": sum(r.state == "failed" for r in study.trials),
        "baseline": baseline.value if baseline else None,
        "best": best.value if best else None,
        "best_trial": best.number if best else None,
    }


def _opened(folder: Path, name: str | None, storage: str | None) -> Any:
    """The study in a folder, which says itself where its ledger is, or by name in a database."""
    from detsearch_cli.search.study import open_study
    from detsearch_cli.session.study import SETTINGS, study_of

    if name is None and storage is None and (folder / SETTINGS).is_file():
        return study_of(folder)
    return open_study(folder, name, storage)


@app.command("show")
def show(
    folder: Folder,
    name: Annotated[str | None, typer.Option(help="Name, where a database holds several.")] = None,
    storage: Storage = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Every trial of a study."""
    from detsearch_cli.cli import console
    from detsearch_cli.cli.live import as_json_of, in_short, label
    from detsearch_cli.search.refusals import reasons
    from detsearch_cli.search.study import to_json
    from detsearch_cli.session.study import standing
    from detsearch_cli.trials import gains_of, percent, points

    study, refused = _opened(folder, name, storage), reasons(folder)
    if json:
        gains = [as_json_of(candidate) for candidate in gains_of(study.trials)]
        console.emit_json({**to_json(study), "gains": gains, "refused": refused})
        return
    rows = [
        [
            label(r),
            r.state,
            console.percent(r.value),
            "" if r.seconds is None else f"{r.seconds:.0f}",
            r.reason or in_short(r),
        ]
        for r in study.trials
    ]
    console.table(
        f"{study.name} ({study.config.sampler.name})", ["trial", "state", "AP", "seconds", "candidate"], rows
    )
    for reason, count in list(refused.items())[:MOST_REASONS]:
        console.say(f"refused before training: {count} x {reason}")
    expected = [
        [
            label(candidate.trial),
            console.percent(candidate.trial.value),
            str(candidate.seeds),
            points(gain.expected, signed=True),
            f"{points(gain.low, signed=True)} to {points(gain.high, signed=True)}",
            percent(gain.better),
        ]
        for candidate in gains_of(study.trials)[:MOST_GAINS]
        if (gain := candidate.gain) is not None
    ]
    if expected:
        console.table(
            "what is expected over the baseline",
            ["candidate", "AP", "seeds", "gain", "95%", "better with"],
            expected,
        )
    best, leader = study.best, study.leader
    if best is not None:
        told = label(best) if best.baseline or leader is None else standing(leader)
        console.say(f"best: {told}" + (f", AP {console.percent(best.value)}" if best.baseline else ""))


@app.command("compare")
def compare(
    studies: Annotated[
        list[Path], typer.Argument(help="Folders of searches with the same recipe and options.")
    ],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("searches.png"),
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Which sampler finds more after how many candidates, over repeated searches."""
    from statistics import fmean

    from detsearch_cli.cli import console
    from detsearch_cli.files import claim_file, replace_file
    from detsearch_cli.report.searches import best_so_far
    from detsearch_cli.session.study import compared
    from detsearch_cli.trials import points

    found = compared(studies)
    if out.suffix.lower() != ".png":
        raise StudyError(f"the picture is a .png, got {out}")
    claim_file(out)
    picture = best_so_far(found.searches, found.baseline)
    replace_file(out, lambda path: path.write_bytes(picture.png))
    if json:
        console.emit_json({"baseline": found.baseline, "best_so_far": found.searches, "figure": str(out)})
        return
    length = min(len(one) for every in found.searches.values() for one in every)
    after = sorted({max(1, length * part // 4) for part in range(1, 5)})
    rows = []
    for name, every in found.searches.items():
        columns = [[one[number - 1] for one in every] for number in after]
        cells = [
            points(fmean(column))
            + (f" ({points(min(column))} to {points(max(column))})" if len(every) > 1 else "")
            for column in columns
        ]
        rows.append([name, str(len(every)), *cells])
    console.table(
        "highest AP so far, mean and range over searches",
        ["sampler", "searches", *(f"after {number}" for number in after)],
        rows,
    )
    if found.baseline is not None:
        console.say(f"the recipe as given: AP {points(found.baseline)}")
    console.say(f"wrote {out}")


@app.command("resume")
def resume(
    folder: Folder,
    trials: Annotated[
        int | None, typer.Option(help="More trials than before.", min=1, max=MOST_TRIALS)
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Minutes, over all resumptions.", min=0, max=MOST_MINUTES)
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Trials at a time.", min=1, max=MOST_JOBS)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Go on with a search from its folder alone."""
    from dataclasses import replace

    from detsearch_cli.cli.methods import run
    from detsearch_cli.session.search import reopened

    search = reopened(folder)
    changes: dict[str, Any] = {}
    if trials is not None:
        changes["trials"] = trials
    if time_budget is not None:
        changes["time_budget"] = time_budget * 60
    if jobs is not None:
        changes["jobs"] = jobs
    run(replace(search, settings=replace(search.settings, **changes)), json)


@app.command("export")
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="A .csv, .parquet or .json file.")],
    name: Annotated[str | None, typer.Option(help="Name, where a database holds several.")] = None,
    storage: Storage = None,
) -> None:
    """The trials as a table for other programs."""
    from detsearch_cli.cli import console
    from detsearch_cli.search.export import export as write

    study = _opened(folder, name, storage)
    write(study, out)
    console.say(f"{out}: {len(study.trials)} trials")
