"""What on_gpu.sh says of the machine, and the summary of its folder of results.

python benchmarks/_on_gpu.py machine cuda machine.json
python benchmarks/_on_gpu.py summary OUT                  # Markdown on stdout; exits 1 where a step failed
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

TAIL = 12  # lines of a failed step's output that the summary shows


def machine(device: str) -> dict[str, Any]:
    """Names and versions that times depend on. Exits where the device is not there."""
    import torch
    import torchvision

    about: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cores": os.cpu_count(),
    }
    if device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("no GPU is visible here; DEVICE=cpu rehearses the script without one")
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpus": torch.cuda.device_count(),
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "copy_tb_s": copy_rate(),
        }
    return about


def copy_rate() -> float:
    """Bytes read and written by a copy on the GPU, TB/s: the floor that the kernels are measured against."""
    import torch

    a = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    b.copy_(a)  # the first one allocates and wakes the clocks
    begin.record()
    for _ in range(20):
        b.copy_(a)
    end.record()
    end.synchronize()
    return round(20 * 2 * a.numel() / (begin.elapsed_time(end) / 1e3) / 1e12, 2)


def summary(folder: Path) -> int:
    """Print the results as Markdown. 1 where a step failed or a step's file is missing, else 0."""
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    about = _read(folder / "machine.json")
    print("## " + ", ".join(f"{key} {value}" for key, value in about.items()))
    print("\n| step | exit | seconds | limit |\n|---|---|---|---|")
    for step in steps:
        print(f"| {step['step']} | {step['exit']} | {step['seconds']} | {step['limit']} |")
    for name in ("kernels", "floors", "steps_a_second"):
        rows = _read(folder / f"{name}.json")
        if rows:
            _table(name, rows)
    for name in ("search", "two"):
        found = _read(folder / f"{name}.json")
        if found:
            plain = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
            print(f"\n{name}: " + ", ".join(f"{k} {_cell(v)}" for k, v in plain.items()))
    failed = [step["step"] for step in steps if step["exit"] != 0]
    for name in failed:
        lines = (folder / f"{name}.txt").read_text(errors="replace").splitlines()[-TAIL:]
        print(f"\n{name} ended with:\n\n    " + "\n    ".join(lines))
    tests = folder / "tests.txt"
    if tests.is_file() and tests.read_text().strip():
        print(f"\ntests: {tests.read_text().splitlines()[-1]}")
    return int(bool(failed))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _table(name: str, rows: list[dict[str, Any]]) -> None:
    head = list(rows[0])
    print(f"\n{name}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row[key]) for key in head)} |")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    if sys.argv[1] == "machine":
        Path(sys.argv[3]).write_text(json.dumps(machine(sys.argv[2]), indent=1) + "\n")
    else:
        sys.exit(summary(Path(sys.argv[2])))
