"""Compiling the operators: once, whoever asks; and what happens where it cannot be done."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from detsearch_kernels import build as tools
from detsearch_kernels import loader

from detsearch_cli.cli.app import run

NO_COMPILER = {"CXX": "/nowhere/c++"}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder with one tiny file, and an empty cache."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(tools, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        tools.cpu_library()
    except tools.BuildError as error:
        pytest.skip(str(error))
    return sources


def test_many_that_ask_at_the_same_time_compile_once(small: Path) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: tools.build(tools.cpu_library(), said.append), range(4)))
    assert len(said) == 1
    (path,) = paths
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".lock", ".so"]
    tools.build(tools.cpu_library(), said.append)
    assert len(said) == 1


def test_another_source_is_another_library(small: Path) -> None:
    before = tools.cpu_library().path
    (small / "one.h").write_text("// new\n")
    after = tools.cpu_library().path
    assert after != before
    (small / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert tools.cpu_library().path not in (before, after)


def test_a_source_in_another_folder_is_another_library(small: Path) -> None:
    (small / "near").mkdir()
    (small / "far").mkdir()
    (small / "near" / "two.h").write_text("// the same\n")
    before = tools.cpu_library().path
    (small / "near" / "two.h").rename(small / "far" / "two.h")
    assert tools.cpu_library().path != before


def test_sources_in_folders_are_found_and_include_from_the_root(small: Path) -> None:
    (small / "folder").mkdir()
    (small / "folder" / "two.h").write_text("inline int two() { return 2; }\n")
    (small / "folder" / "two.cpp").write_text(
        '#include "folder/two.h"\nextern "C" int one(); int x = one() + two();\n'
    )
    library = tools.cpu_library()
    assert [path.name for path in library.sources] == ["two.cpp", "one.cpp"]
    assert tools.build(library).is_file()


def test_a_file_beside_the_library_survives_its_build(small: Path) -> None:
    library = tools.cpu_library()
    library.path.parent.mkdir(parents=True)
    notes = library.path.parent / "notes.txt"
    notes.write_text("mine")
    tools.build(library)
    assert notes.read_text() == "mine"


def test_what_a_killed_build_left_is_removed_by_the_next(small: Path) -> None:
    library = tools.cpu_library()
    left = library.path.parent / "building-x1y2z3_4"
    left.mkdir(parents=True)
    (left / library.path.name).write_text("half a library")
    assert tools.build(library).is_file()
    assert not left.exists()


def test_an_operators_sources_include_only_common_and_their_own() -> None:
    allowed = {"simota": {"matchers", "common"}, "nms": set()}
    for path in tools.SOURCES.rglob("*.[hc]*"):
        own = path.parent.name
        for folder in re.findall(r'#include "(\w+)/', path.read_text()):
            assert folder in {own, *allowed.get(own, {"common"})}, f"{own}/{path.name} includes {folder}"


def test_a_wheel_holds_every_source(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"
    for name in ("pyproject.toml", "setup.py", "README.md"):
        tree.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tree)
    for name in ("kernels", "detsearch_cli"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        "-m",
        "pip",
        "wheel",
        str(tree),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("no pip here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {
        name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("detsearch_kernels/csrc/")
    }
    sources = {
        path.relative_to(tools.SOURCES).as_posix() for path in tools.SOURCES.rglob("*") if path.is_file()
    }
    assert packed == {f"detsearch_kernels/csrc/{path}" for path in sources}


def test_a_source_that_does_not_compile_is_told_by_its_first_error_and_leaves_nothing(small: Path) -> None:
    (small / "one.cpp").write_text("int one( { return 1; }\nint two( { return 2; }\n")
    library = tools.cpu_library()
    with pytest.raises(tools.BuildError, match=r"one\.cpp:1:\d+: error: ") as caught:
        tools.build(library)
    assert "\n" not in str(caught.value)
    assert [p.suffix for p in library.path.parent.iterdir()] in ([], [".lock"])


def test_a_cache_that_cannot_be_written_is_named(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(small / "file"))
    with pytest.raises(tools.BuildError, match="XDG_CACHE_HOME"):
        tools.build(tools.cpu_library())


@pytest.mark.parametrize("name", ["nine", "9", ""])
def test_an_architecture_that_is_none_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_nvcc", lambda: "nvcc")
    with pytest.raises(tools.BuildError, match=r"a CUDA architecture is a number such as 9\.0"):
        tools.cuda_library([name])


def test_the_cuda_sources_compile_and_load_where_nvcc_is() -> None:
    if torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA")
    if loader.load("cpu").library is None:
        pytest.skip("no compiler here")
    try:
        library = tools.cuda_library(["9.0"])
    except tools.BuildError as error:
        pytest.skip(str(error))
    torch.ops.load_library(tools.build(library))
    assert torch._C._dispatch_has_kernel_for_dispatch_key("detsearch::box_pairwise", "CUDA")


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_without_a_compiler_pytorch_is_used_after_one_warning(tmp_path: Path) -> None:
    code = (
        "import torch, detsearch_kernels as k; cpu = torch.device('cpu'); "
        "print(k.ready(cpu), k.ready(cpu)); k.use('required'); k.ready(cpu)"
    )
    done = in_new_process(code, **NO_COMPILER, XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr.count("slower PyTorch operators are used") == 1
    assert "KernelsRequired: kernels are required for cpu, but" in done.stderr.splitlines()[-1]


def test_kernels_that_are_required_and_missing_end_a_command_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(loader._states, "cpu", loader.Status("cpu", None, "no C++ compiler found"))
    small = ["--data", "shapes:images=4,val=2,test=2,size=32", "--image-size", "32", "--device", "cpu"]
    small += ["--backbone", "tiny", "--epochs", "1", "--out", str(tmp_path / "run")]
    try:
        assert run(["train", *small, "--kernels", "required"]) == 2
        assert "kernels are required for cpu, but no C++ compiler found" in capsys.readouterr().err
        loader.use("off")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not loader.ready(torch.device("cpu"))
    finally:
        loader.use("auto")


def test_the_command_builds_and_tells_what_is_active(capsys: pytest.CaptureFixture[str]) -> None:
    if loader.load("cpu").library is None:
        pytest.skip("no compiler here")
    assert run(["kernels", "build"]) == 0
    assert "detsearch_cpu.so" in capsys.readouterr().err
    assert run(["kernels", "info"]) == 0
    assert "compiled" in capsys.readouterr().err
