"""Feature pyramid: top-down with lateral connections, extra levels by strided convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from detsearch_cli.errors import RecipeError


class FPN(nn.Module):
    """Source: Lin et al. 2017 (FPN), section 3; P6 and P7 as in Lin et al. 2017 (focal loss), section 4.

    Levels the backbone has get a lateral and an output convolution; those above come from the one below by a
    3x3 convolution of stride 2, with a ReLU before all but the first. No norm layers, as in both papers.
    """

    def __init__(
        self,
        backbone_levels: tuple[int, ...],
        backbone_channels: tuple[int, ...],
        channels: int,
        levels: tuple[int, int],
        *,
        extra_from_backbone: bool,
    ) -> None:
        super().__init__()
        first, last = levels
        if first not in backbone_levels:
            raise RecipeError(
                f"neck.levels must begin at one of the backbone's ({', '.join(map(str, backbone_levels))}), "
                f"got {first}; set neck.levels or take another backbone"
            )
        inputs = [i for i, level in enumerate(backbone_levels) if first <= level <= last]
        self.inputs = tuple(inputs)
        self.lateral = nn.ModuleList(nn.Conv2d(backbone_channels[i], channels, 1) for i in inputs)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)
        num_extra = last - backbone_levels[inputs[-1]]
        self.extra_from_backbone = extra_from_backbone
        below = backbone_channels[inputs[-1]] if extra_from_backbone else channels
        self.extra = nn.ModuleList(
            nn.Conv2d(below if i == 0 else channels, channels, 3, stride=2, padding=1)
            for i in range(num_extra)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Backbone features, fine to coarse -> pyramid, fine to coarse, each (B, channels, H_l, W_l)."""
        used = [features[i] for i in self.inputs]
        merged = self.lateral[-1](used[-1])
        pyramid = [self.output[-1](merged)]
        for i in range(len(used) - 2, -1, -1):
            lateral = self.lateral[i](used[i])
            merged = lateral + F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            pyramid.insert(
                0, self.output[i](merged)
            )  # `merged` itself goes on, without the output convolution
        top = used[-1] if self.extra_from_backbone else pyramid[-1]
        for i, conv in enumerate(self.extra):
            top = conv(F.relu(top) if i else top)
            pyramid.append(top)
        return pyramid
