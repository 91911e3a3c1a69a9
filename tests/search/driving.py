"""Runs searches in processes that tests may kill, and in this process without workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from detsearch_cli.search.coordinator import Event, Outcome, Plan, run
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.ledger import Ledger  # noqa: F401 (warms up the fork server)
from detsearch_cli.search.space import Integer, Space
from detsearch_cli.search.study import TrialRow, open_study
from detsearch_cli.search.worker import WorkerSpec, _run, read_json
from tests.search import fakes

SPACE = Space((Integer("a", 1, 25), Integer("b", 1, 25)))


def plan(folder: Path, **changes: Any) -> Plan:
    base = Plan(
        name="study",
        folder=folder,
        storage=None,
        space=SPACE,
        sampler="random",
        seed=1,
        trials=8,
        time_budget=None,
        jobs=1,
        executor="local",
        identity={"recipe": "r1"},
        make_recipe=fakes.recipe,
    )
    return replace(base, **changes)


class Inline(Executor):
    """Runs a trial where it is handed over: for tests of what is not about processes."""

    def launch(self, slot: int, spec: WorkerSpec) -> None: ...

    def alive(self, slot: int) -> bool:
        return True

    def interrupt(self, slot: int, kill: bool = False) -> None: ...

    def stop(self, wait: float = 0.0) -> None: ...

    def abort(self, wait: float = 0.0) -> None: ...

    def start(self, slot: int) -> None:
        folder = self.folder(slot)
        task = read_json(folder / "task.json")
        if task is not None:
            (folder / "task.json").unlink()
            _run(Path(task["folder"]), task, getattr(fakes, self.run_trial.partition(":")[2]))

    def hand(self, slot: int, trial: int, folder: Path) -> None:
        self.folder(slot).mkdir(parents=True, exist_ok=True)
        super().hand(slot, trial, folder)


def search(
    folder: Path, trial: str = "quick", on_event: Callable[[Event], None] | None = None, **changes: Any
) -> Outcome:
    """Run a search in this process."""
    return run(plan(folder, **changes), f"tests.search.fakes:{trial}", on_event or (lambda event: None))


def _main(folder: str, trial: str, changes: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    log = Path(folder).with_suffix(".events")

    def note(event: Event) -> None:
        with log.open("a") as file:
            file.write(
                json.dumps([event.kind, event.row.number if event.row else None, event.message]) + "\n"
            )

    try:
        search(Path(folder), trial, note, **changes)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def process(
    folder: Path, trial: str, environment: dict[str, str] | None = None, **changes: Any
) -> BaseProcess:
    """The same search in a process of its own, forked from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.search.driving", "detsearch_cli.search.samplers.dycors", "submitit"]
    )
    started = context.Process(target=_main, args=(str(folder), trial, changes, environment or {}))
    started.start()
    return started


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def begun(folder: Path) -> list[Path]:
    """Trial folders in which training has begun."""
    return sorted(path.parent for path in folder.glob("trials/*/begun"))


def story(rows: tuple[TrialRow, ...]) -> list[tuple[Any, ...]]:
    """What must be equal between an interrupted and an uninterrupted search."""
    return [(r.number, r.candidate, r.state, r.value, r.repeat_of, r.asked, r.told) for r in rows]


def read(folder: Path) -> tuple[TrialRow, ...]:
    return open_study(folder).rows
