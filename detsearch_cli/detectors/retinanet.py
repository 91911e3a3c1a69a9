"""RetinaNet: nine anchors a cell, focal loss, smooth L1 on encoded offsets."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.detectors._heads import DenseHead
from detsearch_cli.detectors._pyramid import PyramidDetector
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.losses.focal_smooth_l1 import FocalSmoothL1
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import Priors


class RetinaNet(PyramidDetector):
    """Source: Lin et al. 2017 (focal loss), section 4; numbers from maskrcnn-benchmark's RetinaNet."""

    class Options(Part):
        later_options: ClassVar[frozenset[str]] = frozenset({"p6_from"})
        p6_from: Literal["c5", "p5"] = Field(
            default="c5",
            description="what level 6 is made from: the backbone's last feature, or the pyramid's (torchvision)",
        )

    default_nms_iou: ClassVar[float] = 0.5
    max_count: ClassVar[int] = 80
    options: Options

    @property
    def extra_from_backbone(self) -> bool:
        return self.options.p6_from == "c5"

    def default_priors(self) -> Anchors:
        return Anchors()

    def default_assigner(self) -> MaxIoU:
        return MaxIoU()

    def default_loss(self) -> FocalSmoothL1:
        return FocalSmoothL1()

    def build_head(self, channels: int, convs: int) -> DenseHead:
        return DenseHead(
            channels,
            convs,
            self.num_classes,
            per_cell=self.prior_grid.per_cell,
            norm_sizes=self.norms_sizes,
        )

    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        return boxes.decode_deltas(priors.boxes, deltas)
