"""Runs searches in processes that tests may kill, and in this process without workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from detsearch_cli.search import coordinator
from detsearch_cli.search.config import SamplerChoice, StudyConfig
from detsearch_cli.search.executors.base import Executor
from detsearch_cli.search.executors.slurm import Slurm
from detsearch_cli.search.ledger import Ledger  # noqa: F401 (warms up the fork server)
from detsearch_cli.search.plan import Event, Outcome, Plan, Prepared, Refused
from detsearch_cli.search.space import Candidate, Integer, Product
from detsearch_cli.search.study import Trial, open_study
from detsearch_cli.search.worker import WorkerSpec, _run, read_task
from tests.search import fakes, halving

SPACE = Product((Integer("a", 1, 25), Integer("b", 1, 25)))
CONFIG = ("identity", "space", "sampler", "seed", "budget", "workers", "noise_seeds", "races")


def prepared(recipe_yaml: str, candidate: Candidate | None) -> Prepared:
    """Named by its text, since these recipes are no real ones."""
    name = hashlib.sha256(recipe_yaml.encode()).hexdigest()[:16]
    return Prepared(recipe_yaml, name, {"assign": candidate} if candidate else {})


def prepare(candidate: Candidate | None) -> Prepared:
    return prepared(fakes.recipe(candidate), candidate)


def with_seed(given: Prepared, seed: int) -> Prepared:
    text = json.dumps({**json.loads(given.recipe_yaml), "seed": seed}, sort_keys=True)
    return replace(prepared(text, None), fragment=given.fragment)


def refusing_even(candidate: Candidate | None) -> Prepared | Refused:
    """Refuses even first numbers."""
    if candidate and candidate["a"] % 2 == 0:
        return Refused("a must be odd")
    return prepare(candidate)


def plan(folder: Path, **changes: Any) -> Plan:
    """A plan of the tests; changes go to the Plan or to its StudyConfig. sampler: as for `SamplerChoice.parse`."""
    config: dict[str, Any] = {
        "identity": {"recipe": {"optim": {"lr": 0.1}}},
        "space": SPACE,
        "sampler": "random",
        "seed": 1,
    }
    config |= {"budget": changes.get("trials", 8), "workers": changes.get("jobs", 1)}
    config |= {name: changes.pop(name) for name in CONFIG if name in changes}
    config["sampler"] = SamplerChoice.parse(config["sampler"])
    base = Plan(
        name="study",
        folder=folder,
        storage=None,
        config=StudyConfig(**config),
        trials=8,
        time_budget=None,
        jobs=1,
        executor="local",
        epochs=9,
        prepare=prepare,
        with_seed=with_seed,
    )
    return replace(base, **changes)


class Inline(Executor):
    """Runs a trial where it is handed over: for tests of what is not about processes."""

    def launch(self, worker: int, spec: WorkerSpec) -> None: ...

    def alive(self, worker: int) -> bool:
        return True

    def interrupt(self, worker: int, kill: bool = False) -> None: ...

    def stop(self, wait: float = 0.0) -> None: ...

    def abort(self, wait: float = 0.0) -> None: ...

    def start(self, worker: int) -> None:
        folder = self.folder(worker)
        task = read_task(folder / "task.json")
        if task is not None:
            (folder / "task.json").unlink()
            _run(task, getattr(fakes, self.run_trial.partition(":")[2]))


def search(
    folder: Path, trial: str = "quick", on_event: Callable[[Event], None] | None = None, **changes: Any
) -> Outcome:
    """Run a search in this process."""
    run = coordinator.run
    return run(plan(folder, **changes), f"tests.search.fakes:{trial}", on_event or (lambda event: None))


def _main(folder: str, trial: str, changes: dict[str, Any], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    # shorter than a user would want them
    Executor.idle_seconds = float(environment.get("IDLE_SECONDS", Executor.idle_seconds))
    Slurm.check_seconds = 0.1
    halving.install()
    log = Path(folder).with_suffix(".events")

    def note(event: Event) -> None:
        with log.open("a") as file:
            file.write(
                json.dumps([event.kind, event.trial.number if event.trial else None, event.message]) + "\n"
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


def killed_at(folder: Path, counts: tuple[int, ...], **changes: Any) -> list[tuple[Any, ...]]:
    """A search killed when so many trainings have begun, each time begun again; the story of what it ends with."""
    for count in counts:
        running = process(folder, "short", **changes)
        wait_for(lambda count=count: len(begun(folder)) >= count)
        running.kill()
        running.join()
    last = process(folder, "short", **changes)
    last.join()
    assert last.exitcode == 0
    return story(read(folder))


def begun(folder: Path) -> list[Path]:
    """Trial folders in which training has begun."""
    return sorted(path.parent for path in folder.glob("trials/*/begun"))


def story(trials: tuple[Trial, ...]) -> list[tuple[Any, ...]]:
    """What must be equal between an interrupted and an uninterrupted search."""
    return [
        (t.number, t.candidate, t.epochs, t.state, t.value, t.repeat_of, t.continues, t.asked, t.told)
        for t in trials
    ]


def read(folder: Path) -> tuple[Trial, ...]:
    return open_study(folder).trials
