"""Backbones: features of strides 4 to 32 from timm or our own, frozen parts, weights from a file."""

from __future__ import annotations

import difflib
import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detsearch_cli import schema
from detsearch_cli.detectors import PRETRAINED, _darknet, _small
from detsearch_cli.detectors._fetch import fetch_hub, fetch_url
from detsearch_cli.detectors._weights import load_backbone_weights
from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import shown

SWIN = {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")}
TIMM = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "mobilenetv2_050",
    "vgg16",
    *SWIN,
)
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in timm's repositories, the first that is there."""
NAMES = (*_small.NAMES, _darknet.NAME, *TIMM)
"""Backbones by name; `timm/NAME` takes any other model of timm that gives features."""
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")


class Backbone(nn.Module):
    """Features of the levels a pyramid needs. levels: theirs, fine to coarse; channels: of each.

    Frozen stages and frozen batch norms stay in eval mode whatever `train` is called with. tail: see `split_tail`.
    """

    body: Any

    levels: tuple[int, ...]
    channels: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self._always_eval: list[nn.Module] = []
        self.tail: nn.Sequential | None = None

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """Stem, then each stage: the modules that compute it."""

    @abstractmethod
    def ends(self) -> list[str] | None:
        """The child of `body` that ends each of `levels`; None where children do not run one after the other."""

    def split_tail(self, level: int) -> int:
        """Let the last stage, after `level`, run on its own as `tail`; returns the channels it gives.

        Raises RecipeError for a backbone that cannot be split after that level.
        """
        ends = self.ends()
        if ends is None or self.levels[-2:] != (level, level + 1):
            raise RecipeError(
                f"detector.region_head: stage5 needs a backbone with a stage after level {level} that runs on its "
                f"own, such as tiny or resnet50; use region_head: mlp"
            )
        names = [name for name, _ in self.body.named_children()]
        last = names[names.index(ends[-2]) + 1 :]
        self.tail = nn.Sequential(*(getattr(self.body, name) for name in last))
        for name in last:
            delattr(self.body, name)  # or the stage would run, and be saved, twice
        channels = self.channels[-1]
        self.levels, self.channels = self.levels[:-1], self.channels[:-1]
        return channels

    def freeze(self, stages: int, batch_norm: bool) -> None:
        """Stop the first `stages` (1 is the stem) and, if asked, every batch norm from training."""
        frozen = [module for stage in self.stages()[:stages] for module in stage]
        if batch_norm:
            frozen += [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for module in frozen:
            module.requires_grad_(False)
        self._always_eval = frozen
        self.train(self.training)  # they are in training mode until `train` is called again

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for module in self._always_eval:
            module.eval()
        return self


class SmallBackbone(Backbone):
    """One of our own networks, cut after the coarsest level that is needed."""

    def __init__(self, name: str, last: int) -> None:
        super().__init__()
        self.body = _darknet.build(last) if name == _darknet.NAME else _small.build(name, last)
        self.levels, self.channels = self.body.levels, self.body.channels

    def stages(self) -> list[list[nn.Module]]:
        return self.body.stages()

    def ends(self) -> list[str]:
        return list(self.body.ends)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> features of `levels`."""
        features: list[Tensor] = self.body(images)
        return features


class TimmBackbone(Backbone):
    """A timm model's features, cut after the coarsest level that is needed.

    Each of Swin's features is layer-normalised, as in the detectors of its paper. Source: Liu et al. 2021, released code.
    """

    def __init__(self, name: str, first: int, last: int) -> None:
        super().__init__()
        import timm  # seconds to import, so only where a timm model is used

        _refuse_unknown(name, timm)
        # swin: windows of 7 at every image size, also where the model's own 224 px would make do with one
        swin = {"strict_img_size": False, "always_partition": True} if name.startswith("swin_") else {}
        options: dict[str, Any] = {"pretrained": False, "features_only": True, **swin}
        try:
            strides = [2**level for level in range(2, last + 1)]
            # made twice: only a model tells its strides, and `out_indices` is needed to make one
            reductions = feature_info(timm.create_model(name, **options)).reduction()
            wanted = tuple(i for i, reduction in enumerate(reductions) if reduction in strides)
            self.body = timm.create_model(name, out_indices=wanted, **options)
        except (RuntimeError, ValueError, AttributeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise RecipeError(
                f"backbone.name: timm gives no features for {name!r} ({reason}); see timm.list_models()"
            ) from error
        self.nhwc = "NHWC" in str(getattr(self.body, "output_fmt", ""))
        info = feature_info(self.body)
        self.levels = tuple(int(r).bit_length() - 1 for r in info.reduction())
        self.channels = tuple(info.channels())
        self.norms = nn.ModuleList(
            nn.LayerNorm(channels) if self.nhwc and level >= first else nn.Identity()
            for level, channels in zip(self.levels, self.channels, strict=True)
        )
        needed = {id(p) for stage in self.stages() for module in stage for p in module.parameters()}
        for parameter in self.body.parameters():
            # some timm models keep the stages no level needs; they would never see a gradient
            parameter.requires_grad_(id(parameter) in needed)

    def stages(self) -> list[list[nn.Module]]:
        """Cut the modules, in order, after the one that gives each feature; the first cut ends the stem."""
        leaves = [
            (name.replace("_", "."), module)
            for name, module in self.body.named_modules()
            if name and (not list(module.children()) or list(module.parameters(recurse=False)))
        ]
        ends = []
        for name in _stage_names(self.body):
            end = [i for i, (n, _) in enumerate(leaves) if f"{n}.".startswith(f"{name}.")]
            ends.append(end[-1] + 1 if end else 0)
        return [[m for _, m in leaves[a:b]] for a, b in zip([0, *ends], ends, strict=False)]

    def ends(self) -> list[str] | None:
        return None if self.nhwc else list(getattr(self.body, "return_layers", ())) or None

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> features of `levels`, channels second."""
        features = self.body(images)
        if not self.nhwc:
            return list(features)
        normed = [norm(f) for norm, f in zip(self.norms, features, strict=True)]
        return [f.permute(0, 3, 1, 2).contiguous() for f in normed]


def _refuse_unknown(name: str, timm: Any) -> None:
    """Raise RecipeError unless timm itself has the model.

    `hf-hub:OWNER/NAME` and `local-dir:FOLDER`, which timm takes for names too, load what somebody else wrote.
    """
    if timm.is_model(name) and _PLAIN.fullmatch(name):
        return
    close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=1)
    hint = f"did you mean timm/{close[0]}?" if close else "timm.list_models() has them"
    raise RecipeError(f"backbone.name: timm has no model {shown(name)}; {hint}")


