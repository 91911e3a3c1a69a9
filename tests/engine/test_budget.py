"""Budgets: a training that stops on its way and goes on later is the one that never stopped, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.trial import read_scores, run_trial
from detsearch_cli.errors import CheckpointError
from detsearch_cli.recipe import Recipe
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import small

SEARCHED: dict[str, Any] = {"schedule": {"epochs": 5, "eval_every": 0, "name": "cosine"}}


def log(folder: Path) -> list[dict[str, Any]]:
    """Every entry, without the seconds that it took."""
    entries = map(json.loads, (folder / ckpt.LOG).read_text().splitlines())
    return [{k: v for k, v in entry.items() if "seconds" not in k} for entry in entries]


def scores(metrics: dict[str, Any]) -> dict[str, Any]:
    times = ("train_seconds", "seconds", "scores")
    return {k: v for k, v in metrics.items() if k not in times}


LEARNED = {"detector": "retinanet", "priors": {"name": "learned", "init": [[16.0, 16.0], [24.0, 40.0]]}}


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": {"name": "sgd", "lr": 0.01}, "schedule": {"epochs": 5, "warmup_steps": 9}},
        {"optim": {"name": "adamw", "ema": 0.9, "accumulate": 2}, **SEARCHED},
        {"optim": {"name": "adamw", "ema": 0.9}, "schedule": {"epochs": 5, "eval_every": 3}},
        {**LEARNED, "optim": {"name": "sgd", "lr": 0.01, "ema": 0.9}, "schedule": {"epochs": 5}},
        {**LEARNED, "optim": {"name": "adamw"}, **SEARCHED},
    ],
)
def test_stopped_twice_it_ends_in_the_weights_log_and_metrics_of_one_that_never_stopped(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = small(**changes)
    whole = fit(recipe, tmp_path / "whole")
    budgets = tmp_path / "budgets"
    for until in (1, 4):
        part = fit(recipe, budgets, until=until)
        assert (part["epochs"], part["stopped"]) == (until, True)
        assert (budgets / ckpt.RESUME).is_file()
        assert not (budgets / ckpt.METRICS).exists()
    last = fit(recipe, budgets)
    assert scores(last) == scores(whole) and "stopped" not in last
    assert same_weights(tmp_path / "whole", budgets)
    assert log(budgets) == log(tmp_path / "whole")
    assert {p.name for p in budgets.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    if (budgets / ckpt.BEST).is_file():
        best = [load_file(run / ckpt.BEST) for run in (tmp_path / "whole", budgets)]
        assert all(torch.equal(best[0][k], best[1][k]) for k in best[0])
    if (budgets / ckpt.FRAGMENT).is_file():
        assert (budgets / ckpt.FRAGMENT).read_text() == (tmp_path / "whole" / ckpt.FRAGMENT).read_text()


def test_a_budget_has_the_weights_of_the_full_schedule_at_that_epoch(tmp_path: Path) -> None:
    recipe = small(**SEARCHED)
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(progress: Any) -> None:
        if progress.losses and progress.epoch == 3 and 2 not in kept:
            kept[2] = load_file(tmp_path / "whole" / ckpt.LAST)

    fit(recipe, tmp_path / "whole", on_progress=keep)
    part = fit(recipe, tmp_path / "part", until=2)
    stopped = load_file(tmp_path / "part" / ckpt.LAST)
    assert all(torch.equal(stopped[k], kept[2][k]) for k in stopped)
    shorter = fit(small(schedule={**SEARCHED["schedule"], "epochs": 2}), tmp_path / "shorter")
    assert shorter["recipe_hash"] != part["recipe_hash"]
    assert not same_weights(tmp_path / "part", tmp_path / "shorter")  # whose learning rate has come down


@pytest.mark.parametrize("until", [None, 5, 99])
def test_a_budget_of_all_epochs_or_more_is_the_whole(tmp_path: Path, until: int | None) -> None:
    metrics = fit(small(**SEARCHED), tmp_path, until=until)
    assert metrics["epochs"] == 5 and "stopped" not in metrics
    assert ckpt.read_metrics(tmp_path) == json.loads(json.dumps(metrics))


def test_the_same_budget_again_gives_the_same_metrics_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(small(**SEARCHED), tmp_path, until=2)
    monkeypatch.setattr("detsearch_cli.engine.train._Run._step", stop_at(1))
    assert fit(small(**SEARCHED), tmp_path, until=2) == first


def test_a_smaller_budget_than_what_is_trained_is_refused_but_not_of_a_finished_run(tmp_path: Path) -> None:
    recipe = small(**SEARCHED)
    fit(recipe, tmp_path, until=3)
    with pytest.raises(CheckpointError, match=r"trained beyond epoch 2 already.*more epochs, of 5 at most"):
        fit(recipe, tmp_path, until=2)
    whole = fit(recipe, tmp_path)
    assert fit(recipe, tmp_path, until=2) == whole
    with pytest.raises(CheckpointError, match="at least one epoch, got until=0"):
        fit(recipe, tmp_path / "none", until=0)
    assert not (tmp_path / "none").exists()


def test_interrupted_within_a_budget_it_goes_on_exactly(tmp_path: Path) -> None:
    recipe = small(**SEARCHED)
    fit(recipe, tmp_path / "whole")
    fit(recipe, tmp_path / "cut", until=1)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", until=4, on_progress=stop_at(8))
    fit(recipe, tmp_path / "cut", until=4)
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert log(tmp_path / "cut") == log(tmp_path / "whole")


def test_two_processes_stop_and_go_on_together(tmp_path: Path) -> None:
    recipe = small(**SEARCHED, runtime={"device": "cpu", "devices": 2})
    fit(recipe, tmp_path / "whole")
    assert fit(recipe, tmp_path / "part", until=2)["epochs"] == 2
    fit(recipe, tmp_path / "part")
    assert same_weights(tmp_path / "whole", tmp_path / "part")


def trial(recipe: Recipe, folder: Path, epochs: int | None) -> dict[str, Any]:
    metrics = run_trial(recipe.to_yaml(), str(folder), epochs)
    assert read_scores(folder) == metrics["scores"]
    assert metrics["scores"][-1] == [metrics["epochs"], metrics["AP"]]
    return metrics


def test_a_trial_tells_its_scores_on_the_way(tmp_path: Path) -> None:
    recipe = small(**SEARCHED)
    assert read_scores(tmp_path) == []
    parts = [trial(recipe, tmp_path, epochs) for epochs in (1, 1, 3, None)]
    assert [[epoch for epoch, _ in part["scores"]] for part in parts] == [[1], [1], [1, 3], [1, 3, 5]]
    assert [part.get("stopped", False) for part in parts] == [True, True, True, False]
    assert trial(recipe, tmp_path, None)["scores"] == parts[-1]["scores"]  # of the finished run
    every = trial(small(schedule={"epochs": 3}), tmp_path / "every", None)
    assert [epoch for epoch, _ in every["scores"]] == [1, 2, 3]


def test_scores_are_those_of_the_halved_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detsearch_cli.detectors.base import Detector

    original = Detector.training_loss
    recipe = small(**SEARCHED)
    trial(recipe, tmp_path, 2)

    def hungry(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if images.shape[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", hungry)
    again = trial(recipe, tmp_path, 3)
    assert again["halved_batch"] is True and [epoch for epoch, _ in again["scores"]] == [3]
