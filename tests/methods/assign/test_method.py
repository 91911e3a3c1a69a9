"""A candidate becomes a recipe that trains; the published numbers are the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from detsearch_cli.detectors import build
from detsearch_cli.errors import SpaceError
from detsearch_cli.methods.assign.method import Assign
from detsearch_cli.methods.assign.options import Options
from detsearch_cli.recipe import build_part, compose, read_fragment, with_fragment
from detsearch_cli.slots.assigners.dynamic import Dynamic
from detsearch_cli.structures import Targets
from tests.recipes import skip_without_extra, small

RECIPES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
TABLE_1 = {
    "retinanet": "11,11,20 44,58,51 40,70,60 41,55,80 47,77,73",
    "fcos": "17,15,15 20,15,25 15,17,21 16,25,19 20,4,3",
    "atss": "7,11,12 27,29,25 20,20,22 18,22,31 3,31,24",
}
TABLE_5 = {
    "hps_fcos_levels": "5 19 25 24 20",
    "hps_fcos_aspects5": "10,16,16,8,25",
    "hps_fcos_aspects3": "16,25,21",
    "hps_fcos_single": "24",
}


@pytest.mark.parametrize(("detector", "largest"), [("retinanet", 80), ("fcos", 25), ("atss", 32)])
def test_the_largest_count_is_the_papers_for_each_detector(detector, largest):
    recipe = small(detector=detector)
    assert {p.high for p in Assign().space(recipe).parameters} == {largest}
    assert {p.high for p in Assign(Options(max_count=7)).space(recipe).parameters} == {7}


@pytest.mark.parametrize("bins", [None, "3,3,3", "1,1,1", "5", "3", "1"])
def test_every_candidate_becomes_a_recipe_with_its_counts_and_nothing_else_changed(bins):
    recipe, method = small(), Assign(Options(bins=bins))
    candidate = method.space(recipe).sample(np.random.default_rng(3))
    made = with_fragment(recipe, method.fragment(recipe, candidate))
    assigner = build_part("slots.assigners", made.assign, "assign")
    assert isinstance(assigner, Dynamic)
    assert [c for row in assigner.counts for c in row] == list(candidate.values())
    assert assigner.edge_rows() == method.groups(recipe).edges
    assert with_fragment(made, {"assign": None}) == recipe


def test_a_fragment_survives_yaml_and_gives_the_same_recipe():
    recipe, method = small(), Assign(Options(bins="3", edges="1,3", alpha=0.7))
    candidate = method.space(recipe).sample(np.random.default_rng(0))
    fragment = method.fragment(recipe, candidate)
    again = with_fragment(recipe, yaml.safe_load(yaml.safe_dump(fragment)))
    assert again.hash() == with_fragment(recipe, fragment).hash()


def test_a_searched_assignment_replaces_an_earlier_one_whole():
    before = small(assign={"name": "dynamic", "counts": [[4]], "alpha": 9.0, "min_iou": 0.3})
    method = Assign(Options(bins="1"))
    after = with_fragment(before, method.fragment(before, {"all": 6}))
    assert after.assign.options == {"counts": [[6]], "edges": [[]], "alpha": 1.5, "min_iou": 0.1}


def test_defaults_are_the_assigners():
    assert (Options().alpha, Options().min_iou) == (Dynamic().alpha, Dynamic().min_iou)
    assert Assign.sampler == "dycors"


def test_a_candidate_outside_the_space_is_refused():
    with pytest.raises(SpaceError, match=r"all must lie in 1\.\.25, got 26"):
        Assign(Options(bins="1")).fragment(small(), {"all": 26})
    with pytest.raises(SpaceError, match="3 levels P3 to P5"):
        Assign(Options(bins="3,3,3,3,3")).space(small())


def numbers(name: str) -> str:
    rows = read_fragment(RECIPES / f"{name}.yaml")["assign"]["counts"]
    return " ".join(",".join(map(str, row)) for row in rows)


def test_examples_hold_the_published_numbers():
    assert {d: numbers(f"hps_{d}") for d in TABLE_1} == TABLE_1
    assert {name: numbers(name) for name in TABLE_5} == TABLE_5
    assert {p.stem for p in RECIPES.glob("hps_*.yaml")} == {f"hps_{d}" for d in TABLE_1} | set(TABLE_5)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("hps_*.yaml")), ids=lambda p: p.stem)
def test_published_recipes_train_as_they_are(path):
    detector = path.stem.split("_")[1]
    base = small(detector=detector, neck={"channels": 16, "levels": [3, 7]})
    recipe = compose([("base", base.model_dump(mode="json")), (path.name, read_fragment(path))])
    torch.manual_seed(0)
    model = build(recipe, 3)
    boxes = [torch.tensor([[4.0, 4, 40, 60], [20, 20, 120, 70]]), torch.zeros(0, 4)]
    targets = Targets.from_lists(boxes, [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)])
    loss = sum(model.training_loss(torch.randn(2, 3, 128, 128), targets).values())
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    "detector", ["faster_rcnn", {"name": "faster_rcnn", "fpn": False}, "ssd", "yolov2", "deformable_detr"]
)
def test_counts_by_level_fit_detectors_with_levels_of_their_own(detector):
    recipe = small(detector=detector)
    skip_without_extra(recipe)
    candidate = Assign().space(recipe).sample(np.random.default_rng(0))
    made = build(with_fragment(recipe, Assign().fragment(recipe, candidate)), 5)
    assert isinstance(made.assigner, Dynamic) and len(made.assigner.counts) == len(made.strides)
