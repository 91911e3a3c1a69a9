"""Backbone weights from a file: whatever wrapper or classifier they were saved in."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detsearch_cli.errors import CheckpointError

WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "state_dict_ema", "model_ema")


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file: keys loaded, keys of the file the backbone has no use for."""

    loaded: int
    ignored: tuple[str, ...]


def load_backbone_weights(backbone: nn.Module, path: Path) -> LoadReport:
    """Load a safetensors file or a torch file (weights only) into `backbone.body`.

    Finds the state dict inside usual wrappers, strips any prefix ("module.", "body." ...),
    knows timm's, torchvision's and Swin's own key names, and ignores what a backbone has not (classifiers,
    necks). Raises CheckpointError when the file cannot be read, a shape differs, or a weight is missing or no number.
    """
    body: nn.Module = backbone.body  # type: ignore[assignment]
    # batch norm's step counter is no weight: absent from converted files, and unused with a momentum
    wanted = {k: v for k, v in body.state_dict().items() if not k.endswith("num_batches_tracked")}
    state = _best_match(read_state_dict(path), set(wanted))
    for key in wanted.keys() & state.keys():
        if state[key].shape != wanted[key].shape:
            raise CheckpointError(
                f"{path}: {key} has shape {tuple(state[key].shape)} where the backbone has "
                f"{tuple(wanted[key].shape)}; the weights belong to another backbone"
            )
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckpointError(
            f"{path} fits {len(wanted) - len(missing)} of the backbone's {len(wanted)} weights, without "
            f"{missing[0]!r}; name the backbone these weights were made for"
        )
    refuse_not_finite(path, {k: state[k] for k in sorted(wanted)})
    # not strict: the step counters of batch norms are neither wanted nor given
    body.load_state_dict({k: state[k] for k in wanted}, strict=False)
    return LoadReport(len(wanted), tuple(sorted(state.keys() - body.state_dict().keys())))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors or torch file; runs no code of the file. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"weights must be a file, found none at {path}")
    _refuse_bomb(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds for a file that is none of theirs
        raise CheckpointError(
            f"{path} holds no weights that can be read without running its code ({type(error).__name__}); give a "
            f".safetensors file, or one of torch.save(model.state_dict(), FILE)"
        ) from error
    while isinstance(content, dict):
        # wrappers may lie in wrappers
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict; save one with torch.save(model.state_dict(), FILE)"
        )
    return tensors


def _refuse_bomb(path: Path) -> None:
    """Raise CheckpointError for an archive that grows when it is opened: torch itself never compresses."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # torch says itself what is wrong with it
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path} is a compressed archive of {unpacked} bytes in {path.stat().st_size}, which torch.save does not "
            "write; unpack it, and give the file of weights that is in it"
        )


def refuse_not_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor that holds NaN or infinity: nothing is detected with it."""
    for name, tensor in tensors.items():
        # .float(): nothing is computed in the types of 8 bits
        bad = int((~torch.isfinite(tensor.float())).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise CheckpointError(
                f"{path} holds values that are NaN or infinite, {bad} of {tensor.numel()} in {name}: its training "
                "diverged or the file is damaged; train again with a lower optim.lr, or restore the file"
            )


def _best_match(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The state dict under the prefix and key names that meet most of the wanted keys."""
    best: dict[str, Tensor] = {}
    for rename in (_same, _timm_features, _swin_official):
        renamed = {rename(k): v for k, v in state.items()}
        for prefix in _prefixes(renamed, wanted):
            tried = {k.removeprefix(prefix): v for k, v in renamed.items() if k.startswith(prefix)}
            if len(tried.keys() & wanted) > len(best.keys() & wanted):
                best = tried
    return best


def _prefixes(state: dict[str, Tensor], wanted: set[str]) -> list[str]:
    """Every prefix, such as "module.body.", under which some key of the file ends with a wanted key."""
    prefixes = {""}
    for key in state:
        parts = key.split(".")
        for cut in range(1, min(len(parts), 5)):
            if ".".join(parts[cut:]) in wanted:
                prefixes.add(".".join(parts[:cut]) + ".")
    # sorted: of equally good prefixes the same one wins in every process
    return sorted(prefixes)


def _same(key: str) -> str:
    return key


def _timm_features(key: str) -> str:
    """timm's classifier names its stages layers.0, its feature extractor layers_0."""
    return re.sub(r"\b(layers|stages|features)\.(\d+)\.", r"\1_\2.", key)


def _swin_official(key: str) -> str:
    """Swin's own code ends a stage with its downsampling, timm begins the next one with it."""
    moved = re.sub(r"\blayers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)
    return _timm_features(moved)
