"""Are the trainings of a search long enough? What the baseline's scores on the way say.

Where AP still climbs steeply at the end of a training, or equal trainings end far apart (in two clusters, say, of which one
has just begun to learn), a search compares who learns first, and not who ends higher.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import optimize

from detsearch_cli.search.study import Trial
from detsearch_cli.trials import points, scored

STEEP = 0.1
"""Of the AP at the end, gained in the last quarter: an exponential approach is then at 86% of its plateau or below.
docs/results.md: in trainings that a doubled length improves by less than that, the last quarter gives up to 5%."""
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

    points: (epoch, AP), ascending, the end last. late: AP gained in the last quarter. ends: AP at the end, one a seed.
    """

    points: tuple[tuple[int, float], ...]
    late: float
    ends: tuple[float, ...]

    @property
    def end(self) -> float:
        return self.points[-1][1]

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

        Where equal trainings end far apart, twice as many at least.
        """
        last = self.points[-1][0]
        if self.unlearned:
            return FARTHEST * last
        wanted = round(SETTLED * self._time_constant())
        return max(last + 1, 2 * last if self.jumps else 0, min(wanted, FARTHEST * last))

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
    means = [(epoch, fmean(way[epoch] for way in ways)) for epoch in epochs]
    (before, earlier), (last, end) = means[-2:]
    late = (end - earlier) / (last - before) * last / 4  # scores may not lie a quarter apart
    return Course(tuple(means), late, tuple(trial.value or 0.0 for trial in rows))


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
            f"in the last quarter; {longer}"
        )
    return None
