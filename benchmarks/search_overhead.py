"""Everything a search adds to its trials: their time alone against what the search occupies.

    python benchmarks/search_overhead.py                       # trials that sleep 20 s: ten of them, 2 minutes
    python benchmarks/search_overhead.py --trials 39 --data path/to/set
    python benchmarks/search_overhead.py --train               # real trainings through `detsearch assign search`
    python benchmarks/search_overhead.py --refuse 10000        # candidates that are refused: seconds
    python benchmarks/search_overhead.py --noise 100           # what knowing its noise costs a search: seconds

overhead = workers x wall time of the search's process / sum of the trials' own time - 1. Start-up is paid once a
worker, so longer searches have less of it. Exits 1 above a tenth.

Sleeping trials: the coordinator, ledger, DYCORS over fifteen counts and local workers are real, and each worker
pays what a training pays before its first step (imports, reading labels, decoding every image of train and
val, building the detector); the training itself is a sleep, so a busy machine does not blur the result. One
pass of augmentation is counted as overhead too, though it is not. The column `processor` is what coordinator
and workers computed, as a part of the sleep; other programs do not change it. `--spread` lets the sleeps
differ, which costs more: results are recorded in the order of the trials, so a worker waits for an older
trial. Spread .25: uniform in 15..25 s.

Real trainings: a trial's own time is the median of its worker's later trials, which find everything imported and
decoded; best.yaml and the report are counted as overhead too.

Noise: the same search of instant trials twice, with one seed each, and with three seeds of the baseline, leaders that are
trained again, expected values after every event and the question whether to end early. Processor time of the
coordinator, a trial. Exits 1 where the difference is above 20 ms.

Refused candidates are drawn at random from fifteen counts; each is proposed, refused, logged and told. Exits 1 above
1 ms of the processor each; other programs do not change that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detsearch_cli.search.plan import Plan
    from detsearch_cli.search.study import Trial

LIMIT = 0.10
MILLISECOND = 1e-3
MOST_OF_NOISE = 0.020
SIZE = {
    "detector": "fcos",
    "backbone": "tiny",
    "neck": {"channels": 32, "levels": [3, 7]},
    "head": {"convs": 1},
    "augment": {"image_size": 192},
    "optim": {"name": "adamw", "lr": 0.002, "batch_size": 16},
    "schedule": {"epochs": 6, "eval_every": 0},
    "runtime": {"device": "cpu", "cache": "ram"},
}


def sleeping_trial(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """What a worker runs: on its first trial all that comes before the first step, then a sleep."""
    import torch
    import yaml

    from detsearch_cli.data.loader import Loader
    from detsearch_cli.detectors import build
    from detsearch_cli.engine.trial import load_data
    from detsearch_cli.recipe import validate

    begun = time.monotonic()
    recipe = validate(yaml.safe_load(recipe_yaml))
    data = load_data(recipe.data)
    build(recipe, len(data.train.classes))
    if not _DECODED:
        for split in (data.train, data.val):
            loader = Loader(
                split,
                recipe.augment,
                batch_size=16,
                train=split is data.train,
                seed=0,
                device=torch.device("cpu"),
                cache="ram",
            )
            for _ in loader.epoch(0):
                pass
        _DECODED.append(True)
    prepared = time.monotonic() - begun
    path = Path(folder)
    asked = json.loads((path.parents[1] / "sleep.json").read_text())
    low, high = asked["seconds"] * (1 - asked["spread"]), asked["seconds"] * (1 + asked["spread"])
    seconds = random.Random(int(path.name)).uniform(low, high)
    time.sleep(seconds)
    times = {"own": seconds, "prepared": prepared, "processor": time.process_time()}
    return {"AP": 0.3 + random.Random(int(path.name)).random() / 50, **times}


_DECODED: list[bool] = []


def plan(
    folder: Path, args: argparse.Namespace, sampler: str, trials: int, prepare: Any, noisy: bool = False
) -> Plan:
    """A search over fifteen counts, three for each of five pyramid levels, as HPS-Det's."""
    from detsearch_cli.search.config import SamplerChoice, StudyConfig
    from detsearch_cli.search.plan import Plan
    from detsearch_cli.search.space import Integer, Product

    space = Product(tuple(Integer(f"c{i}", 1, 25) for i in range(15)))
    choice = SamplerChoice.parse(sampler)
    config = StudyConfig({}, space, choice, 0, trials, args.jobs, 3 if noisy else 1, noisy)
    return Plan(
        name="overhead",
        folder=folder,
        storage=None,
        config=config,
        trials=trials,
        time_budget=None,
        jobs=args.jobs,
        executor="local",
        epochs=1,
        prepare=prepare,
        with_seed=lambda prepared, seed: replace(prepared, recipe_yaml=f"{prepared.recipe_yaml} {seed}"),
        stops=noisy,
    )


