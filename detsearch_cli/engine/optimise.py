"""How weights move: the learning rate of every step, the optimiser, the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from detsearch_cli.detectors._learning import LearnedShapes
from detsearch_cli.recipe import Optim, Schedule


def learning_rate(optim: Optim, schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0): linear warm-up over at most a tenth of the run, then the schedule."""
    total = schedule.epochs * steps_per_epoch
    warmup = min(schedule.warmup_steps, total // 10)
    factor = 1.0
    if schedule.name == "step":
        passed = sum(step >= round(m * schedule.epochs) * steps_per_epoch for m in schedule.milestones)
        factor = schedule.gamma**passed
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / total))
    if step < warmup:
        factor *= schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup
    return optim.lr * factor


SHAPES_WAY, SHAPES_FASTEST = 100.0, 0.1
"""Of shapes that learn, where the recipe gives no lr_factor: their rate times the steps, and their largest rate, both
with momentum counted in. The paper's schedule for VOC comes to 162 with one rate for all, over 30,000 steps; with
the rate of weights, shapes of a few hundred steps would stay where they are, and with more than this the
network's early errors throw them about."""
SHAPES_EPSILON = 1e4
"""Of Adam, for shapes, whose rate is as many times larger: a step is then the rate times the mean gradient, as with the
paper's SGD. Adam's own divide by the size of past gradients: a shape would move equally fast however few boxes ask
for it, and where it began far away, for a thousand steps hardly."""


def shapes_factor(optim: Optim, steps: int) -> float:
    """lr_factor of shapes in a training of so many steps: they are never slower than the weights."""
    rate = min(SHAPES_FASTEST, SHAPES_WAY / max(1, steps))
    return max(1.0, rate * (1 - optim.momentum if optim.name == "sgd" else 1) / optim.lr)


def make_optimizer(optim: Optim, model: torch.nn.Module, steps: int) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW. Weights decay; biases, norms and scales (one axis or none) do not,

    as in the code base of the paper (maskrcnn-benchmark, WEIGHT_DECAY_BIAS 0). Nor do shapes that learn, which
    decay would pull towards 1 px; their group's `lr_factor` multiplies the learning rate of every step.
    steps: of the whole training.
    """
    learning = [m for m in model.modules() if isinstance(m, LearnedShapes)]
    shapes = {m.log_shapes: m.options.lr_factor or shapes_factor(optim, steps) for m in learning}
    trained = [p for p in model.parameters() if p.requires_grad and p not in shapes]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups += [{"params": [p], "weight_decay": 0.0, "lr_factor": f} for p, f in shapes.items()]
    if optim.name == "adamw":
        for group in groups:
            if "lr_factor" in group:
                group["eps"] = SHAPES_EPSILON
                group["lr_factor"] *= SHAPES_EPSILON
        return torch.optim.AdamW(groups, lr=optim.lr)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def make_average(optim: Optim, model: torch.nn.Module) -> AveragedModel | None:
    """Moving average of weights and batch norm statistics; None without `optim.ema`."""
    if optim.ema is None:
        return None
    return AveragedModel(model, multi_avg_fn=_moving_average(optim.ema), use_buffers=True)


def average_decay(decay: float, updates: int) -> float:
    """Decay of the average's next update: at most (1 + n) / (10 + n) after n updates.

    A short training would else keep little but its first weights. Source: TensorFlow's
    ExponentialMovingAverage, `num_updates`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averaged: Any, current: Any, updates: Any) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - average_decay(decay, int(updates)))
        else:  # counters of batch norms
            torch._foreach_copy_(averaged, current)

    return update
