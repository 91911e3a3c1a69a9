"""What every prior grid is: priors tiled over the cells of every pyramid level."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from detsearch_kernels.assign import Tiling
from pydantic import Field
from torch import Tensor

from detsearch_cli.parts import Part
from detsearch_cli.structures import Priors

CELL_CENTRE = 0.5
"""The middle of a cell, in strides from its upper left corner."""


class PriorGrid(Part):
    """Tiles priors over feature maps. Subclasses give the boxes of one cell."""

    later_options: ClassVar[frozenset[str]] = frozenset({"offset", "spread"})
    offset: float = Field(
        default=CELL_CENTRE,
        ge=0,
        le=1,
        description="where in its cell a prior is centred, in strides: 0.5 its middle, 0 its corner (torchvision)",
    )
    spread: bool = Field(
        default=False,
        description="cells lie the image's side over their number apart, in whole px (torchvision), not a stride",
    )

    @property
    @abstractmethod
    def per_cell(self) -> int:
        """Priors at every cell, the same on all levels."""

    @abstractmethod
    def cell_boxes(self, stride: int) -> list[tuple[float, float]]:
        """Width and height in px of the `per_cell` priors at a cell of a level with this stride."""

    def level_boxes(self, levels: tuple[int, int]) -> list[list[tuple[float, float]]]:
        """`cell_boxes` of every level from the first to the last; level i has stride 2^i px."""
        return [self.cell_boxes(2**level) for level in range(levels[0], levels[1] + 1)]

    def check(self, levels: tuple[int, int]) -> None:
        """Called when a detector is built. Raises RecipeError where the options do not fit its levels."""

    def ranges(self, levels: tuple[int, int]) -> list[tuple[float, float]] | None:
        """(low, high] regression distance in px of every level, None where the grid has none."""
        return None

    def __call__(
        self,
        sizes: list[tuple[int, int]],
        levels: tuple[int, int],
        device: torch.device | None = None,
        strides: Sequence[float] | None = None,
    ) -> Priors:
        """All priors, level after level, row-major, the priors of a cell together.

        sizes: height and width in cells of every level; levels: first and last; level i has stride 2^i px, unless
        `strides` says otherwise. A cell's priors are centred at (column + offset, row + offset) strides, or `spread`.
        """
        strides = strides or [2**level for level in range(levels[0], levels[1] + 1)]
        # every side is a multiple of the finest stride, but levels above 5 may have a cell that sticks out
        image = [round(cells * strides[0]) for cells in sizes[0]]
        points = []
        for size, stride in zip(sizes, strides, strict=True):
            apart = [side // cells for side, cells in zip(image, size, strict=True)]
            points.append(_centers(size, apart if self.spread else (stride, stride), self.offset))
        # on the CPU, and moved at the end: priors are the same numbers on every device
        half = [torch.tensor(boxes) / 2 for boxes in self.level_boxes(levels)]
        cell = torch.stack([torch.cat((-h, h), -1) for h in half])
        boxes = [(p.repeat(1, 2)[:, None] + c).reshape(-1, 4) for p, c in zip(points, cell, strict=True)]
        counts = tuple(len(b) for b in boxes)
        ranges = self.ranges(levels)
        spans = torch.empty(0, 2) if ranges is None else torch.tensor(ranges)
        return Priors(
            boxes=torch.cat(boxes).to(device),
            points=torch.cat(points).repeat_interleave(self.per_cell, 0).to(device),
            level=torch.repeat_interleave(torch.arange(len(strides)), torch.tensor(counts)).to(device),
            strides=torch.tensor(strides, dtype=torch.float32, device=device),
            counts=counts,
            ranges=None if ranges is None else spans.to(device),
            tiling=self._tiling(sizes, strides, cell, spans),
            sizes=tuple((height, width) for height, width in sizes),
            image=(image[0], image[1]),
        )

    def _tiling(
        self, sizes: list[tuple[int, int]], strides: Sequence[float], cell: Tensor, spans: Tensor
    ) -> Tiling | None:
        # the compiled operators take every prior to lie in the middle of its cell; PyTorch assigns the others
        if self.offset != CELL_CENTRE or self.spread:
            return None
        return Tiling(torch.tensor(sizes), torch.tensor(strides, dtype=torch.float32), cell, spans)


def _centers(size: tuple[int, int], apart: Sequence[float], offset: float) -> Tensor:
    """Row-major xy px of cells that lie `apart` (down, across) px from each other."""
    rows = (torch.arange(size[0], dtype=torch.float32) + offset) * apart[0]
    columns = (torch.arange(size[1], dtype=torch.float32) + offset) * apart[1]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.reshape(-1), y.reshape(-1)), -1)
