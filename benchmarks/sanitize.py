"""Runs the operators' tests on a library built with ASan and UBSan: a wrong index or overflow ends the run.

    python benchmarks/sanitize.py [pytest arguments]

Needs g++ with its libasan; about 5 minutes. Exit code 0: nothing was found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
ROOT = Path(__file__).parent.parent


def main() -> int:
    """Start the tests in a process that loads the sanitizers first, as they demand."""
    if os.environ.get("DETSEARCH_SANITIZED"):
        return run_tests(sys.argv[1:])
    compiler = os.environ.get("CXX", "g++")
    asked = [compiler, "-print-file-name=libasan.so"], [compiler, "-print-file-name=libubsan.so"]
    libraries = [subprocess.run(a, capture_output=True, text=True, check=True).stdout.strip() for a in asked]
    environment = {
        **os.environ,
        "CXX": compiler,
        "DETSEARCH_SANITIZED": "1",
        "LD_PRELOAD": " ".join(libraries),
        # Python itself keeps memory until it ends; torch's own C++ throws and catches across libraries
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    return subprocess.run([sys.executable, __file__, *sys.argv[1:]], env=environment, check=False).returncode


def run_tests(arguments: list[str]) -> int:
    """The tests of kernels/ with a library of its own, which its flags keep apart from the usual one."""
    import pytest
    from detsearch_kernels import build, loader

    build.HOST = (*build.HOST, *FLAGS)
    loader.use("required")
    status = loader.load("cpu", lambda text: print(text, file=sys.stderr))
    if status.library is None:
        print(f"no library: {status.reason}", file=sys.stderr)
        return 2
    # test_build.py starts processes that would not know this library, the emulation of CUDA has one of its own
    tests = ROOT / "tests/kernels"
    usual = ["--ignore", str(tests / "test_build.py"), "--ignore-glob", "*_gpu.py", str(tests)]
    return int(pytest.main(["-n", "0", "-q", *(arguments or usual)]))


if __name__ == "__main__":
    sys.exit(main())
