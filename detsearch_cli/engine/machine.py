"""Where a training runs: device, precision and processes, on Lightning Fabric.

Processes come from `--devices N` (Fabric starts the same command N - 1 more times), from torchrun, or from
Slurm. Each trains on its share of every batch; only rank 0 writes.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

import torch
from lightning_fabric import Fabric

from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.recipe import Optim, Recipe, Runtime

GRACE_SECONDS = 5.0
_children: list[subprocess.Popen[bytes]] = []
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")


def pick_device(name: str) -> torch.device:
    """auto: the GPU where there is one. Raises CheckpointError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CheckpointError(f"--device is auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CheckpointError(f"no CUDA device is visible for --device {name}; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(
            f"--device {name} is not there; {torch.cuda.device_count()} CUDA devices are visible, from cuda:0"
        )
    return device


def precision(optim: Optim, device: torch.device) -> torch.dtype:
    """What convolutions compute in. auto: bfloat16 on GPUs that have it, float16 on others, float32 on a CPU.

    Raises RecipeError for float16 on a CPU, which has no fast and safe way to compute in it.
    """
    name = optim.precision
    if name == "16" and device.type == "cpu":
        raise RecipeError("optim.precision 16 needs a GPU, the device is cpu; use bf16 or 32")
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported() else "16"
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(name, torch.float32)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Context in which a detector of this recipe computes, so that every scoring of its weights agrees."""
    dtype = precision(recipe.optim, device)
    if dtype == torch.float32:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def processes(runtime: Runtime) -> tuple[int, int]:
    """(processes on each node, nodes): torchrun's where it started this one, else the recipe's.

    Raises RecipeError where the two contradict each other.
    """
    if not torch.distributed.is_torchelastic_launched():
        return runtime.devices, runtime.num_nodes
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // here
    if runtime.devices not in (1, here) or runtime.num_nodes not in (1, nodes):
        raise RecipeError(
            f"torchrun started {here} processes on {nodes} nodes, the recipe asks for {runtime.devices} on "
            f"{runtime.num_nodes}; leave out --devices and --num-nodes"
        )
    return here, nodes


def micro_batch(recipe: Recipe) -> int:
    """Images a process computes at a time. Raises RecipeError when the batch cannot be shared out evenly."""
    per_node, nodes = processes(recipe.runtime)
    optim, world = recipe.optim, per_node * nodes
    if optim.batch_size % (optim.accumulate * world):
        raise RecipeError(
            f"optim.batch_size {optim.batch_size} must be a multiple of accumulate x processes, "
            f"{optim.accumulate} x {world}; change one of them"
        )
    return optim.batch_size // (optim.accumulate * world)


def make_fabric(recipe: Recipe) -> Fabric:
    """The recipe's device, precision and processes, not launched yet. Raises RecipeError, CheckpointError."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    device = pick_device(recipe.runtime.device)
    per_node, nodes = processes(recipe.runtime)
    several = per_node * nodes > 1
    if several and device.index is not None:
        raise RecipeError(
            f"runtime.device {device} names one device, runtime.devices is {per_node}; use cuda"
        )
    if device.type == "cuda" and per_node > torch.cuda.device_count():
        raise RecipeError(
            f"runtime.devices is {per_node}, {torch.cuda.device_count()} CUDA devices are visible; ask for fewer"
        )
    names: dict[torch.dtype, Any] = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}
    return Fabric(
        accelerator=device.type,
        devices=per_node if device.index is None else [device.index],
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision=names.get(precision(recipe.optim, device), "32-true"),
    )


def launch(fabric: Fabric) -> None:
    """Start the other processes, or join them."""
    fabric.launch()
    launcher = fabric.strategy.launcher
    _children.extend(getattr(launcher, "procs", []))


def stop_children() -> None:
    """After an error: give the processes this one started a moment, then end them; they could wait for ever."""
    while _children:
        child = _children.pop()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def is_lost_peer(error: BaseException) -> bool:
    """Whether the error only says that another process of the training has stopped."""
    if isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _LOST)
