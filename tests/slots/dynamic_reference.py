"""HPS-Det's Algorithm 2 written from the paper, one image, one ground truth and one prior at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = Sequence[float]


@dataclass
class Scene:
    """One image. anchors (A, 4) or points (A, 2); ranges one (low, high) a level or None; predictions."""

    anchors: np.ndarray
    points: np.ndarray
    level: np.ndarray
    ranges: list[tuple[float, float]] | None
    logits: np.ndarray
    predicted: np.ndarray


def iou(a: Box, b: Box) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def focal(logits: np.ndarray, label: int) -> float:
    total = 0.0
    for c, x in enumerate(logits.tolist()):
        p = 1 / (1 + math.exp(-x))
        total += -0.25 * (1 - p) ** 2 * math.log(p) if c == label else -0.75 * p**2 * math.log(1 - p)
    return total


def candidates(scene: Scene, gt: Box, min_iou: float) -> list[int]:
    if scene.ranges is None:
        return [a for a, anchor in enumerate(scene.anchors.tolist()) if iou(anchor, gt) > min_iou]
    found = []
    for a, (x, y) in enumerate(scene.points.tolist()):
        sides = (x - gt[0], y - gt[1], gt[2] - x, gt[3] - y)
        low, high = scene.ranges[scene.level[a]]
        if min(sides) > 0 and low < max(sides) <= high:
            found.append(a)
    return found


def best_level(scene: Scene, gt: Box, found: list[int]) -> int:
    if scene.ranges is None:
        overlaps = [iou(scene.anchors[a].tolist(), gt) for a in found]
        return int(scene.level[found[int(np.argmax(overlaps))]])
    half = max(gt[2] - gt[0], gt[3] - gt[1]) / 2
    return next(i for i, (low, high) in enumerate(scene.ranges) if low < half <= high)


def aspect_bin(gt: Box, edges: Sequence[float]) -> int:
    ratio = (gt[3] - gt[1]) / (gt[2] - gt[0])
    return sum(ratio > edge for edge in edges)


def losses(scene: Scene, gt: Box, label: int, found: list[int], alpha: float) -> dict[int, float]:
    return {
        a: focal(scene.logits[a], label) - alpha * math.log(max(iou(scene.predicted[a].tolist(), gt), 1e-7))
        for a in found
    }


def assign(
    scene: Scene,
    boxes: list[Box],
    labels: list[int],
    counts: Sequence[Sequence[int]],
    edges: Sequence[Sequence[float]],
    alpha: float = 1.5,
    min_iou: float = 0.1,
) -> tuple[dict[int, int], dict[int, dict[int, float]]]:
    """(owner of every positive prior before orphans are served, losses of all candidates)."""
    loss: dict[int, dict[int, float]] = {}
    wishes: dict[int, list[tuple[float, int]]] = {}
    for g, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        found = candidates(scene, box, min_iou)
        loss[g] = losses(scene, box, label, found, alpha)
        if not found:
            continue
        row = best_level(scene, box, found) if len(counts) > 1 else 0
        count = counts[row][aspect_bin(box, edges[row])]
        for a in sorted(found, key=lambda a: (loss[g][a], a))[:count]:
            wishes.setdefault(a, []).append((loss[g][a], g))
    return {a: min(wish)[1] for a, wish in wishes.items()}, loss


def serve(owner: dict[int, int], loss: dict[int, dict[int, float]]) -> dict[int, int]:
    """Rounds of requests by ground truths that lost everything, while one of them can be granted."""
    owner = dict(owner)
    while True:
        held = {g: sum(o == g for o in owner.values()) for g in loss}
        asks: dict[int, list[tuple[float, int, int]]] = {}
        for g, own in loss.items():
            spare = [a for a in own if a not in owner or held[owner[a]] >= 2]
            if held[g] == 0 and spare:
                a = min(spare, key=lambda a: (own[a], a))
                asks.setdefault(owner.get(a, -1 - a), []).append((own[a], g, a))
        if not asks:
            return owner
        for ask in asks.values():
            _, g, a = min(ask)
            owner[a] = g


def most_with_a_prior(loss: dict[int, dict[int, float]]) -> int:
    """How many ground truths can have a candidate of their own at once: Kuhn's algorithm, depth first."""
    taken: dict[int, int] = {}

    def place(g: int, seen: set[int]) -> bool:
        for a in loss[g]:
            if a not in seen:
                seen.add(a)
                if a not in taken or place(taken[a], seen):
                    taken[a] = g
                    return True
        return False

    return sum(place(g, set()) for g in loss)
