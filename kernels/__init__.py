"""Compiled operators of detsearch, each beside a PyTorch reference that gives the same result.

Import name `detsearch_kernels`. The C++ part is compiled when an operator is first used, the CUDA part when it
is first used on a GPU (build.py). Where there is no compiler the reference runs, after one warning;
`use("required")` refuses instead, `use("off")` always takes the reference.
"""

from __future__ import annotations

from .loader import KernelsRequired, Status, info, ready, use

__all__ = ["KernelsRequired", "Status", "info", "ready", "use"]
