"""YOLOv2 trained as its recipe says: several sizes, random placement, the first images; resumed, and in two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from tests.engine.coco_folder import write_coco
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import small

YOLO: dict[str, Any] = {
    "detector": {"name": "yolov2", "channels": 32, "warmup_fraction": 0.5},
    "priors": {"name": "shapes", "shapes": [[12, 12], [30, 20], [24, 44]]},
    "optim": {"name": "sgd", "lr": 0.001},
    "augment": {
        "jitter": 0.3,
        "scale": [0.25, 2],
        "hue": 0.1,
        "saturation": 1.5,
        "exposure": 1.5,
        "multi_scale": [32, 64, 96],
        "multi_scale_every": 2,
    },
}
TWO: dict[str, Any] = {"runtime": {"device": "cpu", "devices": 2}}


def losses(folder: Path) -> list[dict[str, float]]:
    entries = [json.loads(line) for line in (folder / ckpt.LOG).read_text().splitlines()]
    return [entry for entry in entries if "step" in entry]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sides of the batches that are trained on, as they come."""
    seen: list[int] = []
    original = Detector.training_loss

    def watched(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if self.training:  # not the look at the loss that a score rests on
            seen.append(images.shape[2])
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", watched)
    return seen


def test_a_run_cut_off_goes_on_with_the_same_sizes_and_ends_in_the_same_weights(
    tmp_path: Path, sizes: list[int]
) -> None:
    recipe = small(**YOLO, schedule={"epochs": 4})  # 12 steps
    fit(recipe, tmp_path / "whole")
    expected, sizes[:] = list(sizes), []
    assert expected[::2] == expected[1::2] and len(set(expected)) > 1
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(8))  # in the third epoch: it begins anew
    fit(recipe, tmp_path / "cut")
    assert sizes == expected[:8] + expected[6:]
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_the_warm_up_of_coordinates_ends_where_it_should(tmp_path: Path) -> None:
    fit(small(**YOLO, schedule={"epochs": 2}), tmp_path)
    assert ["warmup" in entry for entry in losses(tmp_path)] == [True] * 3 + [False] * 3


def test_two_processes_finish_where_one_has_no_ground_truth(tmp_path: Path) -> None:
    boxes = [[[8.0, 8, 24, 40], [30, 20, 32, 32]] if i % 4 == 0 else [] for i in range(16)]
    write_coco(tmp_path / "data", boxes)
    recipe = small(**YOLO, **TWO, data={"source": str(tmp_path / "data")}, schedule={"epochs": 2})
    metrics = fit(recipe, tmp_path / "run")
    assert metrics["epochs"] == 2 and len(losses(tmp_path / "run")) == 4
