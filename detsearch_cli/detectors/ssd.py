"""SSD: six shapes at every cell of six or seven maps, each with a convolution of its own, hard negatives."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detsearch_cli import boxes, schema
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.detectors._heads import rows
from detsearch_cli.detectors._learning import SizeNorm
from detsearch_cli.detectors.base import ClassRows, Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.losses.multibox import MultiBox
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import Dense, Priors

FIRST, LAST = 3, {300: 8, 512: 9}
"""Levels: conv4_3 has stride 8; SSD300 has six maps, SSD512 seven."""
SCALES = {
    300: (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05),
    512: (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
}
"""Sides of the anchors as parts of the image, one a level and one beyond. Source: released code, for VOC."""
RATIOS = (2.0, 0.5, 3.0, 1 / 3)
WIDTHS = (512, 256)
"""Channels of the first added level and of all further ones. Source: Liu et al. 2016, Fig. 2."""
FC_CHANNELS = 1024
UNPADDED_STRIDES = (8, 16, 32, 64, 100, 300)
"""Px between the cells of the maps of SSD300 whose last two convolutions have no padding: maps of 3 and 1 cells, spread
over the image. Source: the released code."""
UNPADDED_SIDE = 320
"""Px; of a padded image of 300 px, on whose 5 cells of stride 64 two convolutions without padding leave one."""
L2_SCALE = 20.0
"""Of VGG's first feature, whose values are larger than those of later ones. Source: as above, section 3.1."""


class SSD(Detector):
    """Source: Liu et al. 2016; VGG with `--backbone vgg16`, any other backbone without VGG's own layers.

    Where it differs: every level has six shapes, also those where the paper has four, because priors of a cell
    repeat over all levels here; shapes are not clipped to the image, which shapes that learn could not be; the
    last maps of SSD300 come from strides and padding as all others do, so that level i has stride 2^i, not from
    convolutions without padding, unless `unpadded` asks for them; a ground truth's best prior goes to the ground
    truth that it overlaps most.
    """

    class Options(Part):
        size: Literal[300, 512] = Field(
            default=300,
            description="maps and shapes of SSD300 (six levels) or SSD512 (seven), for images of any size",
        )
        later_options: ClassVar[frozenset[str]] = frozenset({"unpadded"})
        unpadded: bool = Field(
            default=False,
            description="last two maps of SSD300 by convolutions without padding (paper, torchvision); up to 320 px",
        )

    options: Options
    default_nms_iou: ClassVar[float] = 0.45
    default_score_threshold: ClassVar[float] = 0.01
    default_max_detections: ClassVar[int] = 200
    max_count: ClassVar[int] = 80  # as RetinaNet: HPS-Det does not name SSD

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__(recipe, num_classes)
        if self.options.unpadded:
            _check_unpadded(recipe, self.options.size)
            self.strides = UNPADDED_STRIDES
        vgg = recipe.backbone.name.removeprefix("timm/").startswith("vgg")
        self.backbone = build_backbone(recipe.backbone, (FIRST, 4 if vgg else 5))
        channels = [
            c for c, level in zip(self.backbone.channels, self.backbone.levels, strict=True) if level >= FIRST
        ]
        self.vgg: VGGLayers | None = None
        if vgg:
            self.vgg = VGGLayers(*channels)
            # fc7 replaces conv5_3 as the last feature of the backbone
            channels[-1] = FC_CHANNELS
        self.extra = nn.ModuleList()
        while len(channels) < len(self.strides):
            width = WIDTHS[min(len(self.extra), 1)]
            # the two maps behind the added ones of stride 2 are the sixth and last of SSD300
            unpadded = self.options.unpadded and len(channels) >= len(self.strides) - 2
            self.extra.append(_further(channels[-1], width, padded=not unpadded))
            channels.append(width)
        per_cell = self.prior_grid.per_cell
        self.heads = nn.ModuleList(
            LevelHead(c, per_cell, num_classes, norm_sizes=self.norms_sizes) for c in channels
        )

    @classmethod
    def pyramid_levels(cls, recipe: schema.Recipe) -> tuple[int, int]:
        return FIRST, LAST[cls.Options.model_validate(recipe.detector.options).size]

    def class_layers(self) -> dict[str, ClassRows]:
        layout = ClassRows(groups=self.prior_grid.per_cell, before=1)
        return {f"heads.{level}.cls": layout for level in range(len(self.heads))}

    def default_priors(self) -> Shapes:
        """Two squares, and 1:2, 2:1, 1:3, 3:1, of parts of the recipe's short image side.

        Source: Liu et al. 2016, section 2.2, "Choosing scales and aspect ratios for default boxes".
        """
        scales, image = SCALES[self.options.size], self.image_side
        lists = []
        for own, beyond in pairwise(scales):
            squares = [(own * image,) * 2, ((own * beyond) ** 0.5 * image,) * 2]
            oblong = [(own * image * r**0.5, own * image / r**0.5) for r in RATIOS]
            lists.append((*squares, *oblong))
        return Shapes(shapes=tuple(lists))

    def default_assigner(self) -> MaxIoU:
        return MaxIoU(positive_iou=0.5, negative_iou=0.5)

    def default_loss(self) -> MultiBox:
        return MultiBox()

    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> features of all levels, fine to coarse."""
        if self.options.unpadded:
            # any smaller map would vanish in the last convolutions; 0 is the mean colour, as in a batch's padding
            images = F.pad(images, (0, UNPADDED_SIDE - images.shape[3], 0, UNPADDED_SIDE - images.shape[2]))
        features = [
            f for f, level in zip(self.backbone(images), self.backbone.levels, strict=True) if level >= FIRST
        ]
        if self.vgg is not None:
            features = self.vgg(features)
        for layer in self.extra:
            features.append(layer(features[-1]))
        return features

    def forward(self, images: Tensor) -> Dense:
        features = self.features(images)
        each = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        logits, deltas = (torch.cat(parts, 1).float() for parts in zip(*each, strict=True))
        priors = self.priors([(f.shape[2], f.shape[3]) for f in features], images.device)
        return Dense((logits,), self.decode(priors, deltas), deltas, priors)

    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        """Boxes of the regression output. deltas (B, A, 4) float32 -> (B, A, 4) xyxy px."""
        return boxes.decode_deltas(priors.boxes, deltas)


class LevelHead(nn.Module):
    """One 3x3 convolution each for classes and offsets of one level. Source: Liu et al. 2016, section 2.1."""

    def __init__(self, channels: int, per_cell: int, num_classes: int, *, norm_sizes: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls = nn.Conv2d(channels, per_cell * (num_classes + 1), 3, padding=1)
        self.reg = nn.Conv2d(channels, per_cell * 4, 3, padding=1)
        _start(self)
        # the head predicts offsets already multiplied by DELTA_WEIGHTS
        scale = 0.2 * boxes.DELTA_WEIGHTS[2]
        self.size_norm = SizeNorm(self.reg, per_cell, scale) if norm_sizes else None

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, c, H, W) -> logits (B, A_level, C) relative to background's, offsets (B, A_level, 4)."""
        logits, offsets = rows(self.cls(feature), self.num_classes + 1), rows(self.reg(feature), 4)
        if self.size_norm is not None:
            offsets = self.size_norm(offsets)
        # every other detector has C logits; a common offset changes no softmax, so background may count as 0
        return logits[..., 1:] - logits[..., :1], offsets


