"""How good is what a search chooses, where scores differ by seed alone? Simulated, without trainings.

    python benchmarks/noisy_search.py                   # 500 searches a line, some minutes
    python benchmarks/noisy_search.py --searches 50

`highest score`: every trial is a new candidate, the highest score wins. `auto`: three seeds of the baseline, a quarter of
the trials for the leaders (search/racing.py), and the candidate of highest expected value (detsearch_cli/estimates.py),
unless that is the baseline; the same number of trainings, `saved` of them by an early end (search/stopping.py). `to the
end`: without that. Candidates are drawn at random from a smooth landscape of d numbers whose best value lies `gain` above
the baseline's.

Values are AP points above the baseline, means over the searches. `best seen`: the highest true value among the candidates
that the first rule trains, the baseline included. `chosen`: the true value of what is chosen. `regret`: what is missing to
`best seen`. `worse`: in how many searches the chosen one is worse than the baseline. `announced`: in how many a candidate
is called better than the baseline, `wrongly`: without being so. `held`: how many of the leaders' 95% intervals hold the
true gain; the last line tells it of those that were announced, in all rows of `to the end`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _kernels import columns

from detsearch_cli.estimates import Gain
from detsearch_cli.search.noise import measured
from detsearch_cli.search.racing import Again, next_step
from detsearch_cli.search.stopping import unbeatable
from detsearch_cli.search.study import Trial
from detsearch_cli.trials import SURE, baseline_scores, leader_of

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


@dataclass(frozen=True)
class Found:
    """What a search with its noise measured ends with. chosen, leader: candidates, 0 the baseline."""

    chosen: int
    leader: int
    gain: Gain
    saved: int


def race(world: World, trials: int, early: bool) -> Found:
    """The search as the coordinator runs it, one trial after the other."""
    rows = [trial(k, world.scores[0, k] / 100, None, k, 0 if k else None) for k in range(SEEDS)]
    drawn = 0
    noise = measured(baseline_scores(rows))
    assert noise is not None
    while (left := trials - sum(row.trained for row in rows)) > 0:
        step = next_step(rows, trials, 0, noise.sd, False)
        if early and unbeatable(rows, 0 if isinstance(step, Again) else left) is not None:
            break
        if isinstance(step, Again):
            assert step.first.candidate is not None
            which = step.first.candidate["c"]
            score = world.scores[which, step.offset] / 100
            rows.append(trial(len(rows), score, which, step.offset, step.first.number))
        else:
            drawn += 1
            rows.append(trial(len(rows), world.scores[drawn, 0] / 100, drawn, 0, None))
    found = leader_of(rows)
    assert found is not None and found.gain is not None and found.trial.candidate is not None
    leader = int(found.trial.candidate["c"])
    return Found(leader if found.gain.expected > 0 else 0, leader, found.gain, left)


def holds(found: Found, truth: float) -> bool:
    """Whether the 95% interval does; a gain of nothing is a point, which rounding must not leave out."""
    return found.gain.low - 1e-4 <= truth / 100 <= found.gain.high + 1e-4


def line(world: Sequence[World], found: Sequence[Found]) -> list[str]:
    """What `auto` reached."""
    pairs = list(zip(world, found, strict=True))
    announced = np.array([f.gain.better >= SURE for f in found])
    truth = np.array([w.true[f.leader] for w, f in pairs])
    held = np.array([holds(f, t) for f, t in zip(found, truth, strict=True)])
    return [
        f"{100 * announced.mean():.0f}%",
        f"{100 * (announced & (truth <= 0)).mean():.0f}%",
        f"{100 * held.mean():.0f}%",
        f"{np.mean([f.saved for f in found]):.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--searches", type=int, default=500)
    searches = parser.parse_args().searches
    head = ["", "trials", "noise", "rule", "best seen", "chosen", "regret", "worse"]
    lines, announced = [[*head, "announced", "wrongly", "held", "saved"]], []
    for cell in CELLS:
        worlds = [World(cell, seed) for seed in range(searches)]
        best = np.mean([world.true.max() for world in worlds])
        for rule in ("highest score", "auto", "to the end"):
            found = [race(w, cell.trials, rule == "auto") for w in worlds] if rule != "highest score" else []
            if rule == "to the end":
                sure = [(w, f) for w, f in zip(worlds, found, strict=True) if f.gain.better >= SURE]
                announced += [holds(f, w.true[f.leader]) for w, f in sure]
            picked = [f.chosen for f in found] or [highest(w) for w in worlds]
            values = np.array([world.true[i] for world, i in zip(worlds, picked, strict=True)])
            first = rule == "highest score"
            lines.append(
                [
                    cell.name if first else "",
                    str(cell.trials),
                    f"{cell.noise:g}",
                    rule,
                    f"{best:.1f}" if first else "",
                    f"{values.mean():+.2f}",
                    f"{best - values.mean():.2f}",
                    f"{100 * (values < 0).mean():.0f}%",
                    *(line(worlds, found) if found else ["", "", "", ""]),
                ]
            )
    columns(lines)
    print(
        f"of {len(announced)} intervals that were announced {100 * np.mean(announced):.0f}% hold the true gain"
    )


if __name__ == "__main__":
    main()
