"""Searched number of positives per ground truth, by pyramid level and aspect ratio (HPS-Det).

For every ground truth g, from the current predictions and without gradient:
  candidates C_g   anchors: IoU(anchor, g) > min_iou, on all levels
                   points: strictly inside g, on levels whose range holds their largest distance to a side
  loss             l = l_cls + alpha * l_reg of every candidate's prediction against g
  level i, bin j   the best pyramid level of g, and the bin its aspect ratio falls into
  positives        the counts[i][j] candidates of lowest loss
A prior selected by several ground truths goes to the one of lowest loss; everything else is background.

Source: Liu et al., HPS-Det, Algorithm 2 and section 3.3. Where the paper is silent we chose:
- l_cls is the focal loss (alpha .25, gamma 2), summed over classes against the one-hot target of g's class:
  the loss that RetinaNet, FCOS and ATSS train with. l_reg is -ln IoU(predicted box, g), which the paper's
  code bases (FCOS, ATSS) call IoU loss; IoU is at least 1e-7 (l_reg at most 16.1) so that predictions that
  miss g altogether still compare by their classification loss.
- alpha 1.5: that of OTA (Ge et al. 2021), the closest published assigner by lowest loss.
- Aspect ratio is height / width, as for the anchors of maskrcnn-benchmark, the paper's code base.
- Best level for points: the one whose range holds half the long side, the largest distance from the centre.
  Of anchors with equal IoU the first counts.
- Fewer candidates than the count: all of them are positive. Padding with priors that fail the candidate rule
  would train the detector on locations its own definition excludes.
- Equal losses: the lower prior is selected; a contested prior goes to the lower row of the ground truths.
- What a ground truth loses in a conflict is not refilled, except its last positive: see `_keep.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import detsearch_kernels as kernels
import torch
from detsearch_kernels.assign import Scattered, Tiling, assign_topk
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from detsearch_cli.boxes import iou
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Count
from detsearch_cli.slots.assigners._candidates import Pairs, find_candidates, lowest_by, order_by
from detsearch_cli.slots.assigners._dynamic_defaults import ALPHA, MIN_IOU, PAPER_EDGES
from detsearch_cli.slots.assigners._keep import serve_orphans
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Priors, Targets

FOCAL_ALPHA = 0.25  # and gamma 2, the squares below
MIN_IOU_OF_LOSS = 1e-7
CPU_PIECE, GPU_PIECE = 2**17, 2**24  # elements of a temporary; on a CPU half a megabyte stays in its cache


@dataclass(frozen=True)
class Groups:
    """Where each ground truth falls. All (G,) int64.

    level: best pyramid level, -1 when anchor-based and without a candidate. bin: aspect-ratio bin of its row.
    count: the positives it asks for. candidates: the priors it can choose from.
    """

    level: Tensor
    bin: Tensor
    count: Tensor
    candidates: Tensor


class Dynamic(Assigner):
    """Algorithm 2 of HPS-Det.

    `counts` has one row a pyramid level, or a single row shared by all levels ("5", "3" and "1" in Table 5);
    rows may differ in their number of bins. `edges` has one row of ascending aspect ratios for each row of
    counts, or one list for all of them; left out, rows of 1, 3 or 5 bins take the paper's.
    """

    counts: tuple[tuple[Count, ...], ...] = Field(
        ((9,),),
        min_length=1,
        description="positives by level and aspect bin; default: ATSS's top 9 for everything",
    )
    edges: tuple[tuple[float, ...], ...] | None = Field(
        None, description="aspect-ratio (height / width) bin edges"
    )
    alpha: float = Field(ALPHA, ge=0, description="weight of the IoU loss against the focal loss")
    min_iou: float = Field(MIN_IOU, ge=0, lt=1, description="IoU above which an anchor is a candidate")

    @field_validator("edges", mode="before")
    @classmethod
    def _nest(cls, value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return value
        return value if value and isinstance(value[0], Sequence) else (tuple(value),)

    @model_validator(mode="after")
    def _fits(self) -> Dynamic:
        rows = self.edge_rows()
        if len(rows) != len(self.counts):
            raise ValueError(
                f"edges must be one list or have the {len(self.counts)} rows of counts, got {len(rows)} rows"
            )
        for count, edge in zip(self.counts, rows, strict=True):
            if len(edge) != len(count) - 1:
                raise ValueError(
                    f"{len(count)} bins need {len(count) - 1} edges, counts {count} has edges {edge}"
                )
            if list(edge) != sorted(set(edge)) or any(e <= 0 for e in edge):
                raise ValueError(f"edges must be positive and ascending, got {edge}")
        return self

    def edge_rows(self) -> tuple[tuple[float, ...], ...]:
        """Edges of every row of counts. Raises ValueError for a number of bins the paper does not define."""
        if self.edges is None:
            for row in self.counts:
                if len(row) not in PAPER_EDGES:
                    raise ValueError(
                        f"a row of {len(row)} bins needs edges; without, rows have 1, 3 or 5 bins"
                    )
            return tuple(PAPER_EDGES[len(row)] for row in self.counts)
        if len(self.edges) == 1:
            return tuple(self.edges[0] if len(row) > 1 else () for row in self.counts)
        return self.edges

    def check(self, num_levels: int) -> None:
        """Raise RecipeError unless the rows of counts fit a detector of `num_levels` pyramid levels."""
        if len(self.counts) not in (1, num_levels):
            raise RecipeError(
                f"assign.counts must have one row for each of the detector's {num_levels} levels or a "
                f"single row for all of them, got {len(self.counts)} rows; search again or adapt neck.levels"
            )

    @torch.no_grad()
    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        """Positives of a batch, without a loop over images or ground truths; memory O(candidates + B A)."""
        num_images, num_priors = dense.boxes.shape[:2]
        device = dense.boxes.device
        self.check(dense.priors.num_levels)
        tiling = dense.priors.tiling or (_scattered(dense) if device.type == "cpu" else None)
        if tiling is not None and kernels.ready(device):
            return Assignment(self._compiled(dense, targets, tiling))
        owner = torch.full((num_images * num_priors,), BACKGROUND, dtype=torch.int64, device=device)
        pairs = find_candidates(dense.priors, targets.boxes.float(), self.min_iou)
        if len(pairs.gt):
            self._select(dense, targets, pairs, owner)
        return Assignment(owner.view(num_images, num_priors))

    def _compiled(self, dense: Dense, targets: Targets, tiling: Tiling | Scattered) -> Tensor:
        """The same by detsearch_kernels."""
        counts, edges = _tables(self)
        return assign_topk(
            [level.float() for level in dense.maps],
            dense.boxes.float(),
            targets.boxes.float(),
            targets.labels,
            targets.splits,
            tiling,
            counts,
            edges,
            alpha=self.alpha,
            min_iou=self.min_iou,
        )

    def explain(self, priors: Priors, boxes: Tensor) -> Groups:
        """Level, bin, count and candidates of boxes (G, 4) xyxy px; needs no predictions."""
        self.check(priors.num_levels)
        pairs = find_candidates(priors, boxes.float(), self.min_iou)
        bins, counts = self._bins(boxes.float(), pairs.level)
        return Groups(pairs.level, bins, counts, torch.bincount(pairs.gt, minlength=len(boxes)))

    def _select(self, dense: Dense, targets: Targets, pairs: Pairs, owner: Tensor) -> None:
        """Write the winners of all candidates into `owner` (B A,)."""
        num_gt, num_priors = len(targets.boxes), dense.boxes.shape[1]
        gt, row = pairs.gt, targets.image_index()[pairs.gt] * num_priors + pairs.prior
        loss = self._loss(dense, targets, gt, row)
        _, count = self._bins(targets.boxes.float(), pairs.level)
        order = order_by(gt, loss)
        row, loss = row[order], loss[order]  # gt is sorted already
        # the position within a ground truth's own candidates, which lie together and are sorted by loss
        start = torch.searchsorted(gt, torch.arange(num_gt, device=gt.device))
        rank = torch.arange(len(gt), device=gt.device) - start[gt]
        (chosen,) = torch.nonzero(rank < count[gt], as_tuple=True)
        winner = chosen[lowest_by(row[chosen], loss[chosen])]
        owner[row[winner]] = gt[winner]
        serve_orphans(owner, num_gt, gt, row, loss)

    def _bins(self, boxes: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Aspect bin and wanted count of boxes (G, 4) at level (G,) -> two (G,) int64."""
        table, edges = (t.to(boxes.device) for t in _tables(self))
        # -1, no candidate, takes any row: a count of nothing is nothing
        row = level.clamp(min=0) if len(self.counts) > 1 else torch.zeros_like(level)
        sides = boxes[:, 2:] - boxes[:, :2]
        aspect = sides[:, 1:] / sides[:, :1]
        bins = (aspect > edges[row]).sum(1)
        return bins, table[row, bins]

    def _loss(self, dense: Dense, targets: Targets, gt: Tensor, row: Tensor) -> Tensor:
        """l_cls + alpha * l_reg of candidates gt (P,), row (P,) of B A -> (P,) float32 >= 0."""
        logits, boxes = dense.logits.flatten(0, 1), dense.boxes.flatten(0, 1)
        own = logits[row, targets.labels[gt]].float()
        cls = (
            _background_loss(logits, row)
            - (1 - FOCAL_ALPHA) * _negative_focal(own)
            + FOCAL_ALPHA * _negative_focal(-own)
        )
        overlap = iou(boxes[row].float(), targets.boxes[gt].float())
        # at least 0: rounding may go below, and `order_by` reads the bits of floats >= 0
        return (cls - self.alpha * overlap.clamp_(min=MIN_IOU_OF_LOSS).log_()).clamp_(min=0)


