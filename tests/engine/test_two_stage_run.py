"""Detectors that draw samples in every step: resumed exactly, on every rank, and scored with their proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detsearch_cli.cli.app import run
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.state import State
from detsearch_cli.recipe import Recipe
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import small

TWO_STAGES: dict[str, Any] = {
    "detector": {"name": "faster_rcnn", "width": 16, "regions": 32, "proposals": 50},
    "loss": {"name": "rpn", "samples": 64},
    "priors": {"name": "anchors", "base": 2, "scales": 1},
    "test": {"score_threshold": 0.0},
}


def two_stages(**changes: Any) -> Recipe:
    return small(**{**TWO_STAGES, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(two_stages(optim={"accumulate": 2}), folder)
    return folder


def test_a_run_cut_off_ends_in_the_same_weights(whole: Path, tmp_path: Path) -> None:
    recipe = two_stages(optim={"accumulate": 2})
    with pytest.raises(Stop):
        fit(recipe, tmp_path, on_progress=stop_at(5))
    torch.manual_seed(99)  # as another process would have it
    fit(recipe, tmp_path)
    assert same_weights(whole, tmp_path)


def test_a_loss_that_remembers_the_epoch_before_goes_on_from_it(tmp_path: Path) -> None:
    recipe = two_stages(region_loss={"name": "alrp"})
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(5))
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_metrics_hold_the_recall_of_the_proposals(whole: Path) -> None:
    metrics = json.loads((whole / ckpt.METRICS).read_text())
    found = metrics["proposals"]
    assert list(found) == ["AR50", "AR100", "AR1000", "recall50", "recall100", "recall1000"]
    assert 0 < found["AR50"] == found["AR1000"] <= found["recall1000"] <= 1  # 50 proposals are all there are


def test_every_rank_draws_its_own_and_again_the_same_after_a_resumption() -> None:
    class Rank:
        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    def draws(rank: int, step: int) -> list[float]:
        state = State(torch.nn.Identity(), {}, None, None, Rank(rank))  # type: ignore[arg-type]
        state.step = step
        state.seed_step(7)
        return torch.rand(4).tolist()

    first = draws(0, 3)
    assert draws(1, 3) != first and draws(0, 4) != first
    assert draws(0, 3) == first


def test_the_command_line_tells_the_recall_of_the_proposals(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(whole), "--split", "val", "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["proposals"] == json.loads((whole / ckpt.METRICS).read_text())["proposals"]
    assert run(["eval", str(whole), "--split", "val", "--device", "cpu"]) == 0
    assert "recall of the proposals" in capsys.readouterr().err
