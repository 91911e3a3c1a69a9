"""A training of a second, as command-line options, and how tests run the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DATA = "shapes:images=24,val=8,test=8,size=64"
SMALL = [
    *("--detector", "fcos", "--backbone", "tiny", "--data", DATA),
    *("--image-size", "64", "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
    *("--set", "neck={channels: 16, levels: [3, 5]}", "--set", "head.convs=1"),
]
ANCHORED = ["yolov2" if word == "fcos" else word for word in SMALL[:-4]]  # which has neither neck nor head
MAIN = [sys.executable, "-m", "detsearch_cli.cli.app"]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)}


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """The program in a process of its own, its working directory `folder`."""
    return subprocess.Popen(
        [*MAIN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=folder,
    )
