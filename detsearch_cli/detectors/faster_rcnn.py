"""Faster R-CNN: dense predictions propose regions, a second stage names them and draws their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from detsearch_cli import boxes, schema
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.detectors._fpn import FPN
from detsearch_cli.detectors._heads import rows
from detsearch_cli.detectors._learning import SizeNorm
from detsearch_cli.detectors._postprocess import Selection, select_scored
from detsearch_cli.detectors._regions import Proposals, RegionHead, propose, sample_regions
from detsearch_cli.detectors.base import ClassRows, Detector, part_of
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Channels, Count, Part
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.losses.base import DetectionLoss
from detsearch_cli.slots.losses.cross_entropy import CrossEntropy
from detsearch_cli.slots.losses.rpn import RPN
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.slots.priors.base import PriorGrid
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import Dense, Detections, Priors, Targets

SIDES, RATIOS = (128, 256, 512), (0.5, 1.0, 2.0)
"""Of the anchors without FPN, in px. Source: Ren et al. 2015, section 3.1.1."""
SINGLE_LEVEL = (4, 4)
"""Stride 16, the last feature before the stage that runs on regions. Source: as above; He et al. 2016."""
CANDIDATES, CANDIDATES_FPN = 6000, 1000
"""Source: Ren et al. 2015's released code; torchvision's faster_rcnn."""
TRAINING_FACTOR = 2
"""Twice as many candidates and proposals in training, as in both."""


class RPNHead(nn.Module):
    """One 3x3 convolution, then one score and 4 offsets a prior. Source: Ren et al. 2015, section 3.1.

    norm_sizes: batch norm without shift on the predicted widths and heights.
    """

    def __init__(self, channels: int, per_cell: int, *, norm_sizes: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls = nn.Conv2d(channels, per_cell, 1)
        self.reg = nn.Conv2d(channels, per_cell * 4, 1)
        self.size_norm = SizeNorm(self.reg, per_cell) if norm_sizes else None
        for layer in (self.conv, self.cls, self.reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of all levels -> logits (B, A, 1), plain offsets (B, A, 4), in the order of PriorGrid."""
        hidden = [F.relu(self.conv(feature)) for feature in features]
        logits = torch.cat([rows(self.cls(h), 1) for h in hidden], 1)
        offsets = torch.cat([rows(self.reg(h), 4) for h in hidden], 1)
        return logits, offsets if self.size_norm is None else self.size_norm(offsets)


