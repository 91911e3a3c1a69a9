"""The examples run as they are; environment variables make them small."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.test_slurm import SACCT, SBATCH, SCANCEL, SRUN

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TINY = "shapes:images=8,val=4,test=4,size=64,objects=2"
SHORT = {"EPOCHS": "1", "IMAGE_SIZE": "64", "TRIALS": "1", "SEEDS": "1", "JOBS": "1"}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with `detsearch` as this checkout has it, to be put first on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    root = EXAMPLES.parent
    starter = f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m detsearch_cli.cli.app "$@"\n'
    (folder / "detsearch").write_text(starter)
    (folder / "detsearch").chmod(0o755)
    return folder


def run(script: str, *arguments: str, programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script in an empty folder; nothing of it may appear anywhere else."""
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **SHORT, **variables}
    place = programs.parent / "here"
    place.mkdir(exist_ok=True)
    command = [str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_every_example_is_tested_and_stops_at_the_first_failure() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for example in [*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.py")]:
        assert f'"{example.name}"' in here
        if example.suffix == ".sh":
            assert os.access(example, os.X_OK)
            assert "\nset -euo pipefail\n" in example.read_text(encoding="utf-8")


def test_the_gate_exits_0_or_1_by_the_limit(programs: Path) -> None:
    done = run("ci_gate.sh", TINY, programs=programs, MIN_AP="0.99")
    assert done.returncode == 1, done.stderr
    assert "0.99" in done.stderr
    assert "passed" not in done.stdout
    assert "AP" in json.loads((programs.parent / "here" / "ci" / "score.json").read_text())["coco"]
    (programs / "detsearch").write_text("#!/bin/sh\n")  # one that is content, in no time
    done = run("ci_gate.sh", TINY, programs=programs)
    assert (done.returncode, done.stdout) == (0, "passed; details in ci\n")


def test_search_and_compare_ends_with_a_comparison_or_says_that_there_is_none(programs: Path) -> None:
    done = run("search_and_compare.sh", TINY, programs=programs)
    assert done.returncode == 0, done.stderr
    best = (programs.parent / "here" / "studies" / "example" / "best.yaml").read_text()
    compared = re.search(r"AP \[[+-][\d.]+, [+-][\d.]+\]", done.stderr) is not None
    assert compared == ("\nassign:" in best)
    assert compared or done.stdout == "nothing better found\n"


def test_tables_of_a_loss_are_made_and_a_wrong_one_named(programs: Path) -> None:
    done = run("aploss_tables.sh", TINY, programs=programs, TABLES="3 9", BACKBONE="tiny")
    assert done.returncode == 2 and "there is no table 9" in done.stderr
    assert "baseline" in done.stderr and "trial" in done.stderr
    made = programs.parent / "here" / "aploss-tables"
    assert [path.name for path in made.iterdir()] == ["shared"]
    assert list((made / "shared").glob("comparison-trial*.json"))


def test_two_results_files_are_compared(programs: Path, tmp_path: Path) -> None:
    files = []
    for name, score in (("new", 0.9), ("old", 0.8)):
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 20, 30], "score": score}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([box]))
    done = run("compare_other_framework.sh", TINY, *map(str, files), programs=programs)
    assert done.returncode == 0, done.stderr
    assert "+0.0 AP [+0.0, +0.0]" in done.stderr
    assert (programs.parent / "here" / "compare" / "plots" / "precision_recall.png").is_file()


def test_the_comparison_makes_its_own_results_when_none_are_given(programs: Path) -> None:
    done = run("compare_other_framework.sh", programs=programs, DATA=TINY)
    assert done.returncode == 0, done.stderr
    assert re.search(r"AP \[[+-][\d.]+, [+-][\d.]+\]", done.stderr)


def test_the_slurm_search_submits_its_workers(programs: Path) -> None:
    slurm = programs.parent / "slurm"
    slurm.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    small = {"BACKBONE": "tiny", "BATCH_SIZE": "4", "SUBSET": "0.5", "FAKE_SLURM": str(slurm)}
    done = run("slurm.sh", TINY, programs=programs, **small)
    assert len(list(slurm.glob("*.job"))) >= 1
    assert (programs.parent / "here" / "studies" / "slurm" / "best.yaml").is_file(), done.stderr
    assert done.returncode == 0, done.stderr
    assert run("slurm.sh", programs=programs).returncode != 0


def test_exported_counts_are_those_of_the_fragment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fragment, script = tmp_path / "best.yaml", str(EXAMPLES / "export_counts.py")
    monkeypatch.setattr(sys, "argv", [script, str(fragment), "--data", TINY])
    fragment.write_text("assign: {name: dynamic, counts: [[3, 4, 5]]}\n")
    runpy.run_path(script, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["all", "levels", "3", "4", "5"]
    assert [line.split()[0] for line in lines[2:]] == ["own", "searched"]
    fragment.write_text("{}\n")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 2
    assert "holds no counts" in capsys.readouterr().err


def test_the_python_interface_searches_compares_trains_and_evaluates(programs: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    variables = {"DATA": TINY, "PYTHONPATH": str(EXAMPLES.parent), "IMAGES": str(tmp_path / "photo.png")}
    environment = {**os.environ, **SHORT, **variables, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / "python_interface.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reason, *difference, scored, image = done.stdout.splitlines()
    assert reason.startswith("all 1 trials are done")
    assert ("nothing better" in reason) == (not difference) and all(" AP " in line for line in difference)
    assert scored.startswith("AP ") and image.endswith("boxes")


def test_examples_need_nothing_but_bash_and_detsearch() -> None:
    assert shutil.which("bash")
    for script in EXAMPLES.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
