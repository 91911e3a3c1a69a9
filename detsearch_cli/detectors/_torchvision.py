"""torchvision's trained detectors: where their weights are, which of our detectors they are, their names as ours.

The four of `CHECKPOINTS` were trained on COCO. A state dict that somebody saved from the same networks is read alike.
Source of names, anchors and numbers: torchvision.models.detection.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.detectors._fetch import fetch_url
from detsearch_cli.fragments import Fragment

CHECKPOINTS = {
    "fcos_resnet50_fpn": "FCOS_ResNet50_FPN_Weights.COCO_V1",
    "retinanet_resnet50_fpn": "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    "fasterrcnn_resnet50_fpn": "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
    "ssd300_vgg16": "SSD300_VGG16_Weights.COCO_V1",
}
"""torchvision's name of each checkpoint that `init` takes by name."""
NO_EPSILON = ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn")
"""Trained with an epsilon of 0 in every batch norm, which torchvision sets when it loads exactly these."""
EPSILON = 1e-5
"""Of timm's batch norms, and of torchvision's but for `NO_EPSILON`."""
UNKNOWN = "N/A"
"""A class without a name; torchvision's own word for the ids that COCO never used."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
VGG = {"mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3}
"""Of SSD300: the mean is taken off, but values stay between -124 and 151."""
GRID = {"offset": 0.0, "spread": True}
"""torchvision centres a cell's anchors on its upper left corner; SSD has points in the middle, at fixed distances."""
RESNETS = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50", (23, True): "resnet101"}
"""By blocks of the third stage, and whether they have a third convolution."""
SSD_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
SSD_SIDE, SSD_SHAPES, BACKGROUND_LOGIT = 300, 6, 10.0
"""Px; shapes of a cell here, where torchvision's finest and two coarsest maps have four; how surely the others begin as
background: 90 classes together have a probability of 0.004, below every threshold for detections."""


@dataclass(frozen=True)
class Foreign:
    """A torchvision detector under our names. classes: by the rows of its class layers, background left out."""

    detector: str
    state: dict[str, Tensor]
    classes: tuple[str, ...]


def checkpoint_file(name: str) -> Path:
    """The file of a checkpoint in torch's hub cache, fetched if it is not there. Raises CheckpointError offline."""
    return fetch_url(_weights(name).url, f"init {name}", "--init FILE")


def official_name(sha256: str) -> str | None:
    """The name of the checkpoint with this content; torchvision's file names hold the first digits."""
    for name in CHECKPOINTS:
        digits = re.search(r"-([0-9a-f]{8,})\.", _weights(name).url)
        if digits and sha256.startswith(digits[1]):
            return name
    return None


def _weights(name: str) -> Any:
    from torchvision.models import get_weight

    return get_weight(CHECKPOINTS[name])


def detector_of(state: Mapping[str, Tensor]) -> str | None:
    """Which of our detectors these torchvision keys are; None where they are none."""
    if "backbone.scale_weight" in state:
        return "ssd"
    if "backbone.body.conv1.weight" not in state:
        return None
    if "roi_heads.box_predictor.cls_score.weight" in state:
        return "faster_rcnn"
    if "head.classification_head.cls_logits.weight" not in state:
        return None
    return "fcos" if "head.regression_head.bbox_ctrness.weight" in state else "retinanet"


# ------------------------------------------------------------------ what the weights were trained in


def recipe_of(state: Mapping[str, Tensor]) -> Fragment:
    """The part of a recipe that builds the network these keys belong to and feeds it as torchvision does."""
    detector = detector_of(state)
    if detector == "ssd":
        return _ssd_recipe()
    blocks = {key.split(".")[3] for key in state if key.startswith("backbone.body.layer3.")}
    deep = "backbone.body.layer3.0.conv3.weight" in state
    options: Fragment = {"name": detector}
    levels, priors = [3, 7], _shapes(_anchors(3, 7))
    if detector == "fcos":
        options |= {"center_sampling": True, "norm_on_bbox": True, "centerness_on_reg": True}
        priors = {"name": "points", **GRID}
    elif detector == "retinanet":
        options |= {"p6_from": "p5"}
    else:
        levels, priors = [2, 6], _shapes(_anchors(2, 6, base=8, scales=1))
    return {
        "detector": options,
        # the statistics in the file are those of frozen batch norms
        "backbone": {"name": RESNETS.get((len(blocks), deep), "resnet50"), "frozen_bn": True},
        "neck": {"channels": 256, "levels": levels},
        "head": {"convs": 4},
        "priors": priors,
        "augment": {"image_size": [800, 1333], **IMAGENET},
    }


