"""Trainings whose anchors learn: exact resumption, what is kept, fragments over fragments, several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from detsearch_cli.detectors import build
from detsearch_cli.detectors._learned_part import LearnedGroup
from detsearch_cli.detectors._learning import ADAM_EPSILON, default_lr_factor
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.engine.trial import load_data
from detsearch_cli.recipe import Optim, Recipe, compose, read_fragment
from tests.engine.coco_folder import write_coco
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import SMALL, small

INITIAL = [[16.0, 16.0], [24.0, 40.0], [40.0, 24.0]]


def learning(detector: str = "retinanet", options: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """6 steps, 3 of them warm-up; 3 levels, but for yolov2's one."""
    priors = {"name": "learned", "init": INITIAL, "warmup_fraction": 0.5, **(options or {})}
    return small(detector=detector, priors=priors, **changes)


def anchors(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / ckpt.LOG).read_text().splitlines()]
    return [entry for entry in entries if "anchors" in entry]


@pytest.mark.parametrize(
    ("detector", "optim"),
    [
        ("retinanet", {"name": "sgd", "lr": 0.01}),
        ("atss", {"name": "adamw", "ema": 0.9, "accumulate": 2}),
        ("yolov2", {"name": "sgd", "lr": 0.001}),
        ("faster_rcnn", {"name": "sgd", "lr": 0.001}),
        ("ssd", {"name": "adamw"}),
    ],
)
def test_a_run_cut_off_ends_in_the_same_weights_shapes_and_log(
    tmp_path: Path, detector: str, optim: dict[str, Any]
) -> None:
    recipe = learning(detector, optim=optim)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(5))
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "whole" / "best.yaml").read_text() == (tmp_path / "cut" / "best.yaml").read_text()
    assert anchors(tmp_path / "whole") == anchors(tmp_path / "cut")


def test_the_shapes_are_logged_before_the_first_epoch_and_after_every_one(tmp_path: Path) -> None:
    fit(learning(options={"lr_factor": 20}), tmp_path)
    found = anchors(tmp_path)
    assert [entry["epoch"] for entry in found] == [0, 1, 2]
    assert found[0]["anchors"] == [INITIAL] * 3
    assert found[0]["anchors"] != found[1]["anchors"] != found[2]["anchors"]


def test_what_is_kept_is_the_detector_of_fixed_shapes_with_the_score_it_was_given(tmp_path: Path) -> None:
    recipe = learning(test={"score_threshold": 0.0})
    metrics = fit(recipe, tmp_path / "learned")
    fixed = small(detector="retinanet", priors={"name": "shapes", "shapes": INITIAL})
    fit(fixed, tmp_path / "fixed")
    ours, theirs = (load_file(tmp_path / name / ckpt.LAST) for name in ("learned", "fixed"))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert metrics["parameters"] == ckpt.read_metrics(tmp_path / "fixed")["parameters"]  # type: ignore[index]
    detector, kept, _ = ckpt.load_detector(tmp_path / "learned")
    assert detector.shapes is None and kept.priors is not None and kept.priors.name == "shapes"
    table = detect_split(detector, load_data(recipe.data).val, recipe, torch.device("cpu"))
    scored = DetectionTable.load(tmp_path / "learned" / ckpt.DETECTIONS, load_data(recipe.data).val)
    assert len(table.scores) == len(scored.scores) > 0
    assert table.scores == pytest.approx(scored.scores, abs=1e-5)


def test_the_fragment_is_the_best_weights_shapes_and_lies_over_an_assignment_and_trains(
    tmp_path: Path,
) -> None:
    fit(learning(), tmp_path / "learned")
    fragment = read_fragment(tmp_path / "learned" / "best.yaml")
    _, best, _ = ckpt.load_detector(tmp_path / "learned", ckpt.BEST)
    assert best.priors is not None and best.priors.options["shapes"] == fragment["priors"]["shapes"]
    assert fragment["priors"]["shapes"] in [e["anchors"] for e in anchors(tmp_path / "learned")[1:]]
    assignment = {"assign": {"name": "dynamic", "counts": [[3], [4], [5]]}}
    base = {**SMALL, "detector": "retinanet"}
    both = compose([("base", base), ("anchors.yaml", fragment), ("assign.yaml", assignment)])
    assert fit(both, tmp_path / "both")["AP"] >= 0
    # the other way round: a found assignment under shapes that go on learning
    more = {"priors": {"name": "learned", "init": fragment["priors"]["shapes"]}}
    fit(compose([("base", base), ("assign.yaml", assignment), ("more", more)]), tmp_path / "more")
    assert anchors(tmp_path / "more")[0]["anchors"] == fragment["priors"]["shapes"]


def test_the_fragment_of_one_level_is_one_list(tmp_path: Path) -> None:
    fit(learning(neck={"levels": [4, 4]}), tmp_path)
    fragment = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert fragment["priors"].keys() == {"name", "shapes"}
    assert [len(shape) for shape in fragment["priors"]["shapes"]] == [2, 2, 2]


