"""FCOS: one point a cell predicts its distances to the four sides of a box, and its centerness."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes, schema
from detsearch_cli.detectors._heads import DenseHead
from detsearch_cli.detectors._pyramid import PyramidDetector
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.fcos import FCOSAssigner
from detsearch_cli.slots.losses.focal_iou import FocalIoU
from detsearch_cli.slots.priors.base import PriorGrid
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Priors

INITIAL_STRIDES = 4.0
"""Every distance starts at 4 strides: on every level half of the level's largest distance, which is 64 px on level 3.

The paper's exp(s x) px starts at 1 px everywhere. This is the same function with s x shifted by a constant a
level, which a short training need not learn first: 36 AP, not 12, on bccd after 10 epochs at 192 px."""


class FCOS(PyramidDetector):
    """Source: Tian et al. 2019 (FCOS), vanilla by default; its later tricks are options."""

    class Options(Part):
        center_sampling: bool = Field(default=False, description="positives only near the middle of a box")
        radius: float = Field(default=1.5, gt=0, description="of centre sampling, in strides")
        norm_on_bbox: bool = Field(
            default=False, description="predict distances in strides, ReLU instead of exp"
        )
        centerness: bool | None = Field(
            default=None,
            description="predict centerness; without it every positive weighs 1; null: where the loss trains it",
        )
        centerness_on_reg: bool = Field(default=False, description="centerness on the regression tower")

    options: Options
    default_nms_iou: ClassVar[float] = 0.6
    max_count: ClassVar[int] = 25

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__(recipe, num_classes)
        if self.prior_grid.per_cell != 1:
            raise RecipeError(
                f"detector fcos needs one prior a cell, got {self.prior_grid.per_cell}; use priors: points"
            )

    def default_priors(self) -> PriorGrid:
        return Points()

    def default_assigner(self) -> FCOSAssigner:
        return FCOSAssigner(center_sampling=self.options.center_sampling, radius=self.options.radius)

    def default_loss(self) -> FocalIoU:
        return FocalIoU()

    def build_head(self, channels: int, convs: int) -> DenseHead:
        tower = "reg" if self.options.centerness_on_reg else "cls"
        return DenseHead(
            channels,
            convs,
            self.num_classes,
            norm=True,
            scales=len(self.strides),
            centerness=tower if self.options.centerness else None,  # type: ignore[arg-type]
        )

    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        """exp gives multiples of INITIAL_STRIDES strides; with norm_on_bbox a ReLU gives strides."""
        strides = priors.strides[priors.level][:, None]
        if self.options.norm_on_bbox:
            # ReLU instead of exp, as the released code has it with this option
            distances = F.relu(deltas) * strides
        else:
            # clamped before exp: an early overshoot would give infinite boxes, and NaN in the loss
            distances = deltas.clamp(max=boxes.MAX_LOG_DISTANCE).exp() * strides * INITIAL_STRIDES
        return boxes.decode_distances(priors.points, distances)
