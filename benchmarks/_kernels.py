"""Timing shared by the kernels' benchmarks: two callables in turn, medians, wall and processor time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LEAST_SECONDS = 0.02  # of one measurement, so that the clock's step does not count


@dataclass(frozen=True)
class Row:
    """One line of the table. ratio: theirs over ours, by wall and by processor time; gate: the issue's."""

    operator: str
    sizes: str
    against: str
    theirs_ms: float
    ours_ms: float
    ratio: float
    processor: float
    gate: float | None = None

    def cells(self) -> list[str]:
        """The line's cells, as text."""
        gate = "" if self.gate is None else f"{self.gate:g}x"
        times = [
            f"{self.theirs_ms:.3g}",
            f"{self.ours_ms:.3g}",
            f"{self.ratio:.1f}x",
            f"{self.processor:.1f}x",
        ]
        return [self.operator, self.sizes, self.against, *times, gate]


HEAD = ["operator", "sizes", "against", "theirs ms", "ours ms", "ratio", "processor", "gate"]


def compare(
    operator: str,
    sizes: str,
    against: str,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int = 5,
    gate: float | None = None,
) -> Row:
    """Both in turn, `rounds` times after one warm-up each; ratios of the same round, their medians."""
    calls = [_calls(side) for side in (theirs, ours)]
    wall: list[list[float]] = [[], []]
    busy: list[list[float]] = [[], []]
    for _ in range(rounds):
        for i, side in enumerate((theirs, ours)):
            start, used = time.perf_counter(), time.process_time()
            for _ in range(calls[i]):
                side()
            wall[i].append((time.perf_counter() - start) / calls[i])
            busy[i].append((time.process_time() - used) / calls[i])
    ratio = statistics.median(a / b for a, b in zip(*wall, strict=True))
    processor = statistics.median(a / b for a, b in zip(*busy, strict=True))
    times = [statistics.median(side) * 1e3 for side in wall]
    return Row(operator, sizes, against, times[0], times[1], ratio, processor, gate)


def _calls(side: Callable[[], object]) -> int:
    """Calls of one measurement; also warms up."""
    side()
    start = time.perf_counter()
    side()
    return max(1, round(LEAST_SECONDS / max(time.perf_counter() - start, 1e-6)))


def peak_bytes(script: Path, *arguments: str) -> int:
    """What `script` prints when it measures its own peak with `peak_of`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def peak_of(call: Callable[[], object]) -> int:
    """Memory that `call` adds to this process at its peak, bytes (Linux)."""
    call()  # libraries, thread pools and small pools of the allocator are not the operator's
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def show(rows: list[Row]) -> None:
    """Print the table."""
    columns([HEAD, *(row.cells() for row in rows)])


def columns(lines: list[list[str]]) -> None:
    """Print lines of cells, the first the head, in columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
