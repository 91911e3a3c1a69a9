"""Which operators are compiled in this process, and the choice between them and their reference."""

from __future__ import annotations

import importlib
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from .build import BuildError, build, cpu_library, cuda_library

Mode = Literal["auto", "required", "off"]
OPERATORS = ("boxes", "assign", "matchers", "ap_loss", "focal", "nms")
_lock = threading.RLock()
_mode: Mode = "auto"
_states: dict[str, Status] = {}


class KernelsRequired(RuntimeError):
    """Kernels were required and cannot be had; says why."""


@dataclass(frozen=True)
class Status:
    """State of one kind of device, cpu or cuda. library: path of what is loaded; None, with a `reason`, where nothing is."""

    kind: str
    library: str | None
    reason: str | None


def use(mode: Mode) -> None:
    """Choose when compiled operators run. auto: where they can be had; required: always, or KernelsRequired; off: never."""
    global _mode
    if mode not in ("auto", "required", "off"):
        raise ValueError(f"kernels are auto, required or off, got {mode!r}")
    _mode = mode


def ready(device: torch.device) -> bool:
    """Whether to call the compiled operator for tensors on this device; compiles it when first asked.

    Raises KernelsRequired where kernels are required and cannot be had.
    """
    if _mode == "off" or device.type not in ("cpu", "cuda"):
        return False
    status = _states.get(device.type) or load(device.type)
    if status.library is None and _mode == "required":
        raise KernelsRequired(f"kernels are required for {device.type}, but {status.reason}")
    return status.library is not None


def load(kind: str, say: Callable[[str], None] | None = None) -> Status:
    """Build and load the operators of a kind of device, once a process; a failure is warned of once."""
    # One thread compiles, others wait. Reentrant: the CUDA library loads the CPU library first.
    with _lock:
        if kind not in _states:
            _states[kind] = _load(kind, say or _print)
            # `required` raises the reason, and whoever chose `off` has no use for a warning
            if _states[kind].library is None and _mode == "auto":
                warnings.warn(
                    f"detsearch's {kind} kernels are not available, its slower PyTorch operators are used: "
                    f"{_states[kind].reason}",
                    stacklevel=3,
                )
        return _states[kind]


def info() -> list[Status]:
    """The state of every kind of device here; loads what can be loaded."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [load(kind) for kind in kinds]


def _load(kind: str, say: Callable[[str], None]) -> Status:
    if kind == "cuda":
        first = load("cpu", say)  # its library declares the operators; this one only adds to them
        if first.library is None:
            return Status(kind, None, first.reason)
    try:
        path = build(cpu_library() if kind == "cpu" else cuda_library(), say)
        torch.ops.load_library(path)
    except (BuildError, OSError) as error:
        return Status(kind, None, str(error))
    if kind == "cpu":
        # imported only now: these modules import this one
        for name in OPERATORS:
            importlib.import_module(f".{name}", __package__).register()
    return Status(kind, str(path), None)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
