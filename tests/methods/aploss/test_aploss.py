"""Candidates as curves, curves as a loss that trains, and what is shown of them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detsearch_cli import api
from detsearch_cli.detectors import build
from detsearch_cli.errors import RecipeError, SpaceError
from detsearch_cli.methods.aploss.space import FUNCTIONS, HIGH, LOW, curves, space
from detsearch_cli.methods.base import load_method
from detsearch_cli.recipe import Recipe, build_part, with_fragment
from detsearch_cli.search.past import sampler_of
from detsearch_cli.search.samplers.ppo2 import PPO2
from detsearch_cli.search.space import Candidate
from detsearch_cli.session.pages import write_study_page
from detsearch_cli.session.study import study_of
from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP
from detsearch_cli.structures import Targets
from tests.recipes import SMALL, skip_without_extra, small


def started(segments: int = 5, shared: bool = False, scale: bool = True) -> Candidate:
    return {p.name: p.start for p in space(segments, shared, scale, [""]).parameters}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("segments", "shared", "scale", "numbers"),
    [
        (5, False, True, 41),
        (5, False, False, 40),
        (5, True, True, 9),
        (3, False, True, 21),
        (7, False, True, 61),
    ],
)
def test_the_spaces_are_the_paper_s(segments: int, shared: bool, scale: bool, numbers: int) -> None:
    assert len(space(segments, shared, scale, [""]).parameters) == numbers


@pytest.mark.parametrize("segments", [2, 5, 32])
def test_the_search_begins_at_the_identity_with_a_scale_of_1(segments: int) -> None:
    begin = started(segments)
    assert begin["scale"] == 1.0
    for points in curves(begin, segments, ""):
        assert np.array(points) == pytest.approx(np.stack([np.linspace(0, 1, segments + 1)] * 2, 1), abs=1e-5)


def test_the_knots_solve_equation_8() -> None:
    rng = np.random.default_rng(0)
    candidate = space(5, False, True, [""]).sample(rng)
    for name, points in zip(FUNCTIONS, curves(candidate, 5, ""), strict=True):
        for k, ((x0, y0), (x, y)) in enumerate(pairwise(points[:-1]), start=1):
            assert x == pytest.approx(x0 + candidate[f"{name}.x{k}"] * (1 - x0), abs=2e-6)
            assert y == pytest.approx(y0 + candidate[f"{name}.y{k}"] * (1 - y0), abs=2e-6)


@pytest.mark.parametrize("segments", [2, 5, 32])
def test_every_candidate_is_a_loss_at_the_ends_of_the_space_too(segments: int) -> None:
    rng, own = np.random.default_rng(1), space(segments, False, True, [""])
    ends = [dict.fromkeys(own.names, end) | {"scale": 1.0} for end in (LOW, HIGH)]
    mixed = [{n: float(rng.choice([LOW, HIGH])) for n in own.names} | {"scale": 10.0} for _ in range(20)]
    for candidate in (*ends, *mixed, *(own.sample(rng) for _ in range(20))):
        points = curves(candidate, segments, "")
        ParameterizedAP.model_validate({"curves": points})  # raises for knots that coincide or fall
        assert all(round(v, 6) == v for curve in points for point in curve for v in point)


def test_one_curve_is_shared_by_all_five_functions() -> None:
    candidate = space(4, True, False, [""]).sample(np.random.default_rng(2))
    points = curves(candidate, 4, "")
    assert all(curve == points[0] for curve in points) and len(points) == 5


def fragment(recipe: Recipe, **options: Any) -> dict[str, Any]:
    method = load_method("aploss", options)
    return dict(method.fragment(recipe, method.space(recipe).sample(np.random.default_rng(3))))


@pytest.mark.parametrize("detector", ["fcos", "atss", "retinanet"])
def test_a_fragment_names_every_option_and_leaves_centerness_to_the_loss(detector: str) -> None:
    recipe = small(detector=detector)
    made = fragment(recipe)
    assert set(made["loss"]) == {"name", *ParameterizedAP.model_fields}
    laid = with_fragment(recipe, made)
    assert isinstance(build_part("slots.losses", laid.loss, "loss"), ParameterizedAP)
    assert laid.detector.options.get("centerness") in (False, None)
    assert recipe.detector.options.get("centerness") in (True, None)
    assert laid.hash() == with_fragment(laid, made).hash()


def test_both_losses_of_two_stages_are_searched_at_once() -> None:
    recipe = small(detector="faster_rcnn")
    method = load_method("aploss", {})
    own = method.space(recipe)
    assert len(own.names) == 82 and own.names[0] == "rpn.f1.x1" and own.names[-1] == "regions.scale"  # type: ignore[attr-defined]
    made = dict(method.fragment(recipe, own.sample(np.random.default_rng(4))))
    assert made["loss"]["curves"] != made["region_loss"]["curves"]
    laid = with_fragment(recipe, made)
    detector = build(laid, 3)
    assert detector.options.regions is None  # type: ignore[attr-defined]
    assert [table.title for table in method.tables(laid)] == ["Curves found", "Curves found for regions"]
    boxes = torch.tensor([[8.0, 8, 40, 50], [20, 20, 60, 60]])
    terms = detector.training_loss(
        torch.rand(1, 3, 64, 64), Targets.from_lists([boxes], [torch.tensor([0, 2])])
    )
    assert set(terms) == {"rpn_ap", "ap"} and all(t.isfinite() for t in terms.values())


def test_the_one_loss_of_deformable_detr_is_searched() -> None:
    recipe = small(detector={"name": "deformable_detr", "queries": 20, "layers": 2})
    skip_without_extra(recipe)
    made = fragment(recipe)
    assert set(made) == {"loss"}
    detector = build(with_fragment(recipe, made), 3)
    boxes = torch.tensor([[8.0, 8, 40, 50], [20, 20, 60, 60]])
    terms = detector.training_loss(
        torch.rand(1, 3, 64, 64), Targets.from_lists([boxes], [torch.tensor([0, 2])])
    )
    assert set(terms) == {"ap", "ap.earlier"} and all(t.isfinite() for t in terms.values())


def test_what_it_cannot_search_is_refused() -> None:
    for detector in ("yolov2", "ssd"):
        with pytest.raises(SpaceError, match=f"deformable_detr and faster_rcnn, got the detector {detector}"):
            load_method("aploss", {}).space(api.recipe_of({"detector": detector}))
    with pytest.raises(SpaceError, match="one of giou, iou, l1, got 'diou'"):
        load_method("aploss", {"localisation": "diou"}).space(small())


def test_a_search_trains_its_rounds_and_what_it_finds_is_shown(tmp_path: Path) -> None:
    found = api.search(
        "aploss", SMALL, options={"segments": 2}, trials=9, noise_seeds=1, name="s", out=tmp_path
    )
    trials = found.outcome.trials
    assert [t.state for t in trials] == ["complete"] * 10
    assert trials[1].fragment["loss"]["name"] == "parameterized_ap"
    recipe = with_fragment(small(), trials[3].fragment)
    method = load_method("aploss", {})
    (table,) = method.tables(recipe)
    assert list(table.columns) == ["knot", "f1", "f2", "f3", "f4", "f5"]
    assert table.rows[0] == ["0", *["0.000 0.000"] * 5] and len(table.rows) == 3
    shown = method.show(recipe, [], None)
    assert (
        "multiplied by" in shown.notes[0]
        and shown.content["loss"]["curves"][1][0] == (0.0, 0.0)
        and shown.figures["curves"].png[:4] == b"\x89PNG"
    )
    assert (tmp_path / "s" / "best.yaml").exists()
    study = study_of(tmp_path / "s")
    (picture,) = load_method("aploss", {"segments": 2}).study_figures(study)
    assert "each of 2 rounds" in picture.caption and picture.png[:4] == b"\x89PNG"
    assert "Where the search went" in write_study_page(tmp_path / "s").read_text()
    # the second mean is where the sampler that goes on would draw from
    sampler = sampler_of(study)
    assert isinstance(sampler, PPO2) and sampler.means()[0] == pytest.approx(started(2), abs=1e-6)
    assert sampler.means()[1] != sampler.means()[0]
    with pytest.raises(RecipeError, match="aploss show needs a loss parameterized_ap with curves"):
        method.show(small(), [], None)
