"""A regular grid with as many evenly spaced levels as the budget allows."""

from __future__ import annotations

from detsearch_cli.parts import Part
from detsearch_cli.search.samplers.base import ProductSampler, Proposal, stream
from detsearch_cli.search.space import Product


class Grid(ProductSampler):
    """Levels are the centres of equal parts of each range; with all its levels a parameter has every value.

    Parameters gain levels in turn while the grid fits the budget. Where even two levels each are more points
    than the budget (2^15 for fifteen counts), the points are a seeded draw from that grid: every parameter
    still varies, which a grid over the first few parameters would not do.
    """

    def __init__(
        self, space: Product, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        self.levels = _levels(space, self.budget)
        self.points = 1
        for count in self.levels:
            self.points *= count
        self._order = _draw(self.points, self.budget, seed)

    @property
    def exhausted(self) -> bool:
        return self.asked >= len(self._order)

    def propose(self) -> Proposal | None:
        if self.exhausted:
            return None
        rest = self._order[self.asked]
        indices: list[int] = []
        for count in reversed(self.levels):
            rest, index = divmod(rest, count)
            indices.append(index)
        parts = zip(self.space.parameters, reversed(indices), self.levels, strict=True)
        return Proposal({p.name: p.level(index, count) for p, index, count in parts})

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        """A grid learns nothing."""

    def fail(self, proposal: Proposal) -> None:
        """A grid learns nothing."""

    def refused(self, proposal: Proposal, reason: str) -> None:
        """A grid learns nothing."""


def _levels(space: Product, budget: int) -> list[int]:
    limits = [p.size if p.size is not None else budget for p in space.parameters]
    levels = [min(2, limit) for limit in limits]
    product = 1
    for count in levels:
        product *= count
    grown = True
    while grown:
        grown = False
        for i, limit in enumerate(limits):
            larger = product // levels[i] * (levels[i] + 1)
            if levels[i] < limit and larger <= budget:
                levels[i] += 1
                product = larger
                grown = True
    return levels


def _draw(points: int, budget: int, seed: int) -> list[int]:
    """Grid point numbers in the order they are proposed, at most `budget`, all different."""
    if points <= budget:
        return list(range(points))
    rng = stream(seed, 0)
    drawn: dict[int, None] = {}
    while len(drawn) < budget:
        # a grid may hold more points than fit an int64, so draw its digits in chunks
        number = 0
        for _ in range(points.bit_length() // 32 + 1):
            number = (number << 32) | int(rng.integers(0, 1 << 32))
        drawn.setdefault(number % points)
    return list(drawn)
