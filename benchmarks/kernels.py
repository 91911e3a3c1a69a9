"""Every compiled operator against the PyTorch alternative it replaces, in one table: one thread, all in one run.

    python benchmarks/kernels.py        # about seven minutes; then two threads: --threads 2

ratio: the alternative's time over ours, medians of interleaved runs, by wall and by processor time; gate: what must
hold. Memory, and what the alternatives are, tell the files _kernels_*.py, run alone. Exits 1 when a ratio of processor
times is below its gate. Where a GPU is, a second table has the times there (_kernels_gpu.py), of which none decides.
"""

from __future__ import annotations

import argparse
import sys

import _kernels_ap_loss
import _kernels_assign
import _kernels_boxes
import _kernels_focal
import _kernels_gpu
import _kernels_matchers
import torch
from _kernels import show


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    rows = [
        *_kernels_boxes.rows(),
        *_kernels_assign.rows(),
        *_kernels_matchers.rows(),
        *_kernels_ap_loss.rows(),
        *_kernels_focal.rows(),
    ]
    show(rows)
    if torch.cuda.is_available():
        _kernels_gpu.main()
    return int(any(row.gate is not None and row.processor < row.gate for row in rows))


if __name__ == "__main__":
    sys.exit(main())
