"""One point a cell, every level meant for a range of regression distances (FCOS)."""

from __future__ import annotations

import math

from pydantic import Field

from detsearch_cli.slots.priors.base import PriorGrid


class Points(PriorGrid):
    """(0, 64], (64, 128], (128, 256] ... (512, inf) px. Source: Tian et al. 2019 (FCOS), section 3.2."""

    range_base: float = Field(
        default=64.0,
        gt=0,
        description="largest distance in px of level 3; doubles with every level, the last is open",
    )

    @property
    def per_cell(self) -> int:
        return 1

    def cell_boxes(self, stride: int) -> list[tuple[float, float]]:
        return [(float(stride), float(stride))]

    def ranges(self, levels: tuple[int, int]) -> list[tuple[float, float]]:
        edges = [self.range_base * 2.0 ** (level - 3) for level in range(levels[0], levels[1])]
        return list(zip([0.0, *edges], [*edges, math.inf], strict=True))