def search_asleep(folder: Path, args: argparse.Namespace) -> None:
    """The coordinator of the sleeping trials; runs in a process of its own, so that its start is counted."""
    from detsearch_cli.recipe import compose, with_fragment
    from detsearch_cli.search.coordinator import run
    from detsearch_cli.search.plan import Prepared

    recipe = compose([("benchmark", SIZE), ("data", {"data": {"source": args.data, "val_fraction": 0.2}})])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sleep.json").write_text(json.dumps({"seconds": args.seconds, "spread": args.spread}))

    def prepare(candidate: dict[str, int] | None) -> Prepared:
        if candidate is None:
            return Prepared(recipe.to_yaml(), recipe.hash(), {})
        numbers = list(candidate.values())
        counts = [numbers[level : level + 3] for level in range(0, 15, 3)]
        fragment = {"assign": {"name": "dynamic", "counts": counts, "edges": [[0.5, 2.0]] * 5}}
        made = with_fragment(recipe, fragment)
        return Prepared(made.to_yaml(), made.hash(), fragment)

    run(plan(folder, args, "dycors", args.trials, prepare), "search_overhead:sleeping_trial")
    (folder / "processor.json").write_text(json.dumps(time.process_time()))


def instant_trial(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """The baseline's training, where only refusals are measured."""
    return {"AP": 0.3}


def show(cells: dict[str, Any]) -> None:
    """Two lines, each value below its name."""
    for line in (cells, cells.values()):
        print("  ".join(f"{cell:>17}" for cell in line))


def noisy_trial(recipe_yaml: str, folder: str, epochs: int | None = None) -> dict[str, Any]:
    """A score of the recipe and its seed alone, around .3."""
    return {"AP": random.Random(recipe_yaml).gauss(0.3, 0.02)}


def measure_noise(folder: Path, args: argparse.Namespace) -> int:
    """Prints what knowing its noise costs a search; 1 where it is too much."""
    from detsearch_cli.search.coordinator import run
    from detsearch_cli.search.plan import Prepared

    def prepare(candidate: dict[str, int] | None) -> Prepared:
        text = json.dumps(candidate)
        return Prepared(text, f"{hash(text):x}", {})

    each = {}
    for name, noisy, trials in (
        ("first", True, 10),
        ("plain", False, args.noise),
        ("noisy", True, args.noise),
    ):
        begun = time.process_time()  # the first search pays for the imports, and is not told
        outcome = run(
            plan(folder / name, args, args.sampler, trials, prepare, noisy), "search_overhead:noisy_trial"
        )
        trained = sum(trial.trained for trial in outcome.trials)
        each[noisy] = (time.process_time() - begun) / trained
    cells = {
        "sampler": args.sampler,
        "trials": trained,
        "ms, one seed each": f"{1000 * each[False]:.1f}",
        "ms, with noise": f"{1000 * each[True]:.1f}",
        "difference": f"{1000 * (each[True] - each[False]):.1f}",
        "machine load": f"{os.getloadavg()[0]:.1f}",
    }
    show(cells)
    return int(each[True] - each[False] > MOST_OF_NOISE)


def measure_refusals(folder: Path, args: argparse.Namespace) -> int:
    """Prints what refused candidates cost; 1 where it is too much."""
    from detsearch_cli.search import proposing
    from detsearch_cli.search.coordinator import run
    from detsearch_cli.search.plan import Prepared, Refused

    proposing.MAX_REFUSED_IN_A_ROW = args.refuse
    begun: list[tuple[float, float]] = []

    def prepare(candidate: dict[str, int] | None) -> Prepared | Refused:
        if candidate is None:
            return Prepared("{}", "baseline", {})
        begun.append((time.monotonic(), time.process_time()))
        return Refused("measured")

    outcome = run(plan(folder, args, args.sampler, 10, prepare), "search_overhead:instant_trial")
    # from the first proposal, so that the baseline and its worker's start are left out
    seconds, processor = (last - first for first, last in zip(begun[0], begun[-1], strict=True))
    cells = {
        "sampler": args.sampler,
        "refused": outcome.refused,
        "seconds": f"{seconds:.2f}",
        "processor s": f"{processor:.2f}",
        "ms each": f"{1000 * processor / outcome.refused:.3f}",
        "machine load": f"{os.getloadavg()[0]:.1f}",
    }
    show(cells)
    return int(processor > MILLISECOND * outcome.refused)


def timed(command: list[str]) -> float:
    """Wall seconds of a process of this Python. Ends the script when it fails; it has said why on stderr."""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, *command], check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"nothing measured: the search ended with exit code {done.returncode}, its message is above")
    return time.monotonic() - begun


