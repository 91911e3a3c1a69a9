"""`detsearch anchors` as a user gives it: a fit that a training takes over, a proof, pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from detsearch_cli.cli.app import run
from detsearch_cli.engine.checkpoint import load_detector, read_recipe
from tests.cli.small import ANCHORED

Told = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def document(words: list[str], capsys: Told) -> dict[str, object]:
    capsys.readouterr()
    assert run([*words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_fitted_shapes_fit_better_than_the_detectors_own_and_start_a_training(
    here: Path, capsys: Told
) -> None:
    found = document(["anchors", "fit", *ANCHORED, "--anchors", "3"], capsys)
    assert np.shape(found["shapes"]) == (1, 3, 2) and found["strides"] == [32]
    whole = found["all"]
    assert isinstance(whole, dict) and whole["now"]["mean_iou"] > whole["before"]["mean_iou"]
    assert len(found["restarts"]) == 10  # type: ignore[arg-type]
    trained = document(["anchors", "train", *ANCHORED, "--init", "anchors.yaml", "--out", "a"], capsys)
    np.testing.assert_allclose(np.array(trained["initial"]), np.array(found["shapes"]), atol=5e-3)
    (only,) = trained["learned"].values()  # type: ignore[attr-defined]
    assert np.shape(only) == (1, 3, 2)


@pytest.mark.parametrize("format", ["torchvision", "ultralytics", "mmdetection"])
def test_a_pyramid_gets_shapes_for_each_level_in_every_format(format: str, here: Path, capsys: Told) -> None:
    pyramid = ["retinanet" if word == "yolov2" else word for word in ANCHORED]
    pyramid += ["--set", "neck={channels: 16, levels: [3, 5]}"]
    found = document(
        ["anchors", "fit", *pyramid, "--anchors", "2", "--min-strides", "1", "--format", format], capsys
    )
    shapes = np.array(found["shapes"])
    assert shapes.shape == (3, 2, 2)
    assert (shapes >= np.array([8, 16, 32])[:, None, None]).all()
    assert yaml.safe_load((here / "anchors.yaml").read_text())


def test_online_clustering_starts_where_it_is_told_to(here: Path, capsys: Told) -> None:
    found = [
        np.array(document(["anchors", "fit", *ANCHORED, "--online", "--init", start], capsys)["shapes"])
        for start in ("identical", "uniform")
    ]
    assert np.abs(np.log(found[0] / found[1])).max() < np.log(1.1)  # 150 boxes


def test_the_baseline_is_the_initial_shapes_fixed_and_both_have_one_cost(here: Path, capsys: Told) -> None:
    start = ["--init", "identical", "--anchors", "4"]
    words = ["anchors", "train", *ANCHORED, *start, "--baseline", "--seeds", "2", "--out", "out"]
    told = document(words, capsys)
    runs = told["runs"]
    assert isinstance(runs, list)
    assert [r["side"] for r in runs] == ["baseline", "learned"] * 2
    over_seeds = told["comparisons"]["learned"]["over_seeds"]  # type: ignore[index]
    assert over_seeds["low"] <= over_seeds["high"]
    fixed, learned = (read_recipe(here / "out" / f"{side}-seed1") for side in ("baseline", "learned"))
    assert fixed.priors is not None and learned.priors is not None
    assert fixed.with_({"priors": None}).hash() == learned.with_({"priors": None}).hash()
    # 5 strides of 32 px would be larger than the image: both begin at its side
    assert fixed.priors.options["shapes"] == [[[64, 64]] * 4]
    capsys.readouterr()
    assert run(words) == 0  # nothing is trained again
    said = capsys.readouterr().err
    assert "4 of 4 initial shapes leave the bounds" in said and "the 2 trainings ended within" in said
    costs = {
        side: sum(p.numel() for p in load_detector(here / "out" / f"{side}-seed0")[0].parameters())
        for side in ("baseline", "learned")
    }
    assert costs["baseline"] == costs["learned"]


def test_learned_shapes_are_drawn_and_lie_over_an_assignment(here: Path, capsys: Told) -> None:
    assert run(["anchors", "train", *ANCHORED, "--out", "out"]) == 0
    folder = here / "out" / "learned-seed0"
    looks = document(["anchors", "show", "--run", str(folder), "--out", "pictures"], capsys)
    names = [s["name"] for s in looks["sets"]]  # type: ignore[attr-defined]
    assert names == ["learned-seed0, initial", "k-means", "learned-seed0"]
    assert {p.name for p in (here / "pictures").iterdir()} == {"plane.png", "shares.png"}
    (here / "assign.yaml").write_text("assign: {name: dynamic, counts: [[2]]}\n")
    both = ["--recipe", str(folder / "best.yaml"), "--recipe", "assign.yaml"]
    assert run(["train", *ANCHORED, *both, "--out", "both"]) == 0
    recipe = read_recipe(here / "both")
    assert recipe.priors is not None and recipe.assign is not None
    assert (recipe.priors.name, recipe.assign.name) == ("shapes", "dynamic")


def test_a_run_with_learned_shapes_and_a_warm_up_has_a_report(here: Path) -> None:
    # two epochs of three steps, of which the first alone is warm-up: its term is not in every step
    words = ["train", *ANCHORED, "--set", "priors=learned", "--epochs", "2", "--out", "run"]
    assert run([*words, "--set", "detector.warmup_images=8", "--set", "detector.warmup_fraction=1"]) == 0
    terms = [set(json.loads(row)) for row in (here / "run" / "log.jsonl").read_text().splitlines()]
    assert 0 < sum("warmup" in row for row in terms) < 3
    assert run(["report", "run"]) == 0
    page = (here / "run" / "report.html").read_text(encoding="utf-8")
    assert "Anchor shapes and ground truths" in page and "What each shape serves" in page


def test_runs_with_different_counts_are_not_drawn_together(here: Path, capsys: Told) -> None:
    for count in ("2", "3"):
        words = ["anchors", "train", *ANCHORED, "--init", "identical", "--anchors", count]
        assert run([*words, "--out", f"of{count}"]) == 0
    capsys.readouterr()
    assert run(["anchors", "show", "--run", "of2/learned-seed0", "--run", "of3/learned-seed0"]) == 2
    assert "of3/learned-seed0 has 3 shapes on 1 levels, not 2" in capsys.readouterr().err
