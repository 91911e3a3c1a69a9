"""Every recipe in examples/recipes trains, as `--recipe FILE` gives it, with a small detector on shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detsearch_cli.cli.app import run
from detsearch_cli.detectors import build
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import find_fragment, published
from detsearch_cli.recipe import compose, read_fragment, with_fragment
from detsearch_cli.structures import Targets
from tests.recipes import EXTRAS, skip_without_extra

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
    names = ("retinanet", "fcos", "atss", "yolov2", "faster_rcnn", "ssd", *EXTRAS)
    detector = next(name for name in names if name in path.stem)
    own = ("detector.layers=1",) if detector == "deformable_detr" else ()
    skip_without_extra(compose([("test", {"detector": detector})]))
    sets = [part for item in (*SMALL, *own) for part in ("--set", item)]
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
    regression = {"faster_rcnn": "rpn_regression", "deformable_detr": "giou"}.get(detector, "regression")
    assert losses[0][regression] > 0  # some ground truth has a positive


@pytest.mark.parametrize("name", published())
@pytest.mark.parametrize("detector", ["retinanet", "fcos", "faster_rcnn"])
def test_a_published_fragment_trains(name: str, detector: str) -> None:
    recipe = compose([("small", {"detector": detector, "backbone": "tiny", "neck": {"channels": 16}})])
    fragment = find_fragment(name)
    torch.manual_seed(0)
    # centerness is FCOS's, and a second stage Faster R-CNN's
    if ("region_loss" in fragment and detector != "faster_rcnn") or (
        name == "focal-giou" and detector != "fcos"
    ):
        with pytest.raises(RecipeError):
            build(with_fragment(recipe, fragment), 3)
        return
    model = build(with_fragment(recipe, fragment), 3)
    boxes = torch.tensor([[8.0, 8, 60, 90], [30, 20, 100, 70]])
    targets = Targets.from_lists([boxes], [torch.tensor([0, 2])])
    terms = model.training_loss(torch.rand(1, 3, 128, 128), targets)
    assert all(term.isfinite() for term in terms.values())


def test_a_name_that_is_neither_file_nor_published_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'pap-cubic' is no file, and none of the published fragments"):
        find_fragment("pap-cubic")
    own = tmp_path / "ap-loss"
    own.write_text("optim: {lr: 0.5}\n")
    assert find_fragment(str(own)) == {"optim": {"lr": 0.5}}
