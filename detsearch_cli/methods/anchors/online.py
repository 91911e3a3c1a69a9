"""Online clustering on its own: the warm-up's term by stochastic gradient descent, without a network.

Source: Zhong et al. 2020 (anchor box optimization), Eq. 10 to 12. In training the term shares the shapes with the
detector's loss and ends with the warm-up; alone it shows where it leads, from whatever shapes it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from detsearch_cli.detectors._learning import softened
from detsearch_cli.methods.anchors.fit import best_shape, bounded
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.structures import TrainingStep

STEPS, BATCH = 2000, 1024
RATE = 0.5
"""Of a shape's way to the mean of its boxes in a step, were all boxes its own; falls to 0 in the second half."""
SHAKE = 1e-3
"""Deviation of what is added to every log side in a step while the assignment is soft."""
POINTS = 50


@dataclass(frozen=True)
class Online:
    """shapes (K, 2) px, smallest area first. mean_iou: of the boxes with their best shape.

    path (POINTS + 1, K, 2) px: the shapes on their way, in the order they started in; steps (POINTS + 1,).
    """

    shapes: np.ndarray
    mean_iou: float
    path: np.ndarray
    steps: np.ndarray


def cluster_online(
    sizes: np.ndarray,
    initial: np.ndarray,
    options: Learned,
    *,
    seed: int = 0,
    steps: int = STEPS,
    least: np.ndarray | float = 0.0,
) -> Online:
    """Minimise Eq. 11 with L = 0 over batches of boxes. sizes (N, 2), initial (K, 2) px; N at least 1.

    The first half of the steps is soft, as `options` have temperature and distance (Eq. 10), the second assigns
    each box to its nearest shape. lambda stays 1, as nothing else pulls; the step length falls instead. Where the
    network's differences tell equal shapes apart in training, a little noise does it here: without it `identical`
    would stay identical. least: px that no side of the outcome falls below, as in `fit_shapes`.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.from_numpy(sizes).float().log()
    shapes = torch.from_numpy(initial).float().log().requires_grad_()
    schedule = options.model_copy(update={"warmup_steps": steps // 2, "warmup_fraction": 1.0})
    marks = set(np.linspace(0, steps, POINTS + 1).round().astype(int).tolist())
    path = []
    for step, batch in enumerate(islice(_batches(boxes, generator), steps)):
        if step in marks:
            path.append(shapes.detach().clone())
        temperature = schedule.temperature_at(TrainingStep(step, steps, 0))
        (slope,) = torch.autograd.grad(_term(shapes, batch, temperature, options.distance), shapes)
        with torch.no_grad():
            shapes -= RATE * min(1.0, 2 * (1 - step / steps)) * slope
            if temperature > 0:
                shapes += SHAKE * torch.randn(shapes.shape, generator=generator)
    path.append(shapes.detach())
    way = torch.stack(path).exp().double().numpy()
    found = bounded(way[-1], np.broadcast_to(least, (len(initial),)))
    value = float(best_shape(sizes, found)[1].mean())
    return Online(found, value, way, np.array(sorted(marks)))


def _term(shapes: Tensor, boxes: Tensor, temperature: float, distance: str) -> Tensor:
    """Eq. 11's second term, lambda 1. shapes (K, 2), boxes (N, 2) log sizes -> ()."""
    with torch.no_grad():
        every = shapes.expand(len(boxes), *shapes.shape)
        delta = softened(every, boxes[:, None], temperature, distance)
    apart = (shapes - boxes[:, None]).square().sum(-1)
    return (delta * apart).sum() / (2 * delta.sum())


def _batches(boxes: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches without end; every box once in each round, in another order."""
    while True:
        yield from boxes[torch.randperm(len(boxes), generator=generator)].split(BATCH)
