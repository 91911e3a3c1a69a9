"""The head: classification and regression towers shared by all levels, an optional centerness branch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from detsearch_cli.detectors._learning import SizeNorm

PRIOR_PROBABILITY = 0.01
"""Initial score of every class, so that the many negatives do not drown the first steps.

Source: Lin et al. 2017 (focal loss), section 3.3."""


class Scale(nn.Module):
    """One learnable factor. Source: Tian et al. 2019 (FCOS), section 3.2."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class DenseHead(nn.Module):
    """Towers of 3x3 convolutions, then one convolution each for class logits, 4 offsets and centerness.

    norm: group norm in the towers (FCOS, ATSS) or none (RetinaNet). scales: a learnable factor a level on the
    regression (number of levels), 0 for none. centerness: on which tower the branch sits, None for no branch.
    norm_sizes: batch norm without shift on the predicted widths and heights, before the scales.
    """

    def __init__(
        self,
        channels: int,
        convs: int,
        num_classes: int,
        *,
        per_cell: int = 1,
        norm: bool = False,
        scales: int = 0,
        centerness: Literal["cls", "reg"] | None = None,
        norm_sizes: bool = False,
    ) -> None:
        super().__init__()
        self.cls_tower = _tower(channels, convs, norm)
        self.reg_tower = _tower(channels, convs, norm)
        self.cls = nn.Conv2d(channels, per_cell * num_classes, 3, padding=1)
        self.reg = nn.Conv2d(channels, per_cell * 4, 3, padding=1)
        self.size_norm = SizeNorm(self.reg, per_cell, scale=1.0) if norm_sizes else None
        self.scales = nn.ModuleList(Scale() for _ in range(scales))
        self.centerness_on = centerness
        self.centerness = nn.Conv2d(channels, per_cell, 3, padding=1) if centerness else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # after the loop, which sets every bias to 0
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))  # type: ignore[arg-type]

    def forward(self, pyramid: list[Tensor]) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
        """Pyramid -> logits (B, per_cell x C, H, W) a level, offsets (B, A, 4), centerness (B, A).

        The last two are in the order of PriorGrid; the logits, 20 times as many, stay as they are computed.
        """
        logits, offsets, centerness = [], [], []
        for feature in pyramid:
            cls, reg = self.cls_tower(feature), self.reg_tower(feature)
            logits.append(self.cls(cls))
            offsets.append(rows(self.reg(reg), 4))
            if self.centerness is not None:
                centerness.append(
                    rows(self.centerness(reg if self.centerness_on == "reg" else cls), 1)[..., 0]
                )
        return tuple(logits), self._scaled(offsets), torch.cat(centerness, 1) if centerness else None

    def _scaled(self, offsets: list[Tensor]) -> Tensor:
        """Offsets of all levels, normalised and scaled where the head does so. (B, A_level, 4) each -> (B, A, 4)."""
        counts = [o.shape[1] for o in offsets]
        # one tensor of all levels: the norm takes its statistics over all of them
        joined = torch.cat(offsets, 1)
        if self.size_norm is not None:
            joined = self.size_norm(joined)
        if not self.scales:
            return joined
        parts = joined.split(counts, 1)
        return torch.cat([scale(part) for scale, part in zip(self.scales, parts, strict=True)], 1)


def _tower(channels: int, convs: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        if norm:
            layers.append(nn.GroupNorm(groups_of(channels), channels))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def groups_of(channels: int) -> int:
    """Groups of at least 8 channels, as 32 groups of the papers' 256 channels are."""
    return max(g for g in range(1, max(1, channels // 8) + 1) if channels % g == 0)


def rows(x: Tensor, width: int) -> Tensor:
    """(B, n * width, H, W) -> (B, H * W * n, width)."""
    # channels last, so that the priors of a cell lie together, as PriorGrid lays them out
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width)
