"""Are the trainings of a search long enough? What the baseline's scores on the way say.

Where AP still climbs steeply at the end of a training, or equal trainings end far apart (in two clusters, say, of which one
has just begun to learn), a search compares who learns first, and not who ends higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import optimize

from detsearch_cli.search.study import Trial
from detsearch_cli.trials import points, scored

STEEP = 0.2
"""Of the AP at the end, gained in the second half: an exponential approach is then below 94% of its plateau. Not in the
last quarter: with a learning rate that falls to 0 AP is flat there, whatever a longer training would gain
(docs/results.md)."""
APART = 0.15
"""Standard deviation over seeds, as a part of the mean: trainings that have settled end within a few percent."""
UNLEARNED = 0.01  # AP
SETTLED = 3
"""Time constants of an exponential approach: 95% of its plateau."""
FARTHEST = 4
"""Times the present length: a curve says little of what is far beyond its end."""


@dataclass(frozen=True)
class Course:
    """AP on the way, mean over the baseline's seeds; fractions.

    points: (epoch, AP), ascending, the end last. ends: AP at the end, one a seed.
    """

    points: tuple[tuple[int, float], ...]
    ends: tuple[float, ...]

    @property
    def end(self) -> float:
        return self.points[-1][1]

    @property
    def late(self) -> float:
        """AP gained in the second half; between two scores it is taken to grow evenly."""
        epochs, values = zip((0, 0.0), *self.points, strict=True)
        return self.end - float(np.interp(epochs[-1] / 2, epochs, values))

    @property
    def climbs(self) -> bool:
        return self.late > STEEP * self.end

    @property
    def jumps(self) -> bool:
        return len(self.ends) > 1 and stdev(self.ends) > APART * fmean(self.ends)

    @property
    def unlearned(self) -> bool:
        return self.end < UNLEARNED

    @property
    def settled(self) -> bool:
        return not (self.unlearned or self.climbs or self.jumps)

    @property
    def enough(self) -> int:
        """Epochs after which AP would be flat, as far as an exponential approach says; FARTHEST times as many at most.

        Half as many again at least, and twice as many where equal trainings end far apart.
        """
        last = self.points[-1][0]
        if self.unlearned:
            return FARTHEST * last
        wanted = round(SETTLED * self._time_constant())
        return max(math.ceil((2 if self.jumps else 1.5) * last), min(wanted, FARTHEST * last))

    def _time_constant(self) -> float:
        """Epochs, of plateau * (1 - exp(-epoch / constant)) laid through the points by least squares."""
        last = self.points[-1][0]

        def misfit(constant: float) -> float:
            shape = [-math.expm1(-epoch / constant) for epoch, _ in self.points]
            plateau = sum(s * ap for s, (_, ap) in zip(shape, self.points, strict=True)) / sum(
                s * s for s in shape
            )
            return sum((plateau * s - ap) ** 2 for s, (_, ap) in zip(shape, self.points, strict=True))

        return float(optimize.minimize_scalar(misfit, bounds=(last / 100, 10 * last), method="bounded").x)


def course_of(trials: Sequence[Trial]) -> Course | None:
    """What the baseline's trials say; None with fewer than two scores on the way that all seeds have."""
    rows = [trial for trial in scored(trials) if trial.baseline]
    ways = [dict(trial.scores) for trial in rows]
    epochs = sorted(set.intersection(*map(set, ways))) if ways else []
    if len(epochs) < 2 or epochs[-1] < 2:
        return None
    means = tuple((epoch, fmean(way[epoch] for way in ways)) for epoch in epochs)
    return Course(means, tuple(trial.value or 0.0 for trial in rows))


def in_words(course: Course) -> str | None:
    """Why the trainings are too short, and which length to try; None where they have settled."""
    last = course.points[-1][0]
    longer = f"try {course.enough} epochs before comparing candidates"
    if course.unlearned:
        return f"the trainings are too short: AP is {points(course.end)} after {last} epochs; {longer}"
    if course.jumps:
        ends = ", ".join(points(end) for end in course.ends)
        return (
            f"the trainings are too short, or unsteady: equal ones end as far apart as AP {ends}; {longer}, or a lower "
            "learning rate"
        )
    if course.climbs:
        return (
            f"the trainings are too short: AP still climbs at the end, by {points(course.late)} of {points(course.end)} "
            f"in the second half; {longer}"
        )
    return None