def _scattered(dense: Dense) -> Scattered:
    """Priors that do not tile, for the kernel."""
    priors = dense.priors
    if dense.maps[0].dim() == 3:
        sizes = [(count, 1, 1) for count in priors.counts]
    else:
        shapes = [level.shape[2:] for level in dense.maps]
        sizes = [(h, w, count // max(1, h * w)) for (h, w), count in zip(shapes, priors.counts, strict=True)]
    at, ranges = (
        (priors.boxes, torch.empty(0, 2)) if priors.ranges is None else (priors.points, priors.ranges)
    )
    return Scattered(at.float(), torch.tensor(sizes), ranges.float())


@lru_cache(maxsize=64)
def _tables(assigner: Dynamic) -> tuple[Tensor, Tensor]:
    """counts (R, K) int64 and edges (R, K - 1) float32 on the CPU; short rows padded with 1 and infinity."""
    width = max(len(row) for row in assigner.counts)
    counts = [[*row, *[1] * (width - len(row))] for row in assigner.counts]
    edges = [[*row, *[float("inf")] * (width - 1 - len(row))] for row in assigner.edge_rows()]
    return torch.tensor(counts), torch.tensor(edges, dtype=torch.float32).reshape(len(counts), width - 1)


def _negative_focal(logit: Tensor) -> Tensor:
    """p^2 * -ln(1 - p) with p = sigmoid(logit): the unweighted focal loss of a target 0, elementwise.

    From 1 - p = sigmoid(-logit) by a logarithm, 10 times faster than softplus on a CPU. It loses digits only
    where the loss is below 1e-12, and stops growing at logits of 87, where 1 - p underflows.
    """
    miss = logit.neg().sigmoid_().clamp_(min=torch.finfo(torch.float32).tiny)
    return (1 - miss).square_().mul_(miss.log_().neg_())


def _background_loss(logits: Tensor, row: Tensor) -> Tensor:
    """Focal loss summed over classes as if no object were there: logits (R, C), row (P,) -> (P,).

    It does not depend on the ground truth, so each row is computed once, however many ask for it.
    """
    num_rows, num_classes = logits.shape
    asked = torch.zeros(num_rows, dtype=torch.bool, device=row.device)
    asked[row] = True
    (rows,) = torch.nonzero(asked, as_tuple=True)
    total = torch.zeros(num_rows, device=row.device)
    elements = CPU_PIECE if row.device.type == "cpu" else GPU_PIECE
    for piece in rows.split(max(1, elements // num_classes)):
        total[piece] = _negative_focal(logits[piece].float()).sum(1)
    return total[row].mul_(1 - FOCAL_ALPHA)
