"""Assignments written the slow way, one image and one ground truth at a time, from the papers' text."""

from __future__ import annotations

from itertools import pairwise

import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from detsearch_cli.structures import BACKGROUND, IGNORE, Dense, Priors, Targets

LEVELS = (3, 6)
SIZES = [(16, 20), (8, 10), (4, 5), (2, 3)]  # 128 x 160 px


def random_targets(counts: list[int], seed: int, width: float = 160, height: float = 128) -> Targets:
    """Boxes of 2 to 120 px, log-uniform, clipped to the image."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for count in counts:
        center = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
        half = 2 * 60 ** torch.rand(count, 2, generator=generator) / 2
        limit = torch.tensor([width, height, width, height])
        boxes.append(torch.cat((center - half, center + half), 1).clamp(min=0).minimum(limit))
        labels.append(torch.randint(0, 3, (count,), generator=generator))
    return Targets.from_lists(boxes, labels)


def dense_of(priors: Priors, num_images: int, num_classes: int = 3, seed: int = 0) -> Dense:
    """Random predictions at the priors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, priors.boxes.shape[0])
    noise = torch.randn(*shape, 4, generator=generator)
    return Dense(
        maps=(torch.randn(*shape, num_classes, generator=generator) - 3,),
        boxes=priors.boxes + 3 * noise.clamp(-1, 1),  # never inverted
        deltas=noise,
        priors=priors,
        centerness=torch.randn(*shape, generator=generator),
        objectness=torch.randn(*shape, generator=generator),
    )


def per_image(targets: Targets) -> list[tuple[int, Tensor]]:
    """(row of the first ground truth, its boxes) of every image."""
    splits = targets.splits.tolist()
    return [(a, targets.boxes[a:b]) for a, b in pairwise(splits)]


def max_iou(priors: Priors, targets: Targets) -> Tensor:
    """torchvision's Matcher, image by image."""
    rows = []
    for start, boxes in per_image(targets):
        if len(boxes) == 0:
            rows.append(torch.full((len(priors.boxes),), BACKGROUND))
            continue
        match = Matcher(0.5, 0.4, allow_low_quality_matches=True)(tv.box_iou(boxes, priors.boxes))
        rows.append(torch.where(match >= 0, match + start, torch.where(match == -1, BACKGROUND, IGNORE)))
    return torch.stack(rows)


def fcos(priors: Priors, targets: Targets, radius: float | None = None) -> Tensor:
    """Tian et al. 2019, section 3: every point looks for the smallest box that may claim it."""
    assert priors.ranges is not None
    rows = []
    for start, boxes in per_image(targets):
        row = []
        for (x, y), level in zip(priors.points.tolist(), priors.level.tolist(), strict=True):
            low, high = priors.ranges[level].tolist()
            best, smallest = BACKGROUND, float("inf")
            for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                inside = min(sides) > 0
                if radius is not None:
                    reach = radius * float(priors.strides[level])
                    inside &= abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
                if inside and low < max(sides) <= high and (x2 - x1) * (y2 - y1) < smallest:
                    best, smallest = start + g, (x2 - x1) * (y2 - y1)
            row.append(best)
        rows.append(torch.tensor(row))
    return torch.stack(rows)


def atss(priors: Priors, targets: Targets, top_k: int = 9) -> Tensor:
    """Zhang et al. 2020, Algorithm 1, with one anchor a cell."""
    rows = []
    for start, boxes in per_image(targets):
        row = torch.full((len(priors.boxes),), BACKGROUND)
        best = torch.zeros(len(priors.boxes))
        for g, box in enumerate(boxes):
            middle = (box[:2] + box[2:]) / 2
            candidates: list[int] = []
            for level in range(priors.num_levels):
                index = (priors.level == level).nonzero()[:, 0]
                distance = (priors.points[index] - middle).norm(dim=1)
                candidates += index[distance.topk(min(top_k, len(index)), largest=False).indices].tolist()
            overlap = tv.box_iou(box[None], priors.boxes[candidates])[0]
            threshold = overlap.mean() + overlap.std()
            for anchor, value in zip(candidates, overlap, strict=True):
                x, y = priors.points[anchor]
                central = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
                if value >= threshold and central and value > best[anchor]:
                    best[anchor], row[anchor] = value, start + g
        rows.append(row)
    return torch.stack(rows)


def simota(dense: Dense, targets: Targets, top_k: int = 10, radius: float = 2.5) -> Tensor:
    """YOLOX's released SimOTA, image by image in float64; a contested prior goes to the lowest cost of all."""
    priors = dense.priors
    rows = []
    reach = (radius * priors.strides[priors.level]).tolist()
    for image, (start, boxes) in enumerate(per_image(targets)):
        row = torch.full((len(priors.boxes),), BACKGROUND)
        rows.append(row)
        inside, near = (torch.zeros(len(boxes), len(row), dtype=torch.bool) for _ in range(2))
        for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            for a, (x, y) in enumerate(priors.points.tolist()):
                inside[g, a] = x1 < x < x2 and y1 < y < y2
                near[g, a] = abs(x - (x1 + x2) / 2) < reach[a] and abs(y - (y1 + y2) / 2) < reach[a]
        (known,) = (inside | near).any(0).nonzero(as_tuple=True)
        if len(known) == 0:
            continue
        probability = dense.logits[image, known].double().sigmoid()
        overlap = tv.box_iou(boxes.double(), dense.boxes[image, known].double())
        cost = torch.full((len(boxes), len(known)), 0.0, dtype=torch.float64)
        chosen = torch.zeros_like(cost, dtype=torch.bool)
        for g in range(len(boxes)):
            target = torch.zeros_like(probability)
            target[:, targets.labels[start + g]] = 1
            cost[g] = torch.nn.functional.binary_cross_entropy(probability, target, reduction="none").sum(1)
            cost[g] += -3 * (overlap[g] + 1e-8).log() + 1e5 * ~(inside & near)[g, known]
            count = max(1, int(overlap[g].topk(min(top_k, len(known))).values.sum()))
            chosen[g, cost[g].argsort(stable=True)[:count]] = True
        for column, a in enumerate(known.tolist()):
            takers = chosen[:, column].nonzero()[:, 0].tolist()
            if takers:
                row[a] = start + (takers[0] if len(takers) == 1 else int(cost[:, column].argmin()))
    return torch.stack(rows)
