"""Deformable DETR through the training loop: cut off and resumed, averaged, started from, in two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.engine.trial import load_data
from tests.engine.coco_folder import write_coco
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import skip_without_extra, small

DETR: dict[str, Any] = {
    "detector": {"name": "deformable_detr", "queries": 20, "layers": 2},
    "neck": {"channels": 32, "levels": [4, 5]},
}


@pytest.fixture(autouse=True)
def with_its_extra() -> None:
    skip_without_extra(small(**DETR))


def losses(folder: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (folder / ckpt.LOG).read_text().splitlines()]
    return [entry for entry in entries if "step" in entry]


def test_a_run_cut_off_ends_in_the_same_weights_and_log(tmp_path: Path) -> None:
    recipe = small(**DETR, optim={"ema": 0.9, "accumulate": 2})
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(5))
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert {"l1", "l1.earlier", "giou", "classification"} <= losses(tmp_path / "cut")[0].keys()


def test_its_weights_build_it_again(tmp_path: Path) -> None:
    recipe = small(**DETR)
    fit(recipe, tmp_path)
    detector, kept, classes = ckpt.load_detector(tmp_path)
    assert kept.hash() == recipe.hash()
    data = load_data(recipe.data)
    table = detect_split(detector, data.val, kept, torch.device("cpu"))
    trained = DetectionTable.load(tmp_path / ckpt.DETECTIONS, data.val)
    assert len(table.scores) == 8 * len(classes) * 20  # every query as every class
    # to rounding: weights that are trained lie in memory in another order
    np.testing.assert_allclose(table.scores, trained.scores, rtol=1e-4)


def test_two_processes_finish_where_one_has_no_ground_truth(tmp_path: Path) -> None:
    boxes = [[[8.0, 8, 24, 40], [30, 20, 32, 32]] if i % 4 == 0 else [] for i in range(16)]
    write_coco(tmp_path / "data", boxes)
    two = {"runtime": {"device": "cpu", "devices": 2}, "data": {"source": str(tmp_path / "data")}}
    metrics = fit(small(**DETR, **two, schedule={"epochs": 1}), tmp_path / "run")
    assert metrics["epochs"] == 1 and len(losses(tmp_path / "run")) == 2