def test_shapes_do_not_decay_and_learn_at_their_own_rate(tmp_path: Path) -> None:
    recipe = learning(options={"lr_factor": 3}, optim={"weight_decay": 0.1})
    detector = build(recipe, 5)
    optimizer = make_optimizer(recipe.optim, detector, steps=6)
    assert detector.shapes is not None
    (group,) = [
        g for g in optimizer.param_groups if any(p is detector.shapes.log_shapes for p in g["params"])
    ]
    assert group["weight_decay"] == 0 and len(group["params"]) == 1
    together = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(together) == len({id(p) for p in together}) == len(list(detector.parameters()))
    rates: list[list[float]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *given: Any) -> Any:
            rates.append([g["lr"] for g in self.param_groups])
            return original(self, *given)

        patch.setattr(torch.optim.AdamW, "step", step)
        fit(recipe, tmp_path)
    assert all(third == pytest.approx(3 * ADAM_EPSILON * first) for first, _, third in rates)


class LearnedScale:
    """A part that the engine has never heard of: the first level's scale of FCOS."""

    def __init__(self, detector: Detector) -> None:
        self.factor: torch.nn.Parameter = detector.head.scales[0].factor  # type: ignore[union-attr,index,assignment]

    def optimizer_group(self, optim: Optim, steps: int) -> LearnedGroup:
        return LearnedGroup((self.factor,), lr_factor=steps / optim.lr, adam_epsilon=0.5)

    def log_entry(self) -> dict[str, Any]:
        return {"scale": [round(self.factor.item(), 4)]}

    def fragment(self, deployed: Recipe) -> dict[str, Any]:
        return {"seed": deployed.seed + 7}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_whatever_part_a_detector_learns_is_optimised_logged_and_kept(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "learned_parts", lambda self: (LearnedScale(self),))
    recipe = small(optim={"name": name, "lr": 1e-6, "ema": 0.5}, runtime={"tensorboard": True}, seed=3)
    group = make_optimizer(recipe.optim, build(recipe, 5), steps=6).param_groups[-1]
    assert (len(group["params"]), group["weight_decay"], group["lr_factor"]) == (1, 0, 6e6)
    assert group.get("eps") == (0.5 if name == "adamw" else None)
    fit(recipe, tmp_path)
    entries = [json.loads(line) for line in (tmp_path / ckpt.LOG).read_text().splitlines()]
    scales = [entry["scale"] for entry in entries if "scale" in entry]
    assert len(scales) == 3 and scales[0] == [1.0] and scales[0] != scales[1] != scales[2]
    assert yaml.safe_load((tmp_path / ckpt.FRAGMENT).read_text()) == {"seed": 10}


@pytest.mark.parametrize(
    ("optim", "steps", "rate"),
    [
        (Optim(name="adamw", lr=0.002), 2000, 0.05),
        (Optim(name="adamw", lr=0.0001), 2000, 0.05),
        (Optim(name="adamw", lr=0.002), 20, 0.1),
        (Optim(name="sgd", lr=0.001, momentum=0.9), 2000, 0.005),
        (Optim(name="sgd", lr=0.001, momentum=0.9), 20, 0.01),
        (Optim(name="sgd", lr=0.001, momentum=0.9), 30_000, 0.001),  # the paper's
    ],
)
def test_shapes_go_equally_far_in_long_trainings_and_never_slower_than_weights(
    optim: Optim, steps: int, rate: float
) -> None:
    assert optim.lr * default_lr_factor(optim, steps) == pytest.approx(rate)


@pytest.mark.parametrize("detector", ["retinanet", "atss"])
def test_two_processes_learn_the_shapes_of_one(tmp_path: Path, detector: str) -> None:
    """Without the norm, whose statistics are each process's own, the gradient is that of the whole batch."""
    changes = {
        "backbone": {"frozen_bn": True},
        "augment": {"flip": 0.0},
        "optim": {"name": "sgd", "lr": 0.01},
    }
    found = {}
    for devices in (1, 2):
        options = {"bn": False, "lr_factor": 10, "clustering_weight": 1}
        recipe = learning(detector, options, runtime={"devices": devices}, **changes)
        fit(recipe, tmp_path / str(devices))
        found[devices] = torch.tensor(anchors(tmp_path / str(devices))[-1]["anchors"])
    start = torch.tensor(INITIAL).expand_as(found[1])
    assert (found[1] - start).abs().max() > 0.05
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=0.005)


def test_two_processes_with_every_technique_go_on_where_one_has_no_box(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", [[[5, 5, 30, 20]], *[[]] * 7])
    recipe = learning(runtime={"devices": 2}, data={"source": str(tmp_path / "set")}, optim={"batch_size": 2})
    assert fit(recipe, tmp_path / "run")["AP"] >= 0
