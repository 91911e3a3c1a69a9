"""DarkNet-19 against its published table, and its framework's weights files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detsearch_cli.detectors import _darknet
from detsearch_cli.detectors._backbones import Backbone, build_backbone
from detsearch_cli.errors import CheckpointError
from detsearch_cli.recipe import Backbone as Section

# filters and kernel of each convolution. Source: Redmon and Farhadi 2017, Table 6, without the classifier
TABLE_6 = [
    (32, 3), (64, 3), (128, 3), (64, 1), (128, 3), (256, 3), (128, 1), (256, 3), (512, 3), (256, 1), (512, 3),
    (256, 1), (512, 3), (1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3),
]  # fmt: skip


def make(weights: Path | None = None) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(Section(name="darknet19", weights=weights), (4, 5))


def write_darknet(path: Path, version: tuple[int, int, int], seed: int = 0, extra: int = 7) -> np.ndarray:
    """A file as the framework's save_weights writes it: head, then bn of each convolution and its weights."""
    rng, channels, parts = np.random.default_rng(seed), 3, []
    for filters, kernel in TABLE_6:
        parts += [rng.normal(size=filters), rng.normal(size=filters), rng.normal(size=filters)]
        parts += [rng.uniform(0.5, 2, size=filters), rng.normal(size=filters * channels * kernel**2)]
        channels = filters
    numbers = np.concatenate([*parts, np.zeros(extra)]).astype("<f4")
    seen = np.array([32013312], "<i8" if version[0] * 10 + version[1] >= 2 else "<i4")
    path.write_bytes(np.array(version, "<i4").tobytes() + seen.tobytes() + numbers.tobytes())
    return numbers


def test_the_layers_are_those_of_the_papers_table() -> None:
    found = [(m.out_channels, m.kernel_size[0]) for m in make().modules() if isinstance(m, nn.Conv2d)]
    assert found == TABLE_6


def test_the_size_is_that_of_the_published_file() -> None:
    """darknet19_448.conv.23 has 79,327,120 bytes, 16 of them its head."""
    state = {k: v for k, v in make().body.state_dict().items() if "num_batches" not in k}
    assert sum(v.numel() for v in state.values()) == (79_327_120 - 16) // 4


@pytest.mark.parametrize(
    ("version", "name"), [((0, 1, 0), "a.weights"), ((0, 2, 0), "darknet19_448.conv.23")]
)
def test_a_file_of_the_framework_fills_every_layer_in_its_order(
    version: tuple[int, int, int], name: str, tmp_path: Path
) -> None:
    numbers = write_darknet(tmp_path / name, version)
    backbone = make(tmp_path / name)
    first = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d))
    for own, start in ((norm.bias, 0), (norm.weight, 32), (norm.running_mean, 64), (norm.running_var, 96)):
        assert own is not None
        np.testing.assert_array_equal(own.detach(), numbers[start : start + 32])
    np.testing.assert_array_equal(first.weight.detach().flatten(), numbers[128 : 128 + 864])
    last = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)][-1]
    np.testing.assert_array_equal(last.weight.detach().flatten(), numbers[-7 - last.weight.numel() : -7])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within its head"),
        (b"\0" * 4000, "must begin with 19831776 finite numbers"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_such_one_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.weights"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        make(path)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.weights"
    write_darknet(path, (0, 2, 0))
    content = bytearray(path.read_bytes())
    content[400:404] = np.array([np.nan], "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="finite numbers"):
        make(path)


def test_suffixes_tell_the_frameworks_files_from_ours() -> None:
    assert _darknet.is_darknet_file(Path("darknet19_448.conv.23"))
    assert not _darknet.is_darknet_file(Path("darknet19.safetensors"))
