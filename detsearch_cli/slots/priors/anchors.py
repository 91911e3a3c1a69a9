"""Anchors of several sizes and aspect ratios at every cell (RetinaNet; ATSS with one square)."""

from __future__ import annotations

from pydantic import Field, field_validator

from detsearch_cli.option import MOST_SHAPES
from detsearch_cli.slots.priors.base import PriorGrid


class Anchors(PriorGrid):
    """Nine anchors a cell by default. Source: Lin et al. 2017 (focal loss), section 4; maskrcnn-benchmark.

    An anchor's area is (base * stride * 2^(i / scales))^2 for i < scales; its ratio is height / width.
    """

    base: float = Field(default=4.0, gt=0, description="side of the smallest square anchor, in strides")
    scales: int = Field(default=3, ge=1, le=16, description="anchor sizes in one octave")
    ratios: tuple[float, ...] = Field(
        default=(0.5, 1.0, 2.0), min_length=1, max_length=MOST_SHAPES, description="height / width"
    )

    @field_validator("ratios")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError(f"every ratio must be above 0, got {min(value)}")
        return value

    @property
    def per_cell(self) -> int:
        return self.scales * len(self.ratios)

    def cell_boxes(self, stride: int) -> list[tuple[float, float]]:
        sides = [self.base * stride * 2 ** (i / self.scales) for i in range(self.scales)]
        return [(side / ratio**0.5, side * ratio**0.5) for ratio in self.ratios for side in sides]
