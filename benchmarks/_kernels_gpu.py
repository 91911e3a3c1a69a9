"""Times on a GPU next to the physical floor: the bytes that must move, at the H200's 4.3 TB/s.

    python benchmarks/_kernels_gpu.py        # needs a GPU with 8 GB and nvcc; --json FILE also writes the table there

device: between two events around a replayed CUDA graph, its launches included, after other memory has filled the cache;
call: a call from Python among many, which the host may limit. Medians, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _kernels import columns
from _kernels_ap_loss import SEARCHED, problem
from _kernels_assign import ALPHA, CLASSES, COUNT, MIN_IOU, scene
from detsearch_kernels import loader
from detsearch_kernels.ap_loss import parameterized_ap_loss
from detsearch_kernels.assign import assign_topk

from detsearch_cli.slots.assigners.dynamic import Dynamic

BYTES_PER_MICROSECOND = 4.3e6
CACHE = 256 * 2**20  # bytes, more than any GPU's cache
ROUNDS = 50
HEAD = ["operator", "sizes", "floor us", "device us", "call us", "gate", "aim"]


@dataclass(frozen=True)
class Case:
    """touched: bytes that must move; gate and aim: microseconds on an H200."""

    operator: str
    sizes: str
    touched: float
    call: Callable[[], object]
    gate: float | None = None
    aim: float | None = None


def assignment(name: str, count: int, batch: int, gate: float | None, aim: float | None) -> Case:
    """assign_topk: the result, of every candidate the predicted box and one score, of the chosen ones all scores."""
    dense, targets = scene(name, count, batch)
    tiling = dense.priors.tiling
    assert tiling is not None
    tiling = replace(tiling, cell=tiling.cell.cuda())  # a graph can copy nothing from the host
    given = (dense.maps[0].cuda(), dense.boxes.cuda(), *(x.cuda() for x in (targets.boxes, targets.labels)))
    tables = torch.tensor([[COUNT]]), torch.empty(1, 0)
    splits = targets.splits.cuda()
    assigner = Dynamic.model_validate({"min_iou": MIN_IOU})
    candidates = int(assigner.explain(dense.priors, targets.boxes).candidates.sum())
    chosen = COUNT * len(targets.boxes)
    touched = 8 * dense.boxes[..., 0].numel() + 20 * candidates + 4 * CLASSES * chosen
    return Case(
        "assign_topk",
        f"{name} {dense.boxes.shape[1]:,} x {batch}, {count} boxes",
        touched,
        lambda: assign_topk(*given, splits, tiling, *tables, alpha=ALPHA, min_iou=MIN_IOU),
        gate,
        aim,
    )


def ap_loss(predictions: int, positives: int, gate: float | None, aim: float | None) -> Case:
    """parameterized_ap_loss, forward and backward: a score is read, its bin kept, its gradient written."""
    scores, index, quality = (x.detach().cuda() for x in problem(predictions, positives, "trained"))
    scores.requires_grad_()
    quality.requires_grad_()

    def run() -> object:
        return torch.autograd.grad(parameterized_ap_loss(scores, index, quality, SEARCHED), (scores, quality))

    return Case("parameterized_ap_loss", f"{predictions:,} x {positives}", 12.0 * predictions, run, gate, aim)


def device_time(call: Callable[[], object]) -> float:
    """Of one call on the device, us."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # a graph wants everything allocated and compiled once before
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    other = torch.empty(CACHE, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(ROUNDS):
        other.zero_()
        times.append(_between(graph.replay))
    return statistics.median(times)


def call_time(call: Callable[[], object]) -> float:
    """Of one call among many, us."""

    def many() -> None:
        for _ in range(20):
            call()

    return statistics.median(_between(many) / 20 for _ in range(ROUNDS // 5))


def _between(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def cases() -> Iterator[Case]:
    """What is timed, one after the other: each needs its memory."""
    yield assignment("retinanet", 7, 2, None, None)
    yield assignment("retinanet", 50, 16, 60, 20)
    yield assignment("retinanet", 200, 2, None, None)
    yield assignment("fcos", 50, 16, None, None)
    yield ap_loss(100_000, 500, None, None)
    yield ap_loss(4_000_000, 500, 60, 25)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available() or loader.load("cuda").library is None:
        sys.exit("no GPU here, or its kernels cannot be compiled")
    print(f"on {torch.cuda.get_device_name()}:")
    lines = [HEAD]
    for case in cases():
        floor = case.touched / BYTES_PER_MICROSECOND
        times = [f"{x:.1f}" for x in (floor, device_time(case.call), call_time(case.call))]
        limits = ["" if x is None else f"{x:g}" for x in (case.gate, case.aim)]
        lines.append([case.operator, case.sizes, *times, *limits])
    columns(lines)
    if given.json:
        rows = [dict(zip(HEAD, line, strict=True)) for line in lines[1:]]
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
