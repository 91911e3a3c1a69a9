"""Small backbones of our own: `tiny` for laptops, and two whose layouts fit widely used weight files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = ("tiny", "mobilenetv1_025", "shufflenetv2_050")


class SmallNet(nn.Module):
    """Blocks by name, run in order; some end a level. level_ends: block's name -> (level, channels)."""

    def __init__(
        self, blocks: dict[str, nn.Module], level_ends: dict[str, tuple[int, int]], last: int
    ) -> None:
        super().__init__()
        self.ends = {name: end for name, end in level_ends.items() if end[0] <= last}
        self.levels = tuple(level for level, _ in self.ends.values())
        self.channels = tuple(channels for _, channels in self.ends.values())
        for name, block in blocks.items():
            self.add_module(name, block)
            if name == list(self.ends)[-1]:
                break  # what no level needs is not built: its parameters would never see a gradient

    def stages(self) -> list[list[nn.Module]]:
        """Stem and stages, each one block; a block without parameters belongs to the stage before it."""
        # a max pool has nothing to freeze, so it must not count as a stage
        return [[block] for block in self.children() if any(True for _ in block.parameters())]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features of `levels`, fine to coarse."""
        features = []
        for name, block in self.named_children():
            x = block(x)
            if name in self.ends:
                features.append(x)
        return features


def build(name: str, last: int) -> SmallNet:
    """The network of that name (one of NAMES) up to level `last`."""
    return {"tiny": _tiny, "mobilenetv1_025": _mobilenetv1, "shufflenetv2_050": _shufflenetv2}[name](last)


def conv_bn(inputs: int, outputs: int, stride: int, slope: float | None = 0.0) -> nn.Sequential:
    """3x3 convolution, batch norm, and (leaky) ReLU unless slope is None."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), *_activation(slope)
    )


def _activation(slope: float | None) -> list[nn.Module]:
    if slope is None:
        return []
    return [nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)]


class _Residual(nn.Module):
    """x + two convolutions of x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels, 1)
        self.second = conv_bn(channels, channels, 1, slope=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def _tiny(last: int) -> SmallNet:
    """Plain 3x3 convolutions: on a CPU they outrun depthwise ones of equal accuracy at this size."""
    widths = (24, 40, 56, 80)
    blocks: dict[str, nn.Module] = {"stem": conv_bn(3, 16, 2)}
    ends = {}
    inputs = 16
    for level, width in enumerate(widths, start=2):
        blocks[f"stage{level}"] = nn.Sequential(conv_bn(inputs, width, 2), _Residual(width))
        ends[f"stage{level}"] = (level, width)
        inputs = width
    return SmallNet(blocks, ends, last)


def _depthwise(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _mobilenetv1(last: int) -> SmallNet:
    """MobileNetV1 x0.25 with the key names of the PyTorch RetinaFace; levels 3, 4, 5.

    stage1 is also the stem: its first blocks are not frozen apart from the rest.
    """
    stage1 = nn.Sequential(
        conv_bn(3, 8, 2, slope=0.1),
        _depthwise(8, 16, 1),
        _depthwise(16, 32, 2),
        _depthwise(32, 32, 1),
        _depthwise(32, 64, 2),
        _depthwise(64, 64, 1),
    )
    stage2 = nn.Sequential(_depthwise(64, 128, 2), *(_depthwise(128, 128, 1) for _ in range(5)))
    stage3 = nn.Sequential(_depthwise(128, 256, 2), _depthwise(256, 256, 1))
    ends = {"stage1": (3, 64), "stage2": (4, 128), "stage3": (5, 256)}
    return SmallNet({"stage1": stage1, "stage2": stage2, "stage3": stage3}, ends, last)


class _Shuffle(nn.Module):
    """ShuffleNetV2's unit. Source: Ma et al. 2018, Fig. 3 (c) and (d); channels are split even and odd."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs - inputs if stride == 2 else outputs // 2
        self.branch_main = nn.Sequential(
            nn.Conv2d(inputs, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
        )
        self.branch_proj = (
            nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, inputs, 1, bias=False),
                nn.BatchNorm2d(inputs),
                nn.ReLU(inplace=True),
            )
            if stride == 2
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.branch_proj is not None:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        # even and odd, not two halves: that shuffles the channels of the unit before without moving them
        return torch.cat((x[:, 0::2], self.branch_main(x[:, 1::2])), 1)


def _shufflenetv2(last: int) -> SmallNet:
    """ShuffleNetV2 x0.5 with the key names of Megvii's code; levels 2 to 5."""
    blocks: dict[str, nn.Module] = {
        "first_conv": conv_bn(3, 24, 2),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }
    ends = {"maxpool": (2, 24)}
    inputs = 24
    for stage, (outputs, repeats) in enumerate(((48, 4), (96, 8), (192, 4)), start=2):
        units = [_Shuffle(inputs, outputs, 2)] + [
            _Shuffle(outputs // 2, outputs, 1) for _ in range(repeats - 1)
        ]
        blocks[f"stage{stage}"] = nn.Sequential(*units)
        ends[f"stage{stage}"] = (stage + 1, outputs)
        inputs = outputs
    return SmallNet(blocks, ends, last)
