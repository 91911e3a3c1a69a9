"""Every recipe in examples/recipes trains, as `--recipe FILE` gives it, with a small detector on shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.recipe import read_fragment

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
SMALL = (
    "backbone.name=tiny",
    "neck.channels=16",
    "head.convs=1",
    "optim.batch_size=4",
    "schedule.eval_every=0",
)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_example_recipe_trains(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = next(
        name for name in ("retinanet", "fcos", "atss", "yolov2", "faster_rcnn", "ssd") if name in path.stem
    )
    sets = [part for item in SMALL for part in ("--set", item)]
    arguments = [
        "train",
        "--recipe",
        str(path),
        "--detector",
        detector,
        "--data",
        "shapes:images=8,val=4,size=64",
    ]
    options = ["--image-size", "64", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path), "--json"]
    assert run([*arguments, *options, *sets]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 1
    recipe = ckpt.read_recipe(tmp_path)
    fragment = read_fragment(path)
    if "assign" in fragment:
        assert recipe.assign is not None and recipe.assign.name == "dynamic"
        assert recipe.assign.options["counts"] == fragment["assign"]["counts"]
    losses = [json.loads(line) for line in (tmp_path / ckpt.LOG).read_text().splitlines()]
    assert [entry.get("step") for entry in losses] == [1, 2, None]
    term = "rpn_regression" if detector == "faster_rcnn" else "regression"
    if "loss" in fragment:  # one for both tasks
        term = "ap"
    assert losses[0][term] > 0  # some ground truth has a positive
