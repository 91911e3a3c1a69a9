"""What a detector learns beside the weights of its network, such as the shapes of its anchors.

The training loop asks `Detector.learned_parts()` for these and knows nothing else of them: how their parameters
move, what the log tells of them, and what is kept of them when the run is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from detsearch_cli.fragments import Fragment
from detsearch_cli.schema import Optim, Recipe


@dataclass(frozen=True)
class LearnedGroup:
    """Parameters with a learning rate of their own, without weight decay.

    lr_factor: multiplies the learning rate of every step. adam_epsilon: replaces Adam's eps; SGD has none.
    """

    parameters: tuple[nn.Parameter, ...]
    lr_factor: float
    adam_epsilon: float


class LearnedPart(Protocol):
    """One such part. The detector that is scored and kept, `Detector.deployed()`, holds the part's outcome, fixed."""

    def optimizer_group(self, optim: Optim, steps: int) -> LearnedGroup:
        """How the parameters move. steps: of the whole training."""

    def log_entry(self) -> dict[str, Any]:
        """What log.jsonl keeps of the present state, as plain data, before the first epoch and after each."""

    def fragment(self, deployed: Recipe) -> Fragment:
        """The outcome as a fragment, for best.yaml. deployed: the recipe that the kept weights were saved with."""
