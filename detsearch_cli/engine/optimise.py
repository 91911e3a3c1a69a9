"""How weights move: the learning rate of every step, the optimiser, the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

from detsearch_cli.detectors.base import Detector
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


def make_optimizer(optim: Optim, model: Detector, steps: int) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW. Weights decay; biases, norms and scales (one axis or none) do not,

    as in the code base of the paper (maskrcnn-benchmark, WEIGHT_DECAY_BIAS 0). Nor do learned parts; the
    `lr_factor` of their groups, and of weights with a rate of their own, multiplies the learning rate of every step.
    steps: of the whole training.
    """
    learned = [part.optimizer_group(optim, steps) for part in model.learned_parts()]
    own = {p for group in learned for p in group.parameters}
    rates: dict[float, list[torch.nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in own:
            rates.setdefault(model.rate_of(name), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, trained in rates.items():
        factor = {} if rate == 1 else {"lr_factor": rate}
        groups += [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay, **factor},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, **factor},
        ]
    for group in learned:
        groups.append({"params": list(group.parameters), "weight_decay": 0.0, "lr_factor": group.lr_factor})
        if optim.name == "adamw":
            groups[-1]["eps"] = group.adam_epsilon
    if optim.name == "adamw":
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
