"""DarkNet-19, the backbone of YOLOv2, and the weights files of its framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detsearch_cli.detectors._small import SmallNet
from detsearch_cli.errors import CheckpointError

NAME = "darknet19"
SLOPE = 0.1
STAGES = {
    2: (128, 64, 128),
    3: (256, 128, 256),
    4: (512, 256, 512, 256, 512),
    5: (1024, 512, 1024, 512, 1024),
}
"""Outputs of the convolutions of each level; 3 x 3 and 1 x 1 alternate, the first is 3 x 3."""
SUFFIXES = (".weights", ".23")
"""Ends of the names of the framework's own files: darknet19_448.weights, darknet19_448.conv.23."""


def conv_bn_leaky(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, leaky ReLU: the block all of YOLOv2 is made of."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


def build(last: int) -> SmallNet:
    """The 18 convolutions before the classifier, levels 2 to 5, up to level `last`.

    Source: Redmon and Farhadi 2017 (YOLO9000), Table 6. Levels end before the pooling that follows them.
    """
    stem = nn.Sequential(conv_bn_leaky(3, 32, 3), nn.MaxPool2d(2), conv_bn_leaky(32, 64, 3))
    blocks: dict[str, nn.Module] = {"stem": stem}
    ends, inputs = {}, 64
    for level, widths in STAGES.items():
        layers: list[nn.Module] = [nn.MaxPool2d(2)]
        for index, outputs in enumerate(widths):
            layers.append(conv_bn_leaky(inputs, outputs, 1 if index % 2 else 3))
            inputs = outputs
        blocks[f"stage{level}"] = nn.Sequential(*layers)
        ends[f"stage{level}"] = (level, inputs)
    return SmallNet(blocks, ends, last)


def is_darknet_file(path: Path) -> bool:
    """Whether the name is one that the framework gives its weights."""
    return path.suffix in SUFFIXES


def load_darknet(net: nn.Module, path: Path) -> None:
    """Fill the network from a file of the darknet framework; what follows its convolutions is not read.

    The file: three int32 (version), the number of images seen (int64 from version 0.2 on, else int32), then for
    every convolution float32 bias, scale, mean and variance of its batch norm and its weights, all little-endian.
    Raises CheckpointError for a file that is too short or holds numbers that are none.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"weights must be a file, cannot read {path}: {error.strerror}") from error
    version = np.frombuffer(content[:8], "<i4")
    if len(version) < 2:
        raise CheckpointError(f"{path} is no darknet weights file: it ends within its head")
    head = 20 if int(version[0]) * 10 + int(version[1]) >= 2 else 16
    # int64 images seen from version 0.2 on, int32 before
    body = content[head:]
    numbers = np.frombuffer(body[: len(body) // 4 * 4], "<f4")
    wanted = _in_file_order(net)
    needed = sum(t.numel() for t in wanted)
    if len(numbers) < needed or not np.isfinite(numbers[:needed]).all():
        raise CheckpointError(
            f"{path} must begin with {needed} finite numbers for {NAME}, it holds {len(numbers)}; "
            f"give darknet19_448.conv.23 or another file of DarkNet-19"
        )
    # a copy: numpy reads bytes as read-only memory, which torch must not be given
    values = torch.from_numpy(numbers[:needed].copy())
    with torch.no_grad():
        for tensor, part in zip(wanted, values.split([t.numel() for t in wanted]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _in_file_order(net: nn.Module) -> list[Tensor]:
    ordered: list[Tensor] = []
    weights: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weights.append(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            # the file has the numbers of a batch norm before the weights of its convolution
            ordered += [module.bias, module.weight, module.running_mean, module.running_var, weights.pop()]
    return ordered