class VGGLayers(nn.Module):
    """What SSD makes of VGG's conv4_3 and conv5_3: the one normalised, the other through fc6 and fc7 as
    convolutions, the first of them dilated. Source: Liu et al. 2016, section 3; the released code.
    """

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((fine,), L2_SCALE))
        # pool5 with stride 1 and a dilated fc6 see what VGG's own did, at twice the resolution
        self.fc = nn.Sequential(
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(coarse, FC_CHANNELS, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1),
            nn.ReLU(inplace=True),
        )
        _start(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels 3 and 4 of VGG -> levels 3 and 4 of SSD."""
        fine, coarse = features
        return [F.normalize(fine) * self.scale[:, None, None], self.fc(coarse)]


def _check_unpadded(recipe: schema.Recipe, size: int) -> None:
    """Raises RecipeError where the recipe's images or maps have not the size that `unpadded` is made for."""
    if size != 300:
        raise RecipeError(
            f"detector.unpadded is of SSD300, got detector.size {size}; set one of the two back"
        )
    side = recipe.augment.largest_side
    if side > UNPADDED_SIDE:
        raise RecipeError(
            f"detector.unpadded: its last map is one cell for the whole image, so images have at most "
            f"{UNPADDED_SIDE} px, got augment.image_size of {side} px; set it to 300, or unpadded: false"
        )


def _further(channels: int, width: int, *, padded: bool) -> nn.Sequential:
    """A further level: 1x1 convolution to half the width, then 3x3 of stride 2, or without padding of stride 1."""
    stride, padding = (2, 1) if padded else (1, 0)
    layers = nn.Sequential(
        nn.Conv2d(channels, width // 2, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width // 2, width, 3, stride, padding),
        nn.ReLU(inplace=True),
    )
    _start(layers)
    return layers


def _start(module: nn.Module) -> None:
    """Source: Liu et al. 2016, section 3: xavier for everything that is new."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
