"""CUDA operators built for the CPU with emulation/cuda_runtime.h, so that their kernels run where there is no GPU."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from detsearch_kernels import build

EMULATION = Path(__file__).parent / "emulation"


def load(name: str) -> None:
    """Register the operators of emulation/<name>.cpp as torch.ops.detsearch_emulated's, for tensors on the CPU."""
    cpu = build.cpu_library()
    digest = hashlib.sha256(cpu.identity.encode())  # covers the headers, which both include
    for path in (
        *sorted(x for x in EMULATION.rglob("*") if x.is_file()),
        *sorted(build.SOURCES.rglob("*.cu")),
    ):
        digest.update(path.read_bytes())
    flags = ("-DUSE_CUDA", "-Wno-unknown-pragmas", "-Wno-attributes", f"-I{EMULATION}")
    library = replace(
        cpu,
        command=(*cpu.command, *flags),
        sources=(EMULATION / f"{name}.cpp",),
        identity=f"emulated-{name}-{digest.hexdigest()[:16]}",
    )
    torch.ops.load_library(build.build(library))