@dataclass(frozen=True)
class Measured:
    """wall: seconds of the search's process. own: every trial's. first: most that a first trial took longer.
    processor: seconds that coordinator and workers computed, None where they trained, too."""

    wall: float
    own: list[float]
    first: float
    processor: float | None = None


def measure_asleep(folder: Path, args: argparse.Namespace) -> Measured:
    """A search whose trials sleep."""
    given = [f"--{k}={getattr(args, k)}" for k in ("trials", "jobs", "seconds", "spread", "data")]
    wall = timed([__file__, "--inside", str(folder), *given])
    trials = trained(folder)
    # the last of each worker stands: it is cumulative
    workers = {trial.worker: trial.metrics["processor"] for trial in trials}
    processor = sum(workers.values()) + json.loads((folder / "processor.json").read_text())
    prepared = max(trial.metrics["prepared"] for trial in trials)
    return Measured(wall, [trial.metrics["own"] for trial in trials], prepared, processor)


def measure_training(folder: Path, args: argparse.Namespace) -> Measured:
    """`detsearch assign search`; own seconds as the module's text says."""
    import yaml

    (folder / "size.yaml").write_text(yaml.safe_dump(SIZE))
    wall = timed(
        [
            *("-m", "detsearch_cli.cli.app", "assign", "search", "--recipe", str(folder / "size.yaml")),
            *("--data", args.data, "--val-fraction", "0.2", "--trials", str(args.trials)),
            *("--jobs", str(args.jobs), "--out", str(folder), "--name", "overhead", "--json"),
        ]
    )
    trials = trained(folder / "overhead")
    own: list[float] = []
    first: list[float] = []
    for worker in {trial.worker for trial in trials}:
        seconds = [trial.seconds or 0.0 for trial in trials if trial.worker == worker]
        later = statistics.median(seconds[1:] or seconds)
        own += [later] * len(seconds)
        first.append(seconds[0] - later)
    return Measured(wall, own, max(first))


def trained(folder: Path) -> list[Trial]:
    """The trials that ran, without those answered from the ledger. Ends the script when one has failed."""
    from detsearch_cli.search.study import open_study

    trials = [trial for trial in open_study(folder).trials if trial.repeat_of is None]
    failed = [trial for trial in trials if trial.value is None]
    if failed:
        first = failed[0]
        sys.exit(
            f"nothing measured: {len(failed)} of {len(trials)} trials failed, first trial {first.number}: "
            f"{first.reason or first.state}"
        )
    return trials


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=9, help="beside the baseline")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a sleeping trial")
    parser.add_argument("--spread", type=float, default=0.0, help="sleeps differ by up to this part")
    parser.add_argument("--data", default="shapes:images=400,size=192")
    parser.add_argument("--train", action="store_true", help="real trainings instead of sleeps")
    parser.add_argument("--refuse", type=int, help="measure so many refused candidates instead")
    parser.add_argument(
        "--noise", type=int, help="measure what knowing its noise costs so many trials instead"
    )
    parser.add_argument("--sampler", default="random", help="of these two")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside is not None:
        search_asleep(args.inside, args)
        return 0
    with tempfile.TemporaryDirectory() as made:
        if args.refuse is not None:
            return measure_refusals(Path(made), args)
        if args.noise is not None:
            return measure_noise(Path(made), args)
        found = (measure_training if args.train else measure_asleep)(Path(made), args)
    count, total = len(found.own), sum(found.own)
    overhead = args.jobs * found.wall / total - 1
    cells = {
        "trainings": count,
        "own s": f"{total / count:.1f}",
        "wall s": f"{found.wall:.1f}",
        "first trial +s": f"{found.first:.1f}",
        "processor": "-" if found.processor is None else f"{found.processor / total:.1%}",
        "overhead": f"{overhead:.1%}",
        "machine load": f"{os.getloadavg()[0]:.1f}",
    }
    show(cells)
    idle = args.jobs * -(-count // args.jobs) / count - 1
    if idle:
        print(f"of which {idle:.1%} because {count} trainings do not divide among {args.jobs} workers")
    return int(overhead > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