def _ssd_recipe() -> Fragment:
    return {
        "detector": {"name": "ssd", "size": SSD_SIDE, "unpadded": True},
        "backbone": {"name": "vgg16"},
        "priors": {"name": "shapes", "shapes": ssd_shapes(SSD_SIDE)},
        "augment": {"image_size": [SSD_SIDE] * 2, **VGG},
    }


def ssd_shapes(side: int) -> list[list[list[float]]]:
    """Width and height in px of six shapes a level, for images of this side.

    torchvision's finest and coarsest levels lack the last two, 3:1 and 1:3; here every level has as many.
    """
    lists = []
    for own, beyond in pairwise(SSD_SCALES):
        parts = [[own, own], [(own * beyond) ** 0.5] * 2]
        for ratio in (2.0, 3.0):
            wide, narrow = own * ratio**0.5, own / ratio**0.5
            parts += [[wide, narrow], [narrow, wide]]
        # no side is longer than the image's
        lists.append([[side * min(part, 1.0) for part in shape] for shape in parts])
    return lists


def _anchors(first: int, last: int, base: int = 4, scales: int = 3) -> Iterator[list[list[float]]]:
    """Width and height in px of every level's anchors: sides cut to whole px, then half of each side rounded."""
    for level in range(first, last + 1):
        sides = [int(base * 2**level * 2 ** (i / scales)) for i in range(scales)]
        yield [
            [2.0 * round(s / ratio**0.5 / 2), 2.0 * round(s * ratio**0.5 / 2)]
            for ratio in (0.5, 1.0, 2.0)
            for s in sides
        ]


def _shapes(levels: Iterator[list[list[float]]]) -> Fragment:
    return {"name": "shapes", "shapes": list(levels), **GRID}


# ------------------------------------------------------------------ names and conventions

