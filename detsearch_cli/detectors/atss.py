"""ATSS: one square anchor a cell, positives by mean and deviation of their IoU, GIoU loss, centerness."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.detectors._heads import DenseHead
from detsearch_cli.detectors._pyramid import PyramidDetector
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.atss import ATSSAssigner
from detsearch_cli.slots.losses.focal_iou import FocalIoU
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import Priors


class ATSS(PyramidDetector):
    """Source: Zhang et al. 2020 (ATSS), section 3; its code for the centerness on the regression tower."""

    class Options(Part):
        centerness: bool | None = Field(
            default=None,
            description="predict centerness; else every positive weighs 1; null: where the loss trains it",
        )

    options: Options
    default_nms_iou: ClassVar[float] = 0.6
    max_count: ClassVar[int] = 32

    def default_priors(self) -> Anchors:
        return Anchors(base=8, scales=1, ratios=(1.0,))

    def default_assigner(self) -> ATSSAssigner:
        return ATSSAssigner()

    def default_loss(self) -> FocalIoU:
        return FocalIoU(iou="giou", regression_weight=2.0)

    def build_head(self, channels: int, convs: int) -> DenseHead:
        return DenseHead(
            channels,
            convs,
            self.num_classes,
            per_cell=self.prior_grid.per_cell,
            norm=True,
            scales=len(self.strides),
            centerness="reg" if self.options.centerness else None,
            norm_sizes=self.norms_sizes,
        )

    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        return boxes.decode_deltas(priors.boxes, deltas)
