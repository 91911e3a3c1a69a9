"""resume.safetensors: all that decides how an interrupted training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from detsearch_cli.data.transforms import seed_of
from detsearch_cli.document import checked
from detsearch_cli.engine.checkpoint import load_state, load_tensors, save_tensors
from detsearch_cli.engine.documents import Position
from detsearch_cli.errors import CheckpointError
from detsearch_cli.reading import parse_json
from detsearch_cli.slots.losses.base import DetectionLoss


class State:
    """What a checkpoint holds: weights, their average, the optimiser, the steps and seconds trained so far.

    stuck: steps in a row, the last one included, at which a loss had no slope. losses: of the model by their keys, for what
    they remember of earlier steps.
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Mapping[str, DetectionLoss],
        average: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
    ) -> None:
        self.model, self.losses = model, losses
        self.average, self.optimizer, self.fabric = average, optimizer, fabric
        self.step = 0
        self.seconds = 0.0
        self.stuck = 0

    def seed_step(self, seed: int) -> None:
        """Let what the next step draws (dropout, samples of priors) depend on seed, step and rank alone.

        No generator's state need be saved then, and every rank goes on exactly, not only the one that saves.
        """
        torch.manual_seed(seed_of(seed, self.step, self.fabric.global_rank) & (2**63 - 1))

    def save(self, path: Path) -> None:
        """Write atomically. Raises StorageError."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        optim, groups = pack_optimizer(self.optimizer)
        tensors |= optim
        about = {
            "step": self.step,
            "seconds": self.seconds,
            "stuck": self.stuck,
            "losses": {key: loss.state() for key, loss in self.losses.items()},
            # float16's loss scale: one that starts again too large skips the steps that overflow
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        save_tensors(path, tensors, {"about": json.dumps(about), "optim": groups})

    def load(self, path: Path) -> None:
        """Go on from the file. Raises CheckpointError when it is not whole, or is no state of this training."""
        tensors, text = load_tensors(path)
        content = parse_json(text.get("about", "null"), f"the state inside {path}", CheckpointError, _REMEDY)
        at = checked(content, Position, f"the state inside {path}", CheckpointError, _REMEDY)
        # into the tensors that are there: the optimiser and the wrapper of several processes hold these
        load_state(self.model, _under("model.", tensors), path, f"this training's detector; {_REMEDY}")
        if self.average is not None:
            load_state(
                self.average, _under("ema.", tensors), path, f"this training's averaged weights; {_REMEDY}"
            )
        try:
            unpack_optimizer(self.optimizer, tensors, text["optim"])
            self.fabric.strategy.precision.load_state_dict(at.precision)
            for key, loss in self.losses.items():
                loss.restore(at.losses.get(key, {}), self.fabric.device)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} holds no state of this training's optimiser and losses ({said}); {_REMEDY}"
            ) from error
        self.step, self.seconds, self.stuck = at.step, at.seconds, at.stuck


_REMEDY = "restore it, or remove it to train from the first step again"


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], str]:
    """Optimiser state as named tensors and JSON."""
    state = optimizer.state_dict()
    tensors = {
        f"optim.{index}.{key}": value
        for index, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }
    return tensors, json.dumps(state["param_groups"])


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: str) -> None:
    """The inverse of `pack_optimizer`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optim."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": json.loads(groups)})


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
