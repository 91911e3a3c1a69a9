"""A training whose numbers are no longer finite: found, told and ended on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from detsearch_cli.data.loader import Batch
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.checkpoint import DIVERGED
from detsearch_cli.engine.processes import gathered
from detsearch_cli.errors import Diverged
from detsearch_cli.files import write_json


def diverge(
    losses: Mapping[str, float], images: Sequence[int], step: int, folder: Path, fabric: Fabric
) -> NoReturn:
    """Write diverged.json and raise Diverged on every rank. losses, images: of this rank, the ids of its images."""
    ranks = gathered((dict(losses), list(images)), fabric)
    bad = [rank for rank in ranks if not all(map(math.isfinite, rank[0].values()))]
    told, ids = (bad or ranks)[0]
    if fabric.is_global_zero:
        texts = {name: str(value) for name, value in told.items()}
        # replaces our own: the folder is claimed, and the name is of RUN_FILES
        write_json(folder / DIVERGED, {"step": step, "losses": texts, "image_ids": ids})
    table = ", ".join(f"{name} {value:.4g}" for name, value in told.items())
    raise Diverged(
        f"the loss is not finite at step {step} ({table}; image ids {ids}); "
        f"try a lower optim.lr, optim.clip_norm, or look at those images"
    )


MOST_STUCK = 50
"""Steps in a row. Source: the released code of Parameterized AP Loss, whose search gives such a candidate no reward."""


def refuse_stuck(losses: Mapping[str, float], step: int) -> NoReturn:
    """Raise Diverged, on every rank alike, for a training whose loss has no slope where it stays."""
    table = ", ".join(f"{name} {value:.7g}" for name, value in losses.items())
    raise Diverged(
        f"the loss has stayed for {MOST_STUCK} steps where it has no slope, up to step {step} ({table}); choose other "
        "curves, or a lower optim.lr"
    )


@torch.no_grad()
def outcome(model: Detector, batch: Batch, memory: torch.memory_format, fabric: Fabric) -> dict[str, Tensor]:
    """Losses of a batch with the weights as they are scored, in eval mode; nothing of the model changes.

    Weights may be finite and yet so large that what they compute is not.
    """
    training = model.training
    with fabric.autocast():
        images = batch.images.contiguous(memory_format=memory)
        losses = model.eval().training_loss(images, batch.targets)
    model.train(training)
    return losses


@torch.no_grad()
def of_weights(model: torch.nn.Module) -> Tensor:
    """0 where all weights and statistics are finite, else NaN. Scalar, on the model's device."""
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    whole = torch.stack([t.isfinite().all() for t in floats]).all()
    return torch.where(whole, 0.0, math.nan)


def all_finite(losses: Mapping[str, Tensor], fabric: Fabric) -> bool:
    """Whether these scalars are finite on every rank, the same answer on each."""
    own = torch.stack([value.float() for value in losses.values()])
    return bool(cast(Tensor, fabric.all_reduce(own, reduce_op="mean")).isfinite().all())
