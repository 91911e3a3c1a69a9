"""Detectors of a feature pyramid and one dense head: RetinaNet, FCOS, ATSS."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detsearch_cli import schema
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.detectors._fpn import FPN
from detsearch_cli.detectors._heads import DenseHead
from detsearch_cli.detectors.base import ClassRows, Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Part
from detsearch_cli.slots.losses.base import DetectionLoss
from detsearch_cli.structures import Dense, Priors


def _trained(loss: type[DetectionLoss] | None) -> bool:
    """Whether the loss trains centerness; those of the detectors that have it do."""
    return loss is None or loss.trains_centerness


class PyramidDetector(Detector):
    """Backbone, FPN, and towers shared by all levels."""

    @property
    def extra_from_backbone(self) -> bool:
        """Whether P6 is made from the backbone's last feature (C5) instead of the pyramid's (P5)."""
        return False

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__(recipe, num_classes)
        self.backbone = build_backbone(recipe.backbone, self.levels)
        self.neck = FPN(
            self.backbone.levels,
            self.backbone.channels,
            recipe.neck.channels,
            self.levels,
            extra_from_backbone=self.extra_from_backbone,
        )
        self.head = self.build_head(recipe.neck.channels, recipe.head.convs)
        # scores are multiplied by centerness: a branch that nothing trains would shuffle them
        if self.head.centerness is not None and not self.loss.trains_centerness:
            raise RecipeError(
                f"detector {recipe.detector.name} has a centerness branch, which loss: "
                f"{recipe.loss and recipe.loss.name} does not train; add detector.centerness: false, or use loss: focal_iou"
            )

    @classmethod
    def settled(cls, options: Part, loss: type[DetectionLoss] | None) -> Part:
        """`centerness: null` is a branch where the loss trains it."""
        if getattr(options, "centerness", False) is None:
            return options.model_copy(update={"centerness": _trained(loss)})
        return options

    @classmethod
    def loosened(cls, options: Mapping[str, Any], loss: type[DetectionLoss] | None) -> Mapping[str, Any]:
        """`centerness: null` again, where it is as the loss wants it."""
        if options.get("centerness") is _trained(loss):
            return {**options, "centerness": None}
        return options

    @abstractmethod
    def build_head(self, channels: int, convs: int) -> DenseHead:
        """The towers; `self.prior_grid` is already known."""

    def class_layers(self) -> dict[str, ClassRows]:
        return {"head.cls": ClassRows(groups=self.prior_grid.per_cell)}

    @abstractmethod
    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        """Boxes of the regression output. deltas (B, A, 4) float32 -> (B, A, 4) xyxy px."""

    def forward(self, images: Tensor) -> Dense:
        features = self.neck(self.backbone(images))
        logits, deltas, centerness = self.head(features)
        priors = self.priors([(f.shape[2], f.shape[3]) for f in features], images.device)
        # float32 under autocast too: exp and box areas overflow half precision
        deltas = deltas.float()
        return Dense(
            maps=tuple(level.float() for level in logits),
            boxes=self.decode(priors, deltas),
            deltas=deltas,
            priors=priors,
            centerness=None if centerness is None else centerness.float(),
        )
