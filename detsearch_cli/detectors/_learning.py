"""Anchor shapes that learn: the parameters, and the three techniques that help them.

    gradient     through log(g / a) in the encoded target or the decoded box          Eq. 8, 9
    share        soft assignment: every shape of a cell has its part in a match       Eq. 10
    cluster      pulls shapes to the boxes they answer for                            Eq. 11, 12
    SizeNorm     batch norm without shift on the predicted widths and heights         section 3.2.3

Source: Zhong et al. 2020 (anchor box optimization), section 3.2.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.structures import Priors

SMALLEST = 1.01
"""px. Encoding counts smaller sides as 1 px, and a clamped side has no gradient."""


class LearnedShapes(nn.Module):
    """log_shapes (L, S, 2): log width and log height in px of the S shapes of each of L levels.

    A level's shapes stay between a quarter of its stride and the largest side of a training image: the bounds are
    applied to whatever reads the shapes, without taking their gradient, and to the parameters before each step.
    """

    low: Tensor
    high: Tensor

    def __init__(self, options: Learned, levels: tuple[int, int], image: int) -> None:
        super().__init__()
        self.options = options
        initial = torch.tensor(options.level_boxes(levels), dtype=torch.float32).log()
        quarter = [max(2**level / 4, SMALLEST) for level in range(levels[0], levels[1] + 1)]
        low = torch.tensor(quarter).log()[:, None, None]
        # not saved: they follow from the recipe
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", low.clamp(min=math.log(image)), persistent=False)
        self.log_shapes = nn.Parameter(torch.clamp(initial, self.low, self.high))

    @torch.no_grad()
    def bound(self) -> None:
        """Bring the parameters back into their bounds."""
        self.log_shapes.copy_(torch.clamp(self.log_shapes, self.low, self.high))

    def forward(self) -> Tensor:
        """Log width and height within the bounds, (L, S, 2)."""
        beyond = torch.clamp(self.log_shapes, self.low, self.high) - self.log_shapes
        return self.log_shapes + beyond.detach()

    def place(self, priors: Priors) -> Priors:
        """These priors with boxes of the present shapes. priors: of a grid with as many shapes a cell."""
        half = self().exp() / 2
        cell = torch.cat((-half, half), -1)
        shapes = cell.shape[1]
        corners = priors.points.repeat(1, 2).split(priors.counts)
        boxes = [(c.view(-1, shapes, 4) + own).view(-1, 4) for c, own in zip(corners, cell, strict=True)]
        # only kernels on the CPU read the tiling; to copy it there from a GPU would stop every step
        on_cpu = cell.device.type == "cpu" and priors.tiling is not None
        tiling = replace(priors.tiling, cell=cell) if on_cpu and priors.tiling is not None else None
        return replace(priors, boxes=torch.cat(boxes), tiling=tiling)
