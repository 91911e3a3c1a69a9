"""YOLOv2: one level of stride 32 with a passthrough, five shapes a cell, objectness times class."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detsearch_cli import option, schema
from detsearch_cli.boxes import MAX_LOG_SIZE
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.detectors._darknet import conv_bn_leaky
from detsearch_cli.detectors._heads import rows
from detsearch_cli.detectors._learning import SizeNorm
from detsearch_cli.detectors._postprocess import select_scored
from detsearch_cli.detectors.base import ClassRows, Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Channels, Part, Steps
from detsearch_cli.slots.assigners import yolo as assigners
from detsearch_cli.slots.losses import yolo as losses
from detsearch_cli.slots.priors.base import CELL_CENTRE
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import Assignment, Dense, Detections, Priors, Targets

LEVEL = 5
WARMUP_WEIGHT = 0.01
MOST_CHANNELS = 1024
"""Of the head in darknet, whose backbone ends in as many."""


class YOLOv2(Detector):
    """Source: Redmon and Farhadi 2017 (YOLO9000), section 2; numbers from the released code (darknet).

    `neck` and `head` of the recipe are not used. The head is as wide as the backbone's last feature, 1024 for
    darknet19 and at most that: a laptop's backbone gets a head to match. The default shapes are darknet's for VOC
    at 416 px; other image sizes and data want their own (`detsearch anchors fit`).

    The paper's search of counts knows no YOLOv2; max_count is FCOS's, which also predicts from few places.
    """

    class Options(Part):
        channels: Channels | None = Field(
            default=None, description="of the head; null: as the backbone's last feature, at most 1024"
        )
        passthrough: int | None = Field(
            default=None,
            ge=1,
            le=option.MOST_CHANNELS,
            description="channels of the stride-16 feature; null: a sixteenth of the head's",
        )
        warmup_images: Steps = Field(
            default=12800,
            description="images at first during which every prior is drawn to its own shape",
        )
        warmup_fraction: float = Field(
            default=0.1, ge=0, le=1, description="largest part of the training that this lasts"
        )

    default_nms_iou: ClassVar[float] = 0.45
    default_score_threshold: ClassVar[float] = 0.005
    default_max_detections: ClassVar[int] = 300
    max_count: ClassVar[int] = 25
    options: Options

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__(recipe, num_classes)
        if self.prior_grid.ranges(self.levels) is not None:
            raise RecipeError(
                f"detector yolov2 predicts boxes from shapes, got priors: {recipe.priors and recipe.priors.name}; "
                f"use priors: shapes or anchors"
            )
        if self.prior_grid.offset != CELL_CENTRE or self.prior_grid.spread:
            raise RecipeError(
                f"detector yolov2 predicts where in its cell a box lies, so priors.offset stays {CELL_CENTRE} and "
                f"priors.spread false, got {self.prior_grid.offset} and {self.prior_grid.spread}"
            )
        if not self.loss.trains_objectness:
            raise RecipeError(
                f"detector yolov2 needs a loss that trains its objectness, got loss: "
                f"{recipe.loss and recipe.loss.name}; use loss: yolo"
            )
        self.backbone = build_backbone(recipe.backbone, (LEVEL - 1, LEVEL))
        features = dict(zip(self.backbone.levels, self.backbone.channels, strict=True))
        if not {LEVEL - 1, LEVEL} <= features.keys():
            raise RecipeError(
                f"detector yolov2 needs features of strides 16 and 32, backbone {recipe.backbone.name!r} has "
                f"{', '.join(str(2**level) for level in features)}; use another backbone"
            )
        channels = self.options.channels or min(MOST_CHANNELS, features[LEVEL])
        self.head = YOLOHead(
            (features[LEVEL - 1], features[LEVEL]),
            channels,
            # rounded up: a narrow head still gets one channel
            self.options.passthrough or -(-channels // 16),
            self.num_classes,
            self.prior_grid.per_cell,
            norm_sizes=self.norms_sizes,
        )

    @classmethod
    def pyramid_levels(cls, recipe: schema.Recipe) -> tuple[int, int]:
        return LEVEL, LEVEL

    def class_layers(self) -> dict[str, ClassRows]:
        return {"head.last": ClassRows(groups=self.prior_grid.per_cell, before=5)}

    def default_priors(self) -> Shapes:
        return Shapes(shapes="yolov2-voc")

    def default_assigner(self) -> assigners.Yolo:
        return assigners.Yolo()

    def default_loss(self) -> losses.Yolo:
        return losses.Yolo()

    def forward(self, images: Tensor) -> Dense:
        features = dict(zip(self.backbone.levels, self.backbone(images), strict=True))
        coarse = features[LEVEL]
        logits, deltas, objectness = self.head(features[LEVEL - 1], coarse)
        priors = self.priors([(coarse.shape[2], coarse.shape[3])], images.device)
        # float32 under autocast too: exp and box areas overflow half precision
        deltas = deltas.float()
        return Dense(
            maps=(logits.float(),),
            boxes=decode(priors, deltas),
            deltas=deltas,
            priors=priors,
            objectness=objectness.float(),
        )

    def assigned_loss(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        terms = super().assigned_loss(dense, assignment, targets)
        if self._warming():
            terms["warmup"] = losses.coordinate_warmup(dense, assignment, WARMUP_WEIGHT)
        return terms

    def _warming(self) -> bool:
        """Whether priors are still drawn to their own shapes.

        12,800 images are .25% of darknet's training, but may be the whole of a short one: hence the fraction.
        """
        early = self.step.index < self.options.warmup_fraction * self.step.total
        return early and self.step.images < self.options.warmup_images

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor, test: schema.Test) -> list[Detections]:
        dense, how = self(images), self.selection(test)
        assert dense.objectness is not None
        scores = dense.logits.softmax(-1) * dense.objectness.sigmoid()[..., None]
        # darknet compares the product with the threshold, not the class score alone
        scores = torch.where(scores > how.score_threshold, scores, -1.0)
        return select_scored(scores, dense.boxes, dense.priors.counts, sizes, how)


class YOLOHead(nn.Module):
    """Two convolutions, the passthrough beside them, one more, and A x (4 + 1 + C) outputs a cell.

    A prior's outputs are tx, ty, tw, th, objectness and the classes' logits, as in darknet. The passthrough
    stacks 2 x 2 cells of the finer feature into the channels of one.
    norm_sizes: batch norm without shift on the predicted widths and heights.
    """

    def __init__(
        self,
        inputs: tuple[int, int],
        channels: int,
        passthrough: int,
        num_classes: int,
        per_cell: int,
        *,
        norm_sizes: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Sequential(
            conv_bn_leaky(inputs[1], channels, 3), conv_bn_leaky(channels, channels, 3)
        )
        self.passthrough = nn.Sequential(conv_bn_leaky(inputs[0], passthrough, 1), nn.PixelUnshuffle(2))
        self.second = conv_bn_leaky(4 * passthrough + channels, channels, 3)
        self.last = nn.Conv2d(channels, per_cell * (4 + 1 + num_classes), 1)
        self.size_norm = SizeNorm(self.last, per_cell) if norm_sizes else None

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of strides 16 and 32 -> logits (B, A, C), offsets (B, A, 4), objectness (B, A)."""
        x = self.second(torch.cat((self.passthrough(fine), self.first(coarse)), 1))
        outputs = rows(self.last(x), 4 + 1 + self.num_classes)
        if self.size_norm is not None:
            outputs = self.size_norm(outputs)
        return outputs[..., 5:], outputs[..., :4], outputs[..., 4]


def decode(priors: Priors, deltas: Tensor) -> Tensor:
    """Boxes of the regression output: sigmoid within the cell, exp times the shape.

    priors: the A priors; deltas (B, A, 4) tx ty tw th -> (B, A, 4) xyxy px.
    """
    # with the gradient to the shape: a learned shape is also moved by losses that compare decoded boxes
    shape = priors.boxes[:, 2:] - priors.boxes[:, :2]
    center = priors.points + (deltas[..., :2].sigmoid() - 0.5) * priors.strides[priors.level][:, None]
    half = deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp() * shape / 2
    return torch.cat((center - half, center + half), -1)
