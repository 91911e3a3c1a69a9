"""What a user can get wrong: one sentence that names it, exit 2, and nothing on disk changed."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from detsearch_cli.engine.checkpoint import read_recipe
from detsearch_cli.search.study import open_study
from tests.cli.small import ANCHORED, DATA, ENVIRONMENT, SMALL

Told = pytest.CaptureFixture[str]
SEARCH = ["assign", "search", *SMALL, "--out", "studies"]


def refused(arguments: list[str], told: Told, code: int = 2) -> str:
    """What the program says when it refuses: a single sentence, no traceback, nothing on stdout."""
    told.readouterr()
    assert run(arguments) == code
    out, err = told.readouterr()
    assert out == ""
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    if lines[0].startswith("Usage:"):  # Typer's own form
        return lines[-1]
    errors = [line for line in lines if line.startswith("error: ")]
    assert errors == lines[-1:], err
    return errors[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a few files that are no data, no run, no study."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("hello")
    (tmp_path / "typo.yaml").write_text("optim: {lrr: 0.1}\n")
    (tmp_path / "slot.yaml").write_text("assign: {name: dynamic, countss: [[3]]}\n")
    (tmp_path / "cut.yaml").write_text("optim: [1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", ""], "--data takes a folder or a name"),
        (["train", "--data", "empty"], "is not a data set of a known format"),
        (["train", "--data", "file"], "is a file"),
        (["train", "--data", "shapes:imagess=3"], "'imagess'"),
        (["train", *SMALL, "--backbone", "resnet5"], "'resnet5'"),
        (["train", *SMALL, "--backbone-weights", "none.safetensors"], "none.safetensors"),
        (["train", *SMALL, "--recipe", "typo.yaml"], "typo.yaml: optim.lrr is no key"),
        (["train", *SMALL, "--recipe", "slot.yaml"], "slot.yaml: assign.countss is no key"),
        (["train", *SMALL, "--recipe", "cut.yaml"], "cut.yaml is not valid YAML"),
        (["train", *SMALL, "--set", "optim.lr"], "--set takes key=value"),
        (["train", *SMALL, "--set", "optim.lr=fast"], "optim.lr"),
        (["train", *SMALL, "--epochs", "0"], "schedule.epochs"),
        (["train", *SMALL, "--out", "file"], "file is a file; name a new folder for the run"),
        (["traim"], "Did you mean 'train'"),
        (["predict", "empty", "no.png"], "no.png"),
        ([*SEARCH, "--executor", "magic"], "'magic'"),
        ([*SEARCH, "--bins", "0,0,0"], "at least 1"),
        ([*SEARCH, "--bins", "7"], "give --edges"),
        ([*SEARCH, "--edges", "2,1"], "ascending"),
        ([*SEARCH, "--max-count", "0"], "--max-count"),
        ([*SEARCH, "--time-budget", "-1"], "--time-budget"),
        ([*SEARCH, "--name", "../elsewhere"], "is one word of letters"),
        (["assign", "train"], "give --study"),
        (["assign", "train", "--study", "empty"], "empty is no study"),
        (["assign", "show"], "give --study"),
        (["anchors", "fit", *SMALL], "this one predicts distances from points; use --detector yolov2"),
        (["anchors", "fit", *ANCHORED, "--format", "coco"], "--format is one of fragment, torchvision"),
        (["anchors", "fit", *ANCHORED, "--init", "uniform"], "--init uniform is for --online"),
        (["anchors", "fit", *ANCHORED, "--anchors", "0"], "--anchors"),
        (
            [
                *["anchors", "fit"],
                *ANCHORED,
                "--data",
                "shapes:images=4,val=2,test=2,size=64",
                "--anchors",
                "64",
            ],
            "ask for fewer shapes or give more images",
        ),
        (["anchors", "fit", *ANCHORED, "--out", "file/a.yaml"], "cannot write file/a.yaml"),
        (["anchors", "train", *ANCHORED, "--init", "unform"], "got 'unform'"),
        (["anchors", "train", *ANCHORED, "--init", "typo.yaml"], "typo.yaml holds no priors with shapes"),
        (["anchors", "train", *ANCHORED, "--init", "uniform", "--anchors", "3"], "uniform has 5"),
        (["anchors", "show", "--run", "empty"], "empty is no run folder"),
        (["study", "list", "nowhere"], "no folder nowhere"),
        (["study", "resume", "empty"], "empty is no study"),
        (["study", "show"], "Missing argument"),
        (["report", "empty"], "no run folder"),
        (["data", "preview", DATA, "--out", "file/x.png"], "cannot write file/x.png"),
        (["data", "convert", DATA, "--out", "new", "--to", "xml"], "coco, voc, yolo"),
        (["data", "split", DATA, "--out", "new", "--fractions", "1,2"], "fractions"),
    ],
)
def test_a_wrong_argument_is_named_and_changes_nothing(
    arguments: list[str], said: str, here: Path, capsys: Told
) -> None:
    before = contents(here)
    assert said in refused(arguments, capsys)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--split", "tst"], "'tst'"),
        (["--checkpoint", "bset"], "last, best"),
        (["--evaluator", "magic"], "faster, pycocotools"),
        (["--metric", "F1"], "AP, AP50, AP75"),
        (["--fail-under", "APP=0.3"], "APP is none of the metrics"),
        (["--fail-under", "AP=30"], "AP 30 is AP=0.30"),
        (["--data", "faces:images=8,val=4,test=4,size=64"], "the data has face"),
        (["--compare", "no/run"], "no/run"),
        (["--weights", "other.safetensors"], "exactly one of"),
    ],
)
def test_eval_names_what_does_not_fit_the_run(
    arguments: list[str], said: str, trained: Path, here: Path, capsys: Told
) -> None:
    assert said in refused(["eval", str(trained), *arguments], capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"image_id": 999, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}], "image_id"),
        ([{"image_id": 1, "category_id": 77, "bbox": [0, 0, 5, 5], "score": 0.5}], "category_id"),
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 5], "score": 0.5}], "four finite numbers"),
        ({"images": []}, "must hold a list"),
    ],
)
def test_detections_of_other_data_are_refused(content: object, said: str, here: Path, capsys: Told) -> None:
    (here / "found.json").write_text(json.dumps(content))
    arguments = ["eval", "--detections", "found.json", "--data", DATA, "--split", "val"]
    assert said in refused(arguments, capsys)
    assert "needs --data" in refused(["eval", "--detections", "found.json"], capsys)


def test_runs_scored_on_different_images_are_not_compared(trained: Path, here: Path, capsys: Told) -> None:
    other = DATA.replace("test=8", "test=6")
    assert run(["train", *SMALL, "--data", other, "--out", "other"]) == 0
    said = refused(["eval", str(trained), "--compare", "other"], capsys)
    assert "different images or classes" in said and "--data" in said


def test_a_cut_off_weights_file_is_named_and_left_alone(trained: Path, here: Path, capsys: Told) -> None:
    shutil.copytree(trained, here / "run")
    weights = here / "run" / "last.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    before = contents(here)
    for command in (["eval", "run"], ["predict", "run", "file"]):
        assert "run/last.safetensors is no complete safetensors file" in refused(command, capsys)
    assert contents(here) == before


def test_the_folder_of_another_recipe_is_not_taken(trained: Path, capsys: Told) -> None:
    before = contents(trained)
    said = refused(["train", *SMALL, "--set", "optim.lr=0.5", "--out", str(trained)], capsys)
    assert "optim.lr is 0.01 there, 0.5 here" in said
    assert contents(trained) == before


def test_a_search_says_what_differs_from_the_one_in_its_folder(study: Path, capsys: Told) -> None:
    before = contents(study)
    again = ["assign", "search", *SMALL, "--bins", "1", "--name", "s", "--out", str(study.parent)]
    said = refused([*again, "--set", "optim.lr=0.5", "--alpha", "2"], capsys)
    assert "--alpha is 1.5 there, 2.0 here; optim.lr is 0.01 there, 0.5 here" in said
    assert f"detsearch study resume {study}" in said
    assert contents(study) == before


def test_damaged_files_of_a_study_are_named_and_left_alone(study: Path, here: Path, capsys: Told) -> None:
    shutil.copytree(study, here / "s")
    (here / "s" / "comparison.json").write_text("{")
    assert "s/comparison.json is not valid JSON" in refused(["report", "s"], capsys)
    (here / "s" / "study.db").write_bytes((study / "study.db").read_bytes()[:5000])
    before = contents(here)
    for command in (["study", "show", "s"], ["study", "resume", "s"], ["report", "s"]):
        assert "study.db cannot be read as a ledger" in refused(command, capsys)
    assert contents(here) == before
    (here / "s" / "search.json").write_text("{")
    assert "s/search.json is not valid JSON" in refused(["study", "resume", "s"], capsys)


def test_a_search_that_found_nothing_has_no_counts_to_show(study: Path, here: Path, capsys: Told) -> None:
    shutil.copytree(study, here / "s")
    (here / "s" / "best.yaml").write_text("{}\n")
    assert "s found nothing better than the recipe as given" in refused(
        ["assign", "show", "--study", "s"], capsys
    )


def test_after_a_search_that_found_nothing_the_recipe_as_given_is_trained(
    study: Path, here: Path, capsys: Told
) -> None:
    shutil.copytree(study, here / "s")
    (here / "s" / "best.yaml").write_text("{}\n")
    assert run(["assign", "train", "--study", "s", "--baseline", "--json"]) == 0
    told = capsys.readouterr()
    assert "s found nothing better than the recipe as given" in told.err
    (only,) = json.loads(told.out)["runs"]
    assert read_recipe(Path(only["run"])).assign is None


def test_a_damaged_image_is_left_out_or_named(here: Path, capsys: Told) -> None:
    assert run(["data", "convert", DATA, "--out", "set"]) == 0
    none, cut = sorted((here / "set" / "train").glob("*.png"))[:2]
    none.write_bytes(b"no image")
    capsys.readouterr()
    assert run(["train", *SMALL, "--data", "set", "--out", "first"]) == 0
    assert "1 x unreadable image; `detsearch data inspect` lists them" in capsys.readouterr().err
    cut.write_bytes(cut.read_bytes()[:200])  # the header is whole, so only decoding finds it
    before = contents(here / "set")
    assert f"{cut.name}: image file is truncated" in refused(
        ["train", *SMALL, "--data", "set", "--out", "second"], capsys
    )
    assert run(["data", "inspect", "set", "--json"]) == 0
    told = capsys.readouterr().out
    assert none.name in told and cut.name in told
    assert run(["data", "inspect", "set", "--strict"]) == 2
    assert contents(here / "set") == before


def test_a_study_of_failing_trials_exits_1_with_the_reasons(here: Path, capsys: Told) -> None:
    # a learning rate at which the losses overflow at once
    search = [
        *SEARCH,
        "--bins",
        "1",
        "--trials",
        "1",
        "--name",
        "s",
        "--set",
        "optim.lr=1e15",
        "--epochs",
        "3",
    ]
    said = refused(search, capsys, code=1)
    assert "every trial of s failed" in said and "Diverged" in said
    assert run(["study", "show", "studies/s"]) == 0
    assert capsys.readouterr().err.count(" failed ") == 2
    assert run(["report", "studies/s"]) == 0
    page = (here / "studies" / "s" / "report.html").read_text(encoding="utf-8")
    assert "All 2 trials failed" in page and "Diverged" in page
    kept = open_study(here / "studies" / "s").config.identity["recipe"]
    assert kept["optim"]["lr"] == 1e15


def test_a_search_that_has_not_ended_has_no_finding_to_test(study: Path, here: Path, capsys: Told) -> None:
    shutil.copytree(study, here / "s")
    (here / "s" / "best.yaml").unlink()
    said = refused(["assign", "train", "--study", "s", "--baseline"], capsys)
    assert "the search in s has not ended" in said
    assert "detsearch study resume s" in said


def test_a_recipe_that_is_no_yaml_is_named_with_its_line(here: Path, capsys: Told) -> None:
    (here / "bad.yaml").write_text("detector: fcos\noptim: {lr: 0.1\n")
    assert "bad.yaml is not valid YAML: line 2" in refused(["train", "--recipe", "bad.yaml", *SMALL], capsys)


def test_a_run_whose_recipe_is_damaged_is_named(trained: Path, here: Path, capsys: Told) -> None:
    shutil.copytree(trained, here / "r")
    (here / "r" / "recipe.yaml").write_text("detector: {name: fcos}\nbackbone: 3\n")
    assert "r/recipe.yaml is damaged or of another version" in refused(["report", "r"], capsys)


def test_an_export_to_a_place_that_cannot_be_is_refused_with_the_path(
    study: Path, here: Path, capsys: Told
) -> None:
    (here / "file").write_text("kept")
    before = contents(here)
    for name in ("t.csv", "t.json", "t.parquet"):
        assert f"cannot write file/{name}" in refused(["study", "export", str(study), f"file/{name}"], capsys)
    assert contents(here) == before


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits memory as Linux does")
def test_a_machine_with_too_little_memory_is_told_in_one_sentence(here: Path) -> None:
    command = (
        f"ulimit -v 2000000; exec {sys.executable} -m detsearch_cli.cli.app train {shlex.join(SMALL)} --out r"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot go on (")
    assert not (here / "r").exists()


@pytest.mark.parametrize("fractions", ["nan,nan,nan", "1,0,nan", "inf,-inf,1", "1e400,0,0", "0.5,0.5"])
def test_parts_of_a_set_that_are_no_fractions_are_refused(fractions: str, here: Path, capsys: Told) -> None:
    told = refused(["data", "split", DATA, "--out", "divided", f"--fractions={fractions}"], capsys)
    assert "sum 1" in told or "three numbers" in told
    assert not (here / "divided").exists()