class FasterRCNN(Detector):
    """Source: Ren et al. 2015; with FPN Lin et al. 2017, section 4; numbers from torchvision's faster_rcnn.

    The dense predictions are those of the first stage: one class, an object. The recipe's slots priors, assign and
    loss belong to the first stage, so the RPN's anchors are learned like those of a one-stage detector. Differences
    from torchvision: proposals are clipped to the padded batch in training; an image without any proposal becomes
    one region as a whole.
    """

    class Options(Part):
        fpn: bool = Field(
            default=True, description="feature pyramid of neck.levels; else the backbone's level 4 alone"
        )
        region_head: Literal["auto", "mlp", "stage5"] = Field(
            default="auto",
            description="mlp: two layers of `width`; stage5: the backbone's last stage; auto: mlp with fpn, else stage5",
        )
        width: Channels = Field(default=1024, description="units of the two layers of mlp")
        candidates: Count | None = Field(
            default=None,
            description="best of a level before suppression, twice in training; null: 1000, 6000 without fpn",
        )
        proposals: Count = Field(default=1000, description="best of an image after it, twice in training")
        proposal_nms_iou: float = Field(default=0.7, gt=0, le=1, description="of that suppression")
        regions: Count | None = Field(
            default=512, description="proposals of an image that are trained on; null: all"
        )
        positive_share: float = Field(default=0.25, gt=0, le=1, description="of them, positive at most")

    options: Options
    stages: ClassVar[int] = 2
    default_levels: ClassVar[tuple[int, int]] = (2, 6)
    default_nms_iou: ClassVar[float] = 0.5
    max_count: ClassVar[int] = 80  # as RetinaNet: HPS-Det names no two-stage detector

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__(recipe, num_classes)
        self.region_loss: DetectionLoss = part_of(recipe, "region_loss", DetectionLoss) or CrossEntropy()  # type: ignore[type-abstract]
        if self.region_loss.trains_objectness:
            raise RecipeError(
                f"region_loss: {recipe.region_loss and recipe.region_loss.name} compares a branch that regions do not have"
            )
        stage5 = self.options.region_head == "stage5"
        if self.options.region_head == "auto":
            stage5 = not self.options.fpn
        if stage5 and self.options.fpn:
            raise RecipeError(
                "detector.region_head: stage5 looks at the backbone's own features; set fpn: false"
            )
        # no backbone has a level beyond 5; levels above are made in `features`
        first, last = self.levels[0], min(self.levels[1], 5)
        self.backbone = build_backbone(recipe.backbone, (first, 5 if stage5 else last))
        tail_channels = self.backbone.split_tail(last) if stage5 else 0
        self.neck: FPN | None = None
        channels = self.backbone.channels[-1]
        if self.options.fpn:
            channels = recipe.neck.channels
            self.neck = FPN(
                self.backbone.levels,
                self.backbone.channels,
                channels,
                (first, last),
                extra_from_backbone=False,
            )
        self.head = RPNHead(channels, self.prior_grid.per_cell, norm_sizes=self.norms_sizes)
        self.num_region_levels = last - first + 1
        self.regions = RegionHead(
            tail_channels or channels,
            self.num_region_levels,
            num_classes,
            None if stage5 else self.options.width,
            self.region_loss.background_logit,
        )

    @classmethod
    def pyramid_levels(cls, recipe: schema.Recipe) -> tuple[int, int]:
        options = cls.Options.model_validate(recipe.detector.options)
        return recipe.neck.levels if options.fpn else SINGLE_LEVEL

    def default_priors(self) -> PriorGrid:
        """Sides of 8 strides at every level of a pyramid (32 to 512 px), else three sizes; three ratios each."""
        if self.options.fpn:
            return Anchors(base=8, scales=1, ratios=RATIOS)
        return Shapes(shapes=(tuple((s / r**0.5, s * r**0.5) for r in RATIOS for s in SIDES),))

    def default_assigner(self) -> MaxIoU:
        return MaxIoU(positive_iou=0.7, negative_iou=0.3)

    def default_loss(self) -> RPN:
        return RPN()

    def dense_targets(self, targets: Targets) -> Targets:
        return Targets(targets.boxes, torch.zeros_like(targets.labels), targets.splits)

    def class_layers(self) -> dict[str, ClassRows]:
        return {
            "regions.cls": ClassRows(after=int(self.region_loss.background_logit)),
            "regions.reg": ClassRows(width=4),
        }

    # ------------------------------------------------------------------ both stages

    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> features of all levels, fine to coarse.

        Levels above the backbone's are the last one's every second cell, for proposals alone.
        Source: Lin et al. 2017, section 4.1.
        """
        features: list[Tensor] = self.backbone(images)
        if self.neck is None:
            return features[-1:]
        features = self.neck(features)
        while len(features) < len(self.strides):
            # a pool of 1 with stride 2 takes every second cell
            features.append(F.max_pool2d(features[-1], 1, 2))
        return features

    def first_stage(self, features: list[Tensor]) -> Dense:
        """Dense predictions of one class, an object: what proposals are chosen from."""
        logits, offsets = self.head(features)
        priors = self.priors([(f.shape[2], f.shape[3]) for f in features], logits.device)
        # an RPN predicts plain offsets, `Dense` holds scaled ones: the RPN learns as fast as in the sources, and
        # losses and decoding need one convention
        deltas = offsets.float() * offsets.new_tensor(boxes.DELTA_WEIGHTS, dtype=torch.float32)
        return Dense((logits.float(),), self.decode(priors, deltas), deltas, priors)

    def decode(self, priors: Priors, deltas: Tensor) -> Tensor:
        """Boxes of the first stage's regression output. deltas (B, A, 4) float32 -> (B, A, 4) xyxy px."""
        return boxes.decode_deltas(priors.boxes, deltas)

    def forward(self, images: Tensor) -> Dense:
        """The first stage's predictions: logits (B, A, 1)."""
        return self.first_stage(self.features(images))

    def propose(self, dense: Dense, sizes: Tensor, factor: int = 1) -> Proposals:
        """Regions for the second stage. sizes (B, 2): height, width px that boxes are clipped to."""
        own = CANDIDATES_FPN if self.options.fpn else CANDIDATES
        return propose(
            dense,
            sizes,
            before=factor * (self.options.candidates or own),
            keep=factor * self.options.proposals,
            nms_iou=self.options.proposal_nms_iou,
        )

    def second_stage(
        self, features: list[Tensor], regions: Tensor, counts: Tensor, images: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of regions (R, 4) px, image after image, counts (B,) of each: logits (R, C + 1), offsets (R, C, 4).

        For a loss without background logits (R, C).
        """
        size = (images.shape[2], images.shape[3])
        # the added levels are for proposals alone
        levels = features[: self.num_region_levels]
        logits, offsets = self.regions(levels, regions, counts, size, self.backbone.tail)
        return logits, offsets

    def training_loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms to be summed: those of the first stage begin with "rpn_"."""
        features = self.features(images)
        dense = self.first_stage(features)
        terms = {f"rpn_{k}": v for k, v in self.dense_loss(dense, self.dense_targets(targets)).items()}
        # half precision would rank proposals and overlaps by rounding
        with torch.autocast(images.device.type, enabled=False):
            sizes = images.new_tensor([images.shape[2:]]).expand(len(images), 2)
            proposals = self.propose(dense, sizes, TRAINING_FACTOR)
            share = self.options.positive_share
            regions = sample_regions(proposals, targets, self.options.regions, share)
        logits, deltas = self.second_stage(features, regions.boxes, regions.counts, images)
        with torch.autocast(images.device.type, enabled=False):
            size = (images.shape[2], images.shape[3])
            return terms | self.region_loss(*regions.dense(logits, deltas, targets, size))

    def losses(self) -> Mapping[str, DetectionLoss]:
        return {"loss": self.loss, "region_loss": self.region_loss}

    def stuck(self, terms: Mapping[str, float]) -> bool:
        first = {name.removeprefix("rpn_"): value for name, value in terms.items() if name.startswith("rpn_")}
        return self.loss.stuck(first) or self.region_loss.stuck(terms)

    def selection(self, test: schema.Test) -> Selection:
        """Of the second stage, whose loss decides whether a threshold means anything."""
        chosen = super().selection(test)
        if test.score_threshold is None:
            own = 0.0 if self.region_loss.ranks else self.default_score_threshold
            return replace(chosen, score_threshold=own)
        return chosen

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor, test: schema.Test) -> list[Detections]:
        """As every detector does; the detections carry the proposals of their image."""
        how = self.selection(test)
        features = self.features(images)
        proposals = self.propose(self.first_stage(features), sizes.to(images.device))
        real = proposals.real
        logits, deltas = self.second_stage(features, proposals.boxes[real], real.sum(1), images)
        probability = self.region_loss.probabilities(logits)
        # back to rows of equal length, one an image: -1 and empty boxes where an image has fewer proposals
        scores = probability.new_full((*real.shape, self.num_classes), -1.0)
        scores[real] = torch.where(probability > how.score_threshold, probability, -1.0)
        predicted = scores.new_zeros((*scores.shape, 4))
        # classes first, so that the regions (R, 4) broadcast over offsets (C, R, 4)
        predicted[real] = boxes.decode_deltas(proposals.boxes[real], deltas.transpose(0, 1)).transpose(0, 1)
        detections = select_scored(scores, predicted, (real.shape[1],), sizes, how)
        return [
            Detections(d.boxes, d.scores, d.labels, proposals=own[own_real])
            for d, own, own_real in zip(detections, proposals.boxes, real, strict=True)
        ]
