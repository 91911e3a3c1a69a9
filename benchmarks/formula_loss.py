"""What a loss costs that is a formula: torchvision's focal loss against formulas of the library, over a million logits.

    OMP_NUM_THREADS=1 python benchmarks/formula_loss.py

Processor time of value and gradient, forward and backward, the least over repetitions of both in turn. Every hundredth prior
is a positive. `largest gap` of the focal loss is between the gradients, in parts of the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detsearch_cli.slots.losses.formula import Formula
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import BACKGROUND, Assignment, Dense, Targets

SIDE, CLASSES, REPETITIONS = 112, 80, 15


def taken(step: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.process_time()
    result = step()
    return result, time.process_time() - started


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    priors = Points()([(SIDE, SIDE)], (3, 3))
    number = len(priors.points)
    matched = torch.full((1, number), BACKGROUND)
    matched[0, ::100] = 0
    targets = Targets.from_lists([torch.tensor([[8.0, 8.0, 200.0, 200.0]])], [torch.tensor([7])])
    spread = priors.boxes[None] + 4 * torch.rand((1, number, 4), generator=generator)
    scores = torch.randn((1, CLASSES, SIDE, SIDE), generator=generator) - 4
    wanted = torch.zeros_like(scores)
    wanted[0, 7].flatten()[::100] = 1.0

    def torchvisions() -> Tensor:
        logits = scores.clone().requires_grad_()
        sigmoid_focal_loss(logits, wanted, reduction="sum").backward()
        assert logits.grad is not None
        return logits.grad

    def ours(name: str) -> Tensor:
        logits = scores.clone().requires_grad_()
        dense = Dense((logits,), spread, spread, priors)
        terms = Formula(cls=name, regression_weight=0)(dense, Assignment(matched), targets)
        (len(matched[0, ::100]) * terms["classification"]).backward()
        assert logits.grad is not None
        return logits.grad

    print(f"{scores.numel()} logits, torchvision's focal loss against a formula")
    print(f"{'formula':<10}{'torchvision ms':>16}{'ours ms':>10}{'ratio':>8}{'largest gap':>13}")
    for name in ("focal", "bce", "fli", "cse_b"):
        theirs, mine = [], []
        for _ in range(REPETITIONS):
            expected, seconds = taken(torchvisions)
            theirs.append(seconds)
            found, seconds = taken(lambda name=name: ours(name))  # type: ignore[misc]
            mine.append(seconds)
        one, other = min(theirs) * 1e3, min(mine) * 1e3
        gap = f"{float((found - expected).abs().max() / expected.abs().max()):.0e}" if name == "focal" else ""
        print(f"{name:<10}{one:>16.1f}{other:>10.1f}{other / one:>8.2f}{gap:>13}")


if __name__ == "__main__":
    main()
