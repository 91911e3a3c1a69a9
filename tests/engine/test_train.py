"""The training loop: it resumes exactly, stops on NaN, and keeps what a run must keep."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.train import learning_rate, train
from detsearch_cli.engine.trial import load_data, run_trial, train_with_retry
from detsearch_cli.errors import CheckpointError, Diverged
from detsearch_cli.recipe import Optim, Recipe, Schedule
from tests.recipes import small


def fit(recipe: Recipe, folder: Path, **more: Any) -> dict[str, Any]:
    data = load_data(recipe.data)
    return train(recipe, data.train, data.val, folder, **more)


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def watch(progress: Any) -> None:
        if progress.step == step and progress.losses:
            raise Stop

    return watch


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a / ckpt.LAST), load_file(b / ckpt.LAST)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    fit(small(), tmp_path / "a")
    fit(small(), tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    fit(small(), tmp_path / "a")
    fit(small(seed=1), tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "optim", [{"name": "sgd", "lr": 0.01}, {"name": "adamw", "ema": 0.9, "accumulate": 2}]
)
def test_a_run_cut_off_after_an_epoch_ends_in_the_same_weights_and_log(
    tmp_path: Path, optim: dict[str, Any]
) -> None:
    recipe = small(optim=optim, augment={"photometric": 0.5, "crop": 0.5})
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(5))
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    logs = [(tmp_path / name / ckpt.LOG).read_text().splitlines() for name in ("whole", "cut")]
    steps = [[json.loads(line) for line in log if "step" in json.loads(line)] for log in logs]
    assert steps[0] == steps[1]
    assert [s["step"] for s in steps[0]] == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_in_the_middle_of_an_epoch_saves_and_resumes_exactly(tmp_path: Path) -> None:
    fit(small(), tmp_path / "whole")

    def interrupt(progress: Any) -> None:
        if progress.step == 2 and progress.losses:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(small(), tmp_path / "cut", on_progress=interrupt)
    assert (tmp_path / "cut" / ckpt.RESUME).is_file()
    fit(small(), tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_kill_9_loses_at_most_the_work_since_the_last_checkpoint(tmp_path: Path) -> None:
    recipe = small(schedule={"epochs": 3})
    fit(recipe, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    code = (
        "import sys; from detsearch_cli.engine.trial import run_trial; "
        "run_trial(open(sys.argv[1]).read(), sys.argv[2])"
    )
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "recipe.yaml"), str(folder)])
    deadline = time.monotonic() + 60
    while not (folder / ckpt.RESUME).is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    fit(recipe, folder)
    assert same_weights(tmp_path / "whole", folder)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(small(), tmp_path)
    assert fit(small(), tmp_path, on_progress=stop_at(1)) == first


def test_another_recipe_does_not_enter_a_used_folder(tmp_path: Path) -> None:
    fit(small(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match=r"optim\.lr is 0\.002 there, 0\.1 here"):
        fit(small(optim={"lr": 0.1}), tmp_path)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_a_loss_that_is_not_finite_stops_with_the_losses_and_the_images(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"not finite at step \d+ \(.*image ids \["):
        fit(small(optim={"name": "sgd", "lr": 1e9}, schedule={"warmup_steps": 0}), tmp_path)
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert told["image_ids"] and any(not math.isfinite(float(v)) for v in told["losses"].values())
    assert not (tmp_path / ckpt.METRICS).exists()


@pytest.mark.parametrize(("rate", "ema"), [(1e9, None), (1e15, None), (1e15, 0.9)])
def test_a_last_step_that_breaks_the_weights_is_no_score(
    rate: float, ema: float | None, tmp_path: Path
) -> None:
    """Its own loss, from before the step, is finite; there is no later one."""
    one_step = {"source": "shapes:images=8,val=4,test=4,size=64"}
    optim = {"name": "sgd", "lr": rate, "ema": ema, "clip_norm": None}
    recipe = small(data=one_step, optim=optim, schedule={"epochs": 1, "warmup_steps": 0})
    with pytest.raises(Diverged, match="not finite at step 1 "):
        fit(recipe, tmp_path)
    assert not (tmp_path / ckpt.METRICS).exists() and not (tmp_path / ckpt.LAST).exists()


def test_out_of_memory_retries_once_at_half_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Detector.training_loss

    def hungry(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if images.shape[0] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", hungry)
    recipe = small()
    metrics = train_with_retry(recipe, load_data(recipe.data), tmp_path / "run")
    assert metrics["halved_batch"] is True
    assert ckpt.read_recipe(tmp_path / "run").optim.accumulate == 2
    assert train_with_retry(recipe, load_data(recipe.data), tmp_path / "run") == metrics


def test_accumulated_micro_batches_see_every_image_once_an_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    original = Detector.training_loss
    recipe = small(optim={"accumulate": 4}, schedule={"epochs": 1})

    def count(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if self.training:  # the check after the last step computes a loss in eval mode, and trains nothing
            seen.append(images.shape[0])
        return original(self, images, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "training_loss", count)
        metrics = fit(recipe, tmp_path)
    assert seen == [2] * 12
    assert metrics["images"] == 24


def test_a_weights_file_alone_rebuilds_the_detector(tmp_path: Path) -> None:
    fit(small(), tmp_path)
    model, recipe, classes = ckpt.load_detector(tmp_path / ckpt.LAST)
    assert recipe.hash() == small().hash()
    assert len(classes) == model.num_classes
    assert not model.training


def test_a_truncated_weights_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    fit(small(), tmp_path)
    path = tmp_path / ckpt.LAST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is no complete safetensors file"):
        ckpt.load_detector(tmp_path)


def test_a_trial_returns_what_the_run_recorded(tmp_path: Path) -> None:
    result = run_trial(small().to_yaml(), str(tmp_path / "trial"))
    recorded = ckpt.read_metrics(tmp_path / "trial")
    assert recorded is not None
    assert result["AP"] == recorded["AP"]
    assert result["seconds"] >= recorded["train_seconds"]


def test_the_default_schedule_is_the_papers() -> None:
    optim, schedule = Optim(), Schedule()
    rates = [learning_rate(optim, schedule, e * 1000, 1000) for e in range(12)]
    assert rates[1:8] == [0.01] * 7
    assert rates[8:11] == pytest.approx([0.001] * 3)
    assert rates[11] == pytest.approx(0.0001)


def test_warm_up_never_takes_more_than_a_tenth_of_the_run() -> None:
    schedule = Schedule(epochs=10, warmup_steps=500)
    assert learning_rate(Optim(), schedule, 0, 10) == pytest.approx(0.01 / 3)
    assert learning_rate(Optim(), schedule, 10, 10) == pytest.approx(0.01)
