"""The second stage: proposals from dense predictions, features of each, its class and its box.

Source: Ren et al. 2015 (Faster R-CNN); Lin et al. 2017 (FPN), section 4.2; numbers from torchvision's
faster_rcnn. Proposals carry no gradient, as in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from detsearch_cli import boxes
from detsearch_cli.detectors._postprocess import best_per_level
from detsearch_cli.slots.assigners.base import chunks
from detsearch_cli.slots.losses._sampling import balanced
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Priors, Targets

MIN_SIDE = 1e-3
"""Px; proposals with a shorter side are dropped. Source: torchvision's RegionProposalNetwork."""
POOLED = 7
"""Cells of a region's features, each way; two samples a bin and way, as in all of the sources."""
POSITIVE_IOU = 0.5


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic boxes of every image, best first. boxes (B, K, 4) xyxy px, scores (B, K) in [0, 1].

    Rows behind an image's last proposal have score -1 and an empty box.
    """

    boxes: Tensor
    scores: Tensor

    @property
    def real(self) -> Tensor:
        """(B, K) bool."""
        return self.scores >= 0


@torch.no_grad()
def propose(dense: Dense, sizes: Tensor, *, before: int, keep: int, nms_iou: float) -> Proposals:
    """The best `before` of a level, clipped to sizes (B, 2) height, width px, suppressed within their level, and
    of these the best `keep` of an image. An image without any proposal gets one of its own size, so that the
    second stage has a region in every image.
    """
    # logits, because many sure scores are all 1 in float32
    best, prior, _ = best_per_level(dense.logits.detach().float(), dense.priors.counts, before)
    best = best.sigmoid()
    proposed = dense.boxes.detach().float().gather(1, prior[..., None].expand(-1, -1, 4))
    proposed = boxes.clip(proposed, sizes.to(proposed.device))
    image, column = (proposed[..., 2:] - proposed[..., :2]).ge(MIN_SIDE).all(-1).nonzero(as_tuple=True)
    proposed, best, level = (
        proposed[image, column],
        best[image, column],
        dense.priors.level[prior[image, column]],
    )
    # one group for each image and level: neither images nor levels suppress each other
    order = batched_nms(proposed, best, image * dense.priors.num_levels + level, nms_iou)
    # stable: within an image the order stays that of the scores
    order = order[image[order].argsort(stable=True)]
    proposed, best, image = proposed[order], best[order], image[order]
    count = torch.bincount(image, minlength=sizes.shape[0])
    rank = torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image]
    (first,) = torch.nonzero(rank < keep, as_tuple=True)
    image, rank = image[first], rank[first]
    result = Proposals(proposed.new_zeros(len(sizes), keep, 4), best.new_full((len(sizes), keep), -1.0))
    result.boxes[image, rank], result.scores[image, rank] = proposed[first], best[first]
    whole = F.pad(sizes.flip(1), (2, 0)).to(proposed)
    result.boxes[:, 0] = torch.where(count[:, None] == 0, whole, result.boxes[:, 0])
    result.scores[:, 0] = torch.where(count == 0, 0.0, result.scores[:, 0])
    return result


def with_ground_truths(proposals: Proposals, targets: Targets) -> Proposals:
    """The proposals and, behind them, the ground truths with score 1: without them early positives are few.

    Ground truths shorter than MIN_SIDE are left out, as such proposals are.
    """
    counts = targets.splits.diff()
    most = int(counts.max()) if len(targets.boxes) else 0
    image = targets.image_index()
    # rows behind the proposals of the image
    column = torch.arange(len(image), device=image.device) - targets.splits[image] + proposals.boxes.shape[1]
    together = F.pad(proposals.boxes, (0, 0, 0, most))
    scores = F.pad(proposals.scores, (0, most), value=-1.0)
    whole = (targets.boxes[:, 2:] - targets.boxes[:, :2] >= MIN_SIDE).all(1)
    together[image[whole], column[whole]] = targets.boxes[whole].to(together)
    scores[image[whole], column[whole]] = 1.0
    return Proposals(together, scores)


def match(regions: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """The ground truth that each box overlaps most. regions (B, K, 4) -> row of targets.boxes, IoU, both (B, K).

    BACKGROUND and 0 where it overlaps none; of equal overlaps the first ground truth.
    """
    matched = torch.full(regions.shape[:2], BACKGROUND, device=regions.device)
    highest = regions.new_zeros(regions.shape[:2])
    num_gt, index = len(targets.boxes), targets.image_index()
    # in pieces: a crowded batch times 2000 regions may not fit into memory
    for part in chunks(num_gt, regions.shape[1]):
        image = index[part, None].expand(-1, regions.shape[1])
        overlap = boxes.iou(targets.boxes[part][:, None].to(regions), regions[index[part]])
        highest_of_part = torch.zeros_like(highest).scatter_reduce(0, image, overlap, "amax")
        row = torch.arange(num_gt, device=regions.device)[part, None].expand_as(overlap)
        row = torch.where(overlap == highest_of_part.gather(0, image), row, num_gt)
        first = torch.full_like(matched, num_gt).scatter_reduce(0, image, row, "amin")
        # strictly above: of equal overlaps an earlier piece, so a lower ground truth, wins
        matched = torch.where(highest_of_part > highest, first, matched)
        highest = torch.maximum(highest_of_part, highest)
    return matched, highest


@dataclass(frozen=True)
class Regions:
    """Regions to train on, image after image. boxes (R, 4) px, counts (B,) of every image.

    matched (R,) int64: row of the targets' boxes, BACKGROUND for none.
    """

    boxes: Tensor
    counts: Tensor
    matched: Tensor

    def priors(self, image: tuple[int, int]) -> Priors:
        """The regions as priors of one level, whose cells have no place. image: height, width px of the batch."""
        points = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        number = len(self.boxes)
        level = torch.zeros(number, dtype=torch.int64, device=self.boxes.device)
        strides, sizes = self.boxes.new_ones(1), ((number, 1),)
        return Priors(self.boxes, points, level, strides, (number,), sizes=sizes, image=image)

    def dense(
        self, logits: Tensor, deltas: Tensor, targets: Targets, image: tuple[int, int]
    ) -> tuple[Dense, Assignment, Targets]:
        """All regions as the predictions of one image, which every loss can compare. image: height, width px of the batch.

        logits (R, C'), deltas (R, C, 4): of a region those of its own class count, of background the first class's. The
        ground truths of the batch are those of the one image: which belongs to which region is decided already.
        """
        own = (
            torch.where(self.matched >= 0, targets.labels[self.matched.clamp(min=0)], 0)
            if len(targets.labels)
            else 0
        )
        row = torch.arange(len(self.boxes), device=deltas.device)
        chosen = deltas[row, own]
        dense = Dense(
            (logits[None],), boxes.decode_deltas(self.boxes, chosen)[None], chosen[None], self.priors(image)
        )
        splits = torch.tensor([0, len(targets.boxes)], device=targets.splits.device)
        return dense, Assignment(self.matched[None]), Targets(targets.boxes, targets.labels, splits)


@torch.no_grad()
def sample_regions(
    proposals: Proposals, targets: Targets, count: int | None, positive_share: float
) -> Regions:
    """A balanced sample of proposals and ground truths, or all of them; positive from an IoU of POSITIVE_IOU on."""
    everything = with_ground_truths(proposals, targets)
    matched, overlap = match(everything.boxes, targets)
    positive = everything.real & (overlap >= POSITIVE_IOU)
    if count is None:
        image, index = everything.real.nonzero(as_tuple=True)
        chosen = positive[image, index]
    else:
        sample = balanced(positive, everything.real & ~positive, count, positive_share)
        image, index, chosen = sample.image, sample.index, sample.positive
    counts = torch.bincount(image, minlength=targets.num_images)
    row = torch.where(chosen, matched[image, index], BACKGROUND)
    return Regions(everything.boxes[image, index], counts, row)


class RegionHead(nn.Module):
    """Features of every region, pooled from the level of its size, then class scores and a box for each class.

    width: units of Fast R-CNN's two layers; None where a stage of the backbone stands in their place (`body` of
    the call), on twice the cells, which that stage halves, and is averaged. background: whether it has a logit.
    Source: Lin et al. 2017 (FPN), Eq. 1 for the level; He et al. 2016 (ResNet), appendix A, for the stage.
    """

    def __init__(
        self, channels: int, num_levels: int, num_classes: int, width: int | None, background: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.names = [str(i) for i in range(num_levels)]
        self.pool = MultiScaleRoIAlign(self.names, 2 * POOLED if width is None else POOLED, sampling_ratio=2)
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if width is not None:
            layers = [nn.Linear(channels * POOLED**2, width), nn.Linear(width, width)]
            self.body = nn.Sequential(nn.Flatten(), *(m for layer in layers for m in (layer, nn.ReLU(True))))
            channels = width
        self.cls = nn.Linear(channels, num_classes + background)
        self.reg = nn.Linear(channels, 4 * num_classes)
        for linear, std in ((self.cls, 0.01), (self.reg, 0.001)):  # source: Girshick 2015, section 4.1
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        features: list[Tensor],
        regions: Tensor,
        counts: Tensor,
        size: tuple[int, int],
        stage: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """regions (R, 4) px, image after image; counts (B,); size: height, width of the batch; stage: see above.

        -> logits (R, C + 1), the last one background, or (R, C) without; offsets (R, C, 4) as boxes.encode_deltas. float32.
        """
        each = list(regions.split(counts.tolist()))
        pooled = self.pool(dict(zip(self.names, features, strict=True)), each, [size] * len(each))
        hidden = self.body(pooled if stage is None else stage(pooled))
        return self.cls(hidden).float(), self.reg(hidden).float().view(-1, self.num_classes, 4)
