"""A training whose loss has no slope where it stays ends as failed, wherever it was interrupted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detsearch_cli.detectors.fcos import FCOS
from detsearch_cli.engine import divergence
from detsearch_cli.engine.train import Progress, train
from detsearch_cli.engine.trial import load_data
from detsearch_cli.errors import Diverged
from detsearch_cli.recipe import Recipe
from detsearch_cli.slots.losses.parameterized_ap import ParameterizedAP
from detsearch_cli.structures import Dense
from tests.recipes import small


def stuck_recipe() -> Recipe:
    """Scores that are all equal beyond any curve's reach: the positives' curve is 0 nearly everywhere."""
    flat = [[0, 0], [0.999999, 0], [1, 1]]
    loss: dict[str, Any] = {"name": "parameterized_ap", "curves": [flat] * 5}
    return small(loss=loss, schedule={"epochs": 3, "eval_every": 0})


def test_it_ends_after_so_many_steps_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "MOST_STUCK", 5)
    recipe = stuck_recipe()
    data = load_data(recipe.data)
    with pytest.raises(Diverged, match=r"stayed for 5 steps where it has no slope, up to step 5 \(ap 1\)"):
        train(recipe, data.train, data.val, tmp_path / "run")


def test_an_interrupted_training_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "MOST_STUCK", 5)
    recipe = stuck_recipe()
    data = load_data(recipe.data)

    def interrupt(at: Progress) -> None:
        if at.step == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, data.train, data.val, tmp_path / "run", interrupt)
    with pytest.raises(Diverged, match="up to step 5 "):
        train(recipe, data.train, data.val, tmp_path / "run")


@pytest.mark.parametrize("loss", ["parameterized_ap", "ap_loss", "alrp", "rank_sort"])
def test_a_ranking_of_scores_that_are_no_numbers_ends_as_diverged_with_its_images(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = FCOS.forward

    def forward(self: FCOS, images: torch.Tensor) -> Dense:
        dense = original(self, images)
        return (
            replace(dense, maps=(dense.maps[0] * math.nan, *dense.maps[1:]))
            if self.step.index == 2
            else dense
        )

    monkeypatch.setattr(FCOS, "forward", forward)
    recipe = small(loss=loss, schedule={"epochs": 1, "eval_every": 0})
    data = load_data(recipe.data)
    with pytest.raises(Diverged, match=r"step 3 .*images? "):
        train(recipe, data.train, data.val, tmp_path / "run")


def test_a_loss_is_stuck_at_one_alone() -> None:
    loss = ParameterizedAP()
    assert loss.stuck({"ap": 1.0}) and loss.stuck({"ap": 1 - 5e-7})
    assert not loss.stuck({"ap": 0.99999}) and not loss.stuck({"ap": 0.0})