def feature_info(body: nn.Module) -> Any:
    """timm's description of the features: reductions, channels, modules."""
    return body.feature_info


def _stage_names(body: nn.Module) -> list[str]:
    """Modules that end the stem and the needed stages of a timm feature extractor, "_" as "."."""
    info = feature_info(body)
    features = info.info[: max(info.out_indices) + 1]
    names = [info["module"].replace("_", ".") for info in features]
    if features[0]["reduction"] >= 4:
        return ["patch.embed" if hasattr(body, "patch_embed") else "stem", *names]
    return names


@dataclass(frozen=True)
class Published:
    """Weights that timm publishes. origin: where they come from; mean, std: of RGB, that they were trained with."""

    file: Path
    origin: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(name: str) -> Published:
    """The weights that timm publishes for a backbone, from its caches or the network.

    Raises RecipeError for a backbone without any, CheckpointError where they cannot be fetched.
    """
    if name in (*_small.NAMES, _darknet.NAME):
        raise RecipeError(
            f"backbone.weights: nobody publishes weights of {name} that could be fetched; give a file, or take one "
            f"of {', '.join(TIMM)}"
        )
    import timm  # seconds to import, as above

    model = SWIN.get(name, name).removeprefix("timm/")
    about = timm.models.get_pretrained_cfg(model)
    if about is None or not (about.hf_hub_id or about.url):
        raise RecipeError(
            f"backbone.weights: timm publishes no weights for {model!r}; see timm.list_pretrained(), or give a file"
        )
    what, otherwise = f"backbone.weights {PRETRAINED} for {name}", "--backbone-weights FILE"
    if about.hf_hub_id:
        origin, _, revision = str(about.hf_hub_id).partition("@")
        files = (about.hf_hub_filename,) if about.hf_hub_filename else HUB_FILES
        file = fetch_hub(origin, files, revision or None, what, otherwise)
    else:
        origin = str(about.url)
        file = fetch_url(origin, what, otherwise)
    return Published(file, origin, tuple(about.mean), tuple(about.std))


def build_backbone(backbone: schema.Backbone, levels: tuple[int, int]) -> Backbone:
    """The backbone a recipe names, its weights loaded and its frozen parts frozen.

    levels: first and last of the pyramid. Raises RecipeError for an unknown name, CheckpointError for weights
    that do not fit.
    """
    name, first, last = backbone.name, levels[0], min(levels[1], 5)
    model: Backbone
    if name in (*_small.NAMES, _darknet.NAME):
        model = SmallBackbone(name, last)
    elif name in TIMM:
        model = TimmBackbone(SWIN.get(name, name), first, last)
    elif name.startswith("timm/"):
        model = TimmBackbone(name.removeprefix("timm/"), first, last)
    else:
        raise RecipeError(f"backbone.name: {shown(name)} is none of {', '.join(NAMES)}, nor timm/NAME")
    if backbone.weights is not None:
        own_format = name == _darknet.NAME and _darknet.is_darknet_file(backbone.weights)
        load = _darknet.load_darknet if own_format else load_backbone_weights
        load(model, backbone.weights)
    model.freeze(backbone.frozen_stages, backbone.frozen_bn)
    return model
