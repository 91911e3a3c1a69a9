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
# no contraction: CPU and GPU must round alike, so that both choose the same priors; and no -ffast-math, which would also
# let the compiler reorder sums and forget NaN
HOST = ("-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra")
DEVICE = ("--fmad=false", "--expt-relaxed-constexpr", "-DUSE_CUDA", "--threads=0")  # 0: a thread a core


SECONDS = {"cpu": 20, "cuda": 40}  # that compiling takes, about


class BuildError(Exception):
    """Why there is no library: no compiler, or the compiler's first error."""


_DRAFT = "building-"  # how the folder begins in which the compiler writes


@dataclass(frozen=True)
class Library:
    """One library to build. kind: cpu or cuda. command: compiler and flags; link: what follows the sources.

    identity: hash of all that decides its content; it names the folder.
    """

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
    compiler = os.environ.get("CXX") or _first_on_path("c++", "g++", "clang++")
    if compiler is None:
        raise BuildError("no C++ compiler found (c++, g++ or clang++; $CXX names another)")
    command = (compiler, *COMMON, *HOST, *_include(), "-shared")
    # -### prints what -march=native stands for on this machine: the flag alone would be equal on all that share a home
    machine = _output_of((compiler, "-march=native", "-###", "-E", "-x", "c++", os.devnull))
    return _library(
        "cpu", command, SOURCES.rglob("*.cpp"), ("torch_cpu",), _output_of((compiler, "--version")) + machine
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
    newest = max(wanted, key=float).replace(".", "")  # as numbers: "10.0" comes after "9.0"
    codes += ["-gencode", f"arch=compute_{newest},code=compute_{newest}"]  # PTX, for GPUs to come
    host = ["-Xcompiler", "-fPIC"]
    common = [flag for flag in COMMON if flag != "-fPIC"]  # nvcc knows it only as a flag of its host compiler
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
        "cuda", command, SOURCES.rglob("*.cu"), ("torch_cuda", "torch_cpu"), _output_of((nvcc, "--version"))
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
    if path.is_file():  # without the lock: it is there only when it is complete
        return path
    try:
        # makes folders, and changes none that is there
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"cannot write {path.parent}: {error.strerror}; set $XDG_CACHE_HOME") from error
    # The lock empties a file of this name. It can only be ours: the folder is named by our hash. A file that is left over
    # after `kill -9` locks nothing, since the lock is held by the process.
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return path  # another process compiled it meanwhile
        say(f"compiling detsearch's {library.kind} kernels, once, about {SECONDS[library.kind]} seconds ...")
        # Whoever made them held the lock, which is ours now: that process was killed.
        for left in path.parent.glob(f"{_DRAFT}????????"):  # as tempfile names them
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        # Removed at the end, with all it holds: it was made here, under a name that nothing had. It lies beside the
        # library, because a file can only be renamed inside one file system.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=_DRAFT) as folder:
            unfinished = Path(folder) / path.name
            include = f"-I{SOURCES}"  # not part of the identity: equal sources make equal libraries, wherever they lie
            sources = map(str, library.sources)
            _compile((*library.command, include, *sources, "-o", str(unfinished), *library.link))
            # Replaces nothing: there was no file of this name a few lines above, and only holders of the lock make one.
            # A link would be replaced itself, never what it leads to.
            unfinished.replace(path)
    return path


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
    found = tuple(sorted(sources))  # a folder lists its files in any order, and the order decides the hash
    digest = hashlib.sha256()
    for path in (*found, *sorted(SOURCES.rglob("*.h"))):
        # the path inside csrc, not the bare name: a file that moves to another folder changes what is included
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    versions = (torch.__version__, sys.platform, tools, *command)
    digest.update("\0".join(versions).encode())
    link = (f"-L{TORCH / 'lib'}", *(f"-l{name}" for name in libraries))
    return Library(kind, command, found, link, digest.hexdigest()[:16])


def _include() -> tuple[str, ...]:
    return ("-isystem", str(TORCH / "include"))


@cache
def _output_of(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    return done.stdout + done.stderr


def _first_on_path(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    # $CUDA_HOME before PATH: whoever sets it means a toolkit other than the usual one
    inside = Path(home) / "bin" / "nvcc" if home else None
    return str(inside) if inside is not None and inside.is_file() else shutil.which("nvcc")
