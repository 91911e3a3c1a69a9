"""As many positives as predictions overlap a box well, those of lowest cost, near its middle first (YOLOX).

For every ground truth g of an image, from the current predictions and without gradient:
  candidates       the priors whose centre lies strictly inside any ground truth of the image, or within
                   `center_radius` strides of its middle along both axes
  cost             BCE of the class probabilities against the one-hot target, summed over classes, + 3 x -ln IoU
                   of the predicted box; candidates not both inside g and near g's middle come after all others
  positives        the sum of g's `candidate_top_k` highest IoUs, rounded down, at least 1
A prior that several ground truths chose goes to the ground truth of the image with the lowest cost, even to one that
did not choose it.

Source: Ge et al. 2021 (YOLOX), section 2.3, and Ge et al. 2021 (OTA), appendix; the released code for the rest.
Where we differ from it, or it leaves open what happens:
- The code ranks by class probability x objectness; our detectors predict no objectness.
- It adds 1e5 to the cost where we order by (outside, cost): the same order without what float32 then rounds away.
- Equal costs: the lower prior is chosen; a contested prior goes to the lower row of the ground truths.
- As in the code, a ground truth may lose all that it chose to others. One that is not finite gets nothing, and
  logits that are not numbers come last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detsearch_kernels import matchers
from detsearch_kernels.assign import Tiling
from pydantic import Field
from torch import Tensor

from detsearch_cli import boxes
from detsearch_cli.parts import Count
from detsearch_cli.slots.assigners.base import Assigner, chunks, compiled_tiling, pairs_with_image
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets

IOU_WEIGHT = 3.0
LEAST_IOU = 1e-8  # added, so that predictions which miss the box still compare
NEVER = 2**63 - 1  # key of what is no candidate
PIECE = 2**20  # elements of a temporary


class SimOTA(Assigner):
    """Source: Ge et al. 2021 (YOLOX), section 2.3."""

    candidate_top_k: Count = Field(default=10, description="highest IoUs that add up to the positives")
    center_radius: float = Field(default=2.5, gt=0, description="how near the middle is, in strides")

    @torch.no_grad()
    def __call__(self, dense: Dense, targets: Targets) -> Assignment:
        num_images, num_priors = dense.boxes.shape[:2]
        if len(targets.boxes) == 0:
            return Assignment.background(num_images, num_priors, dense.boxes.device)
        tiling = compiled_tiling(dense)
        if tiling is not None:
            return Assignment(self._compiled(dense, targets, tiling))
        pairs = _Pairs(dense, targets, self.center_radius)
        every = torch.arange(num_priors, device=dense.boxes.device)
        rows = torch.arange(len(targets.boxes), device=dense.boxes.device)
        pieces = list(chunks(len(rows), 8 * num_priors))
        for piece in pieces:
            pairs.find(rows[piece, None], every)
        pairs.sum_classes()
        gt, prior = (
            torch.cat(part)
            for part in zip(*(self._choose(pairs, rows[piece, None], every) for piece in pieces), strict=True)
        )
        cell = pairs.image[gt] * num_priors + prior
        owner = torch.full((num_images * num_priors,), BACKGROUND, dtype=torch.int64, device=cell.device)
        owner[cell] = gt
        contested, count = torch.unique(cell, return_counts=True)
        contested = contested[count > 1]
        owner[contested] = pairs.cheapest(contested)
        return Assignment(owner.view(num_images, num_priors))

    def _compiled(self, dense: Dense, targets: Targets, tiling: Tiling) -> Tensor:
        """The same by detsearch_kernels."""
        return matchers.simota(
            dense.maps,
            dense.boxes,
            targets.boxes.float(),
            targets.labels,
            targets.splits,
            tiling,
            top_k=self.candidate_top_k,
            radius=self.center_radius,
        )

    def _choose(self, pairs: _Pairs, gt: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """What ground truths choose. gt (g, 1), prior (A,) -> gt, prior (P,)."""
        key, overlap = pairs.keys(gt, prior)
        width = min(self.candidate_top_k, len(prior))
        # float64: the order of summation must not decide whether nine or ten are positive
        wanted = overlap.topk(width).values.double().sum(1).int().clamp(min=1)
        lowest, chosen = torch.topk(key, width, largest=False)
        rank = torch.arange(width, device=key.device)
        row, column = torch.nonzero((rank < wanted[:, None]) & (lowest != NEVER), as_tuple=True)
        return gt[row, 0], chosen[row, column]


class _Pairs:
    """Cost and IoU of (ground truth, prior) pairs; `gt` and `prior` are indices that broadcast."""

    def __init__(self, dense: Dense, targets: Targets, radius: float) -> None:
        self.dense, self.targets, self.radius = dense, targets, radius
        self.image = targets.image_index()
        self.truth = targets.boxes.float()
        self.usable = self.truth.isfinite().all(1)
        self.candidate = torch.zeros(dense.boxes.shape[:2], dtype=torch.bool, device=dense.boxes.device)
        self.sum = torch.zeros(dense.boxes.shape[:2], device=dense.boxes.device)

    def find(self, gt: Tensor, prior: Tensor) -> None:
        """Mark the candidates of gt (g, 1) among prior (A,)."""
        inside, near = self._where(gt, prior)
        row, column = torch.nonzero((inside | near) & self.usable[gt], as_tuple=True)
        self.candidate[self.image[gt[row, 0]], prior[column]] = True

    def sum_classes(self) -> None:
        """Sum -ln(1 - p) over all classes of every candidate: the BCE if no class were there."""
        image, prior = torch.nonzero(self.candidate, as_tuple=True)
        rows = max(1, PIECE // self.dense.logits.shape[2])
        for i, p in zip(image.split(rows), prior.split(rows), strict=True):
            self.sum[i, p] = F.softplus(self.dense.logits[i, p].float()).sum(1)

    def keys(self, gt: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Integers that order as (outside, cost, prior) do, NEVER where no candidate; and IoUs, 0 there."""
        image = self.image[gt]
        overlap = boxes.iou(self.truth[gt], self.dense.boxes[image, prior].float())
        own = self.dense.logits[image, prior, self.targets.labels[gt]].float()
        allowed = self.candidate[image, prior] & self.usable[gt]
        overlap = torch.where(allowed, overlap, 0.0).nan_to_num_(nan=0.0)
        cost = F.softplus(-own) + IOU_WEIGHT * (overlap + LEAST_IOU).log_().neg_().clamp_(min=0)
        cost = cost + (self.sum[image, prior] - F.softplus(own)).clamp_(min=0)
        inside, near = self._where(gt, prior)
        # the bits of floats >= 0 order as the floats do
        rank = (cost.abs().view(torch.int32).long() << 31) | ((~(inside & near)).long() << 62)
        return torch.where(allowed, rank | prior, NEVER), overlap

    def cheapest(self, cells: Tensor) -> Tensor:
        """The ground truth of the image that costs least. cells (N,), image x A + prior -> (N,) int64."""
        num_priors = self.candidate.shape[1]
        gt, owner = pairs_with_image(self.targets, cells // num_priors)
        key, _ = self.keys(gt, (cells % num_priors)[owner])
        allowed, cost = key != NEVER, key >> 31 << 31
        key = torch.where(allowed, cost | gt, NEVER)
        lowest = key.new_full((len(cells),), NEVER).scatter_reduce(0, owner, key, "amin")
        return lowest & (2**31 - 1)

    def _where(self, gt: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Whether priors lie strictly inside the box, and within the radius of its middle."""
        box, point = self.truth[gt], self.dense.priors.points[prior]
        inside = boxes.encode_distances(point, box).amin(-1) > 0
        reach = self.radius * self.dense.priors.strides[self.dense.priors.level[prior]]
        return inside, (point - boxes.centers(box)).abs().amax(-1) < reach
