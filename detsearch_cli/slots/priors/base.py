"""What every prior grid is: priors tiled over the cells of every pyramid level."""

from __future__ import annotations

from abc import abstractmethod

import torch
from detsearch_kernels.assign import Tiling
from torch import Tensor

from detsearch_cli.parts import Part
from detsearch_cli.structures import Priors


class PriorGrid(Part):
    """Tiles priors over feature maps. Subclasses give the boxes of one cell."""

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
        self, sizes: list[tuple[int, int]], levels: tuple[int, int], device: torch.device | None = None
    ) -> Priors:
        """All priors, level after level, row-major, the priors of a cell together.

        sizes: height and width in cells of every level; levels: first and last; level i has stride 2^i px.
        A cell's priors are centred at (column + .5, row + .5) strides.
        """
        strides = [2**level for level in range(levels[0], levels[1] + 1)]
        points = [_centers(size, stride) for size, stride in zip(sizes, strides, strict=True)]
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
            tiling=Tiling(torch.tensor(sizes), torch.tensor(strides, dtype=torch.float32), cell, spans),
            sizes=tuple((height, width) for height, width in sizes),
        )


def _centers(size: tuple[int, int], stride: int) -> Tensor:
    rows = (torch.arange(size[0], dtype=torch.float32) + 0.5) * stride
    columns = (torch.arange(size[1], dtype=torch.float32) + 0.5) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x.reshape(-1), y.reshape(-1)), -1)
