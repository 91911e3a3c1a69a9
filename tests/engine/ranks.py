"""What torchrun starts in test_distributed: `detsearch train`, watched from inside each rank.

    python -m torch.distributed.run --nproc-per-node 2 tests/engine/ranks.py train ...

With $RANK_WEIGHTS every rank keeps the weights it ends with in that folder; with $NAN_STEP the loss of rank 1 is not
a number at that step.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from detsearch_cli.cli.app import run
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import train as engine

RANK = int(os.environ["RANK"])


def keep_weights(folder: Path) -> None:
    original = engine._Run._finish

    def finish(self: Any, *given: Any) -> Any:
        weights = {name: p.detach().contiguous() for name, p in self.model.named_parameters()}
        save_file(weights, folder / f"rank{RANK}.safetensors")
        return original(self, *given)

    engine._Run._finish = finish  # type: ignore[method-assign]


def break_loss(step: int) -> None:
    original, calls = Detector.training_loss, 0

    def training_loss(self: Detector, *given: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        losses = original(self, *given)
        return {k: v * math.nan for k, v in losses.items()} if (RANK, calls) == (1, step) else losses

    Detector.training_loss = training_loss  # type: ignore[method-assign]


if __name__ == "__main__":
    if "RANK_WEIGHTS" in os.environ:
        keep_weights(Path(os.environ["RANK_WEIGHTS"]))
    if "NAN_STEP" in os.environ:
        break_loss(int(os.environ["NAN_STEP"]))
    sys.exit(run(sys.argv[1:]))