RENAMED: dict[str, Sequence[tuple[str, str]]] = {
    "resnet": (
        (r"backbone\.fpn\.inner_blocks\.(\d+)\.(?:0\.)?(\w+)", r"neck.lateral.\1.\2"),
        (r"backbone\.fpn\.layer_blocks\.(\d+)\.(?:0\.)?(\w+)", r"neck.output.\1.\2"),
        (r"backbone\.fpn\.extra_blocks\.p6\.(\w+)", r"neck.extra.0.\1"),
        (r"backbone\.fpn\.extra_blocks\.p7\.(\w+)", r"neck.extra.1.\1"),
    ),
    "dense": (
        (r"head\.classification_head\.cls_logits\.(\w+)", r"head.cls.\1"),
        (r"head\.regression_head\.bbox_reg\.(\w+)", r"head.reg.\1"),
        (r"head\.regression_head\.bbox_ctrness\.(\w+)", r"head.centerness.\1"),
        (r"head\.classification_head\.conv\.(\d+)\.(\w+)", r"head.cls_tower.\1.\2"),
        (r"head\.regression_head\.conv\.(\d+)\.(\w+)", r"head.reg_tower.\1.\2"),
    ),
    "faster_rcnn": (
        (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", r"head.conv.\1"),
        (r"rpn\.head\.cls_logits\.(\w+)", r"head.cls.\1"),
        (r"rpn\.head\.bbox_pred\.(\w+)", r"head.reg.\1"),
        (r"roi_heads\.box_head\.fc6\.(\w+)", r"regions.body.1.\1"),
        (r"roi_heads\.box_head\.fc7\.(\w+)", r"regions.body.3.\1"),
        (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"regions.cls.\1"),
        (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"regions.reg.\1"),
    ),
    "ssd": (
        (r"backbone\.scale_weight", r"vgg.scale"),
        (r"backbone\.features\.(\d+)\.(\w+)", r"backbone.body.features_\1.\2"),
        (r"backbone\.extra\.0\.7\.(\d)\.(\w+)", r"vgg.fc.\1.\2"),
        (r"head\.classification_head\.module_list\.(\d)\.(\w+)", r"heads.\1.cls.\2"),
        (r"head\.regression_head\.module_list\.(\d)\.(\w+)", r"heads.\1.reg.\2"),
    ),
}
RENAMED_OF = {
    "fcos": ("resnet", "dense"),
    "retinanet": ("resnet", "dense"),
    "faster_rcnn": ("resnet", "faster_rcnn"),
    "ssd": ("ssd",),
}


def converted(state: Mapping[str, Tensor], checkpoint: str | None) -> Foreign:
    """A torchvision state dict as one of ours. checkpoint: the name of `CHECKPOINTS` that it is, if any.

    Every output of the network stays what it was: where ours counts in other units, the weights carry the factor.
    """
    detector = detector_of(state)
    assert detector is not None  # whoever calls has asked for the recipe first
    renamed = {_renamed(key, detector): value for key, value in state.items()}
    _fold_epsilon(renamed, 0.0 if checkpoint in NO_EPSILON else EPSILON)
    if detector == "retinanet":
        _scale_offsets(renamed)
    if detector == "faster_rcnn":
        _background_last(renamed)
    if detector == "ssd":
        _fill_shapes(renamed)
    return Foreign(detector, renamed, _classes(renamed, detector))


def _renamed(key: str, detector: str) -> str:
    if detector == "retinanet":
        # now conv.1.0 inside a block of its own, before conv.2, with a ReLU between; ours has kept the latter
        key = re.sub(r"\.conv\.(\d+)\.0\.", lambda found: f".conv.{2 * int(found[1])}.", key)
    if detector == "ssd":
        # conv5_1 to conv5_3 lie behind a pooling there and are counted anew; the further maps begin behind them
        key = re.sub(r"backbone\.extra\.0\.([135])\.", lambda f: f"backbone.features.{23 + int(f[1])}.", key)
        key = re.sub(r"backbone\.extra\.([1-4])\.", lambda f: f"extra.{int(f[1]) - 1}.", key)
    for pattern, ours in (pair for group in RENAMED_OF[detector] for pair in RENAMED[group]):
        if re.fullmatch(pattern, key):
            return re.sub(pattern, ours, key)
    return key


def _fold_epsilon(state: dict[str, Tensor], theirs: float) -> None:
    """Let batch norms of another epsilon give the same with ours, by their scales."""
    if theirs == EPSILON:
        return
    for key in [k for k in state if k.endswith(".running_var")]:
        scale = key.removesuffix("running_var") + "weight"
        # float64: variances of dead channels are far below what float32 can add to an epsilon
        variance = state[key].double()
        factor = ((variance + EPSILON) / (variance + theirs)).sqrt()
        state[scale] = (state[scale].double() * factor).to(state[scale].dtype)


def _scale_offsets(state: dict[str, Tensor]) -> None:
    """torchvision's RetinaNet predicts plain offsets, ours offsets times DELTA_WEIGHTS."""
    for key in ("head.reg.weight", "head.reg.bias"):
        if key in state:
            per_shape = state[key].unflatten(0, (-1, 4))
            factors = state[key].new_tensor(boxes.DELTA_WEIGHTS).view(1, 4, *[1] * (per_shape.dim() - 2))
            state[key] = (per_shape * factors).flatten(0, 1)


def _background_last(state: dict[str, Tensor]) -> None:
    """Class 0 is the background there; here the scores have it last and it has no box."""
    for kind in ("weight", "bias"):
        state[f"regions.cls.{kind}"] = state[f"regions.cls.{kind}"].roll(-1, 0)
        state[f"regions.reg.{kind}"] = state[f"regions.reg.{kind}"][4:]


def _fill_shapes(state: dict[str, Tensor]) -> None:
    """Give the maps of four shapes a cell the two they lack; these predict background until they have learned."""
    for level in range(6):
        missing = SSD_SHAPES - len(state[f"heads.{level}.reg.bias"]) // 4
        for part in ("cls", "reg"):
            rows = len(state[f"heads.{level}.{part}.bias"]) // (SSD_SHAPES - missing) * missing
            for kind in ("weight", "bias"):
                key = f"heads.{level}.{part}.{kind}"
                added = state[key].new_zeros(rows, *state[key].shape[1:])
                if (part, kind) == ("cls", "bias") and missing:
                    added.view(missing, -1)[:, 0] = BACKGROUND_LOGIT
                state[key] = torch.cat([state[key], added])


def _classes(state: Mapping[str, Tensor], detector: str) -> tuple[str, ...]:
    """Names by the rows of the class layers. COCO's where there are as many; nothing else tells them."""
    known = tuple(_weights("fcos_resnet50_fpn").meta["categories"])
    if detector in ("fcos", "retinanet"):
        shapes = len(state["head.reg.bias"]) // 4
        count, first = len(state["head.cls.bias"]) // shapes, 0
    elif detector == "faster_rcnn":
        count, first = len(state["regions.cls.bias"]), 1
    else:
        count, first = len(state["heads.0.cls.bias"]) // SSD_SHAPES, 1
    # as many rows as COCO has ids, background among them
    return known[first:] if count == len(known) else (UNKNOWN,) * (count - first)
