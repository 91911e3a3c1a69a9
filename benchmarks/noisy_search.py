"""How good is the candidate that a search chooses, where scores differ by seed alone? Simulated, without trainings.

    python benchmarks/noisy_search.py                   # 500 searches a line, a minute
    python benchmarks/noisy_search.py --searches 50

`highest score`: every trial is a new candidate, the highest score wins. `racing`: three seeds of the baseline and a quarter
of the trials for the leaders (search/racing.py), the same number of trainings. Candidates are drawn at random from a
smooth landscape of d numbers whose best value lies `gain` above the baseline's. Values are AP points above the
baseline: `best seen` of the true values, `chosen` the chosen one's (0 for the baseline), `worse` the part of searches that
choose something worse than the baseline.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _kernels import columns

from detsearch_cli.search.noise import measured
from detsearch_cli.search.racing import Again, next_step
from detsearch_cli.search.study import Trial
from detsearch_cli.trials import baseline_scores, best_of

SEEDS = 3  # of the baseline
MOST_SEEDS = 40


@dataclass(frozen=True)
class Cell:
    """Points of AP. depth: how far below its best the landscape falls. noise: standard deviation over seeds; shared: the
    part of its variance that a seed gives to every recipe."""

    name: str
    numbers: int
    gain: float
    depth: float
    noise: float
    shared: float
    trials: int


CELLS = (
    Cell("217 images, loud", 5, 1, 15, 7.7, 0.3, 14),
    Cell("the same, more to gain", 5, 6, 15, 7.7, 0.3, 14),
    Cell("bccd RetinaNet: all are worse", 3, -1, 6, 2, 0.5, 20),
    Cell("heads: 2 AP to gain, noise 2", 3, 2, 6, 2, 0.5, 20),
    Cell("the same, 40 trials", 3, 2, 6, 2, 0.5, 40),
    Cell("one number", 1, 2, 6, 2, 0.5, 14),
    Cell("4 AP to gain, noise 1", 3, 4, 12, 1, 0.5, 20),
    Cell("no noise", 3, 4, 12, 0.02, 0.5, 20),
    Cell("nothing makes a difference", 3, 0, 0, 2, 0.5, 20),
)


class World:
    """One landscape with its noise. true: values of the baseline and of every candidate that may be drawn."""

    def __init__(self, cell: Cell, seed: int) -> None:
        rng = np.random.default_rng([7, seed])
        points, peak = rng.uniform(0, 1, (cell.trials, cell.numbers)), rng.uniform(0.1, 0.9, cell.numbers)
        weight = rng.uniform(0.5, 1.5, cell.numbers)
        far = ((points - peak) ** 2 * weight / weight.sum()).sum(1)
        waves = np.sin(6 * points @ rng.normal(0, 1, (cell.numbers, 8)) + rng.uniform(0, 6.28, 8)).mean(1)
        rough = 0.15 * cell.depth * waves
        self.true = np.concatenate([[0.0], cell.gain - cell.depth * far / (0.08 + far) + rough])
        common = rng.normal(0, cell.noise * np.sqrt(cell.shared), MOST_SEEDS)
        own = rng.normal(0, cell.noise * np.sqrt(1 - cell.shared), (cell.trials + 1, MOST_SEEDS))
        self.scores = 50 + self.true[:, None] + common + own


def trial(number: int, value: float, candidate: int | None, seed: int, again_of: int | None) -> Trial:
    named = None if candidate is None else {"c": candidate}
    return Trial(number, named, "complete", value, 1.0, None, Path(), "", {}, again_of=again_of, seed=seed)


def highest(world: World) -> int:
    """The candidate of the highest score, each with one seed; 0 is the baseline."""
    return int(world.scores[:, 0].argmax())


def race(world: World, trials: int) -> int:
    """The candidate that a race chooses."""
    rows = [trial(k, world.scores[0, k], None, k, 0 if k else None) for k in range(SEEDS)]
    drawn = 0
    noise = measured(baseline_scores(rows))
    assert noise is not None
    while sum(row.trained for row in rows) < trials:
        step = next_step(rows, trials, 0, noise.sd, False)
        if isinstance(step, Again):
            assert step.first.candidate is not None
            which = step.first.candidate["c"]
            score = world.scores[which, step.offset]
            rows.append(trial(len(rows), score, which, step.offset, step.first.number))
        else:
            drawn += 1
            rows.append(trial(len(rows), world.scores[drawn, 0], drawn, 0, None))
    best = best_of(rows)
    assert best is not None
    return 0 if best.candidate is None else int(best.candidate["c"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=500)
    searches = parser.parse_args().searches
    lines = [["", "trials", "noise", "rule", "best seen", "chosen", "worse"]]
    for cell in CELLS:
        worlds = [World(cell, seed) for seed in range(searches)]
        best = np.mean([max(world.true.max(), 0.0) for world in worlds])
        for rule in ("highest score", "racing"):
            picked = [highest(w) if rule == "highest score" else race(w, cell.trials) for w in worlds]
            values = np.array([world.true[i] for world, i in zip(worlds, picked, strict=True)])
            worse = f"{100 * (values < 0).mean():.0f}%"
            name, told = (cell.name, f"{best:.1f}") if rule == "highest score" else ("", "")
            lines.append(
                [name, str(cell.trials), f"{cell.noise:g}", rule, told, f"{values.mean():+.2f}", worse]
            )
    columns(lines)


if __name__ == "__main__":
    main()
