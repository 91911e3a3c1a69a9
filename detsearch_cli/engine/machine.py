"""Where a training runs: device, precision and processes, on Lightning Fabric.

Processes come from `--devices N` (processes.py starts them), from torchrun, or from Slurm's srun. Each trains on
its share of every batch; only rank 0 writes.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import detsearch_kernels as kernels
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from detsearch_cli.engine.processes import Place, first_place
from detsearch_cli.errors import CheckpointError, KernelError, RecipeError
from detsearch_cli.recipe import Optim, Recipe, Runtime


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
        # switched off, not left out: an autocast around the caller would hold here too
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


class OneMachine(LightningEnvironment):
    """Tells Fabric which process of how many this is, where processes.py starts them.

    Not by environment variables: a search's worker trains again and again, each time with other processes.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        return self._place.port

    def local_rank(self) -> int:
        return self._place.rank

    def node_rank(self) -> int:
        return 0


def processes(runtime: Runtime) -> tuple[int, int]:
    """(processes on each node, nodes): torchrun's or srun's where they started this one, else the recipe's.

    Raises RecipeError where the two contradict each other, and for several nodes that nobody started.
    """
    if torch.distributed.is_torchelastic_launched():
        starter, all_of_them, here = "torchrun", os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    elif _tasks() > 1:
        starter, all_of_them = "srun", os.environ["SLURM_NTASKS"]
        # srun sets it only where it was asked for; without it all tasks are taken to be on one node
        here = os.environ.get("SLURM_NTASKS_PER_NODE", all_of_them)
    elif runtime.num_nodes > 1:
        raise RecipeError(
            f"runtime.num_nodes {runtime.num_nodes} needs torchrun or srun to start this command on every node"
        )
    else:
        return runtime.devices, 1
    per_node, nodes = int(here), int(all_of_them) // int(here)
    if runtime.devices not in (1, per_node) or runtime.num_nodes not in (1, nodes):
        raise RecipeError(
            f"{starter} started {per_node} processes on {nodes} nodes, the recipe asks for {runtime.devices} on "
            f"{runtime.num_nodes}; leave out --devices and --num-nodes"
        )
    return per_node, nodes


def own_place(runtime: Runtime) -> Place | None:
    """Rank 0 of the processes to be started here; None where torchrun or srun has started them all."""
    if torch.distributed.is_torchelastic_launched() or _tasks() > 1:
        return None
    return first_place(processes(runtime)[0])


def own_rank(place: Place | None) -> int:
    """Which process of the training this is, known before the processes have met. Rank 0 alone writes."""
    if place is not None:
        return place.rank
    # not Fabric's: it knows the rank only once it is launched, and a folder is claimed before
    return int(os.environ["RANK" if torch.distributed.is_torchelastic_launched() else "SLURM_PROCID"])


def _tasks() -> int:
    """Processes that srun started; 1 in a Slurm job that is one process, such as a search's worker."""
    return int(os.environ.get("SLURM_NTASKS", "1")) if SLURMEnvironment.detect() else 1


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


def choose_kernels(runtime: Runtime, device: torch.device) -> None:
    """Use compiled operators as the recipe says: `auto` compiles them when one is first used.

    Raises KernelError where they are required and cannot be had.
    """
    kernels.use(runtime.kernels)
    try:
        if runtime.kernels == "required":
            kernels.ready(device)
    except kernels.KernelsRequired as error:
        raise KernelError(f"{error}; use --kernels auto for the slower PyTorch operators") from error


def make_fabric(recipe: Recipe, place: Place | None) -> Fabric:
    """The recipe's device, precision and processes, not launched yet. place: None under torchrun and srun.

    Raises RecipeError, CheckpointError.
    """
    # it announces devices and ranks, in a search once a trial
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
        # a number is how many, a list is which
        devices=per_node if device.index is None else [device.index],
        num_nodes=nodes,
        strategy="ddp" if several else "auto",
        precision=names.get(precision(recipe.optim, device), "32-true"),
        plugins=None if place is None else OneMachine(place),
    )
