"""Compiles the C++ and CUDA sources once and keeps the libraries.

Libraries lie in `cache_folder()`, each in a folder named by a hash of everything that decides its content:
sources, torch's version, compiler, flags and the processor's instruction set (a home directory may be shared by
unlike machines). Processes that need the same library at the same time wait for the one that compiles it.
The compilers are called directly: torch's own helper needs ninja, and a lock it leaves behind after `kill -9`
stops every later process.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

SOURCES, TORCH = Path(__file__).parent / "csrc", Path(torch.__file__).parent
COMMON = ("-O3", "-std=c++20", "-fPIC")
# no contraction: CPU and GPU must round alike, so that both choose the same priors
HOST = ("-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra")
DEVICE = ("--fmad=false", "--expt-relaxed-constexpr", "-DUSE_CUDA")


class BuildError(Exception):
    """Why there is no library: no compiler, or the compiler's first error."""


@dataclass(frozen=True)
class Library:
    """One library to build. kind: cpu or cuda. command: compiler and flags; link: what follows the sources."""

    kind: str
    command: tuple[str, ...]
    sources: tuple[Path, ...]
    link: tuple[str, ...]
    identity: str

    @property
    def path(self) -> Path:
        """Where it lies once built."""
        return cache_folder() / f"{self.kind}-{self.identity}" / f"detsearch_{self.kind}.so"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/detsearch/kernels, by default in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "detsearch" / "kernels"


def cpu_library() -> Library:
    """The library of the CPU operators, which also declares them. Raises BuildError without a compiler."""
    compiler = os.environ.get("CXX") or _first("c++", "g++", "clang++")
    if compiler is None:
        raise BuildError("no C++ compiler found (c++, g++ or clang++; $CXX names another)")
    command = (compiler, *COMMON, *HOST, *_include(), "-shared")
    # -### prints what -march=native stands for on this machine
    machine = _said((compiler, "-march=native", "-###", "-E", "-x", "c++", os.devnull))
    return _library(
        "cpu", command, SOURCES.glob("*.cpp"), ("torch_cpu",), _said((compiler, "--version")) + machine
    )


def cuda_library(architectures: Sequence[str] = ()) -> Library:
    """The library of the CUDA operators for compute capabilities such as "9.0"; default: the visible GPUs'.

    Raises BuildError without nvcc, and without architectures where no GPU is visible.
    """
    nvcc = _nvcc()
    if nvcc is None:
        raise BuildError("no nvcc found (on PATH, or in bin of $CUDA_HOME)")
    wanted = tuple(architectures) or visible_architectures()
    if not wanted:
        raise BuildError("no GPU is visible; name architectures with --cuda-arch, such as 8.0 9.0")
    codes = []
    for name in wanted:
        number = name.replace(".", "")
        if not number.isdigit() or len(number) < 2:
            raise BuildError(f"a CUDA architecture is a number such as 9.0, got {name!r}")
        codes += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
    newest = max(wanted, key=float).replace(".", "")
    codes += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]  # PTX, for GPUs to come
    host = ["-Xcompiler", "-fPIC"]
    common = [flag for flag in COMMON if flag != "-fPIC"]
    command = (
        nvcc,
        *common,
        *host,
        *DEVICE,
        *codes,
        *_include(),
        "-shared",
    )
    return _library(
        "cuda", command, SOURCES.glob("*.cu"), ("torch_cuda", "torch_cpu"), _said((nvcc, "--version"))
    )


def visible_architectures() -> tuple[str, ...]:
    """Compute capabilities of the visible GPUs, each once."""
    if not torch.cuda.is_available():
        return ()
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}.{minor}" for major, minor in sorted(found))


def build(library: Library, say: Callable[[str], None] = lambda text: None) -> Path:
    """Path of the library, compiled if it is not there yet. Raises BuildError with the compiler's first error."""
    path = library.path
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot write {path.parent}: {error.strerror}; set $XDG_CACHE_HOME") from error
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return path  # another process compiled it meanwhile
        say(f"compiling detsearch's {library.kind} kernels, once, about {ABOUT[library.kind]} seconds ...")
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            _compile((*library.command, *map(str, library.sources), "-o", str(made), *library.link))
            made.replace(path)
    return path


ABOUT = {"cpu": 20, "cuda": 40}


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed: {first_error(done.stderr or done.stdout)}")


def first_error(text: str) -> str:
    """The first line of a compiler's output that names an error, else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no message")


def _library(
    kind: str, command: tuple[str, ...], sources: Iterable[Path], libraries: tuple[str, ...], tools: str
) -> Library:
    found = tuple(sorted(sources))
    digest = hashlib.sha256()
    for path in (*found, *sorted(SOURCES.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    versions = (torch.__version__, sys.platform, tools, *command)
    digest.update("\0".join(versions).encode())
    link = (f"-L{TORCH / 'lib'}", *(f"-l{name}" for name in libraries))
    return Library(kind, command, found, link, digest.hexdigest()[:16])


def _include() -> tuple[str, ...]:
    return ("-isystem", str(TORCH / "include"))


@cache
def _said(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    return done.stdout + done.stderr


def _first(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    inside = Path(home) / "bin" / "nvcc" if home else None
    return str(inside) if inside is not None and inside.is_file() else shutil.which("nvcc")
