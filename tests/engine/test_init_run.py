"""A training that starts from another run: it begins there, goes on without it, and is that run's equal in nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.train import train
from detsearch_cli.engine.trial import load_data, run_trial
from detsearch_cli.recipe import Recipe, with_fragment
from tests.recipes import small


class Stop(Exception):
    pass


def fit(recipe: Recipe, folder: Path, **more: Any) -> dict[str, Any]:
    data = load_data(recipe.data)
    return train(recipe, data.train, data.val, folder, **more)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / ckpt.LOG).read_text(encoding="utf-8").splitlines())
    return [line["classification"] for line in lines if "classification" in line]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    fit(small(), tmp_path / "first")
    return tmp_path / "first"


def test_a_training_begins_where_another_ended(trained: Path, tmp_path: Path) -> None:
    # so small a step that the weights stay what they were
    recipe = with_fragment(
        small(schedule={"epochs": 1}), {"init": str(trained), "optim": {"name": "sgd", "lr": 1e-12}}
    )
    metrics = fit(recipe, tmp_path / "second")
    assert recipe.init is not None
    assert metrics["started_from"] == recipe.init.model_dump(mode="json")
    before, after = load_file(recipe.init.file), load_file(tmp_path / "second" / ckpt.LAST)
    # but for what batch norm has seen
    for key in (
        key for key in before if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ):
        torch.testing.assert_close(after[key], before[key])
    assert losses(tmp_path / "second")[0] < losses(trained)[0]


def test_an_interrupted_run_and_its_weights_need_no_more_what_it_began_with(
    trained: Path, tmp_path: Path
) -> None:
    recipe = with_fragment(small(), {"init": str(trained)})
    fit(recipe, tmp_path / "whole")

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop)
    assert recipe.init is not None
    recipe.init.file.unlink()
    fit(recipe, tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / ckpt.LAST) for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert ckpt.load_detector(tmp_path / "cut")[1].init == recipe.init


def test_a_trial_starts_from_the_recipe_alone(trained: Path, tmp_path: Path) -> None:
    recipe = with_fragment(small(schedule={"epochs": 1}), {"init": str(trained)})
    run_trial(recipe.to_yaml(), str(tmp_path / "trial"))
    assert losses(tmp_path / "trial")[0] < losses(trained)[0]
