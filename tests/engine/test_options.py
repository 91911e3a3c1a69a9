"""What each option of optim, schedule and runtime does to the weights, against closed forms and hand computation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine import train as engine
from detsearch_cli.engine.journal import open_journal
from detsearch_cli.engine.machine import autocast, pick_device, precision
from detsearch_cli.engine.optimise import learning_rate, make_average, make_optimizer
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.recipe import Optim, Recipe, Schedule
from tests.engine.coco_folder import write_coco
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import small

CPU = torch.device("cpu")
ONE_STEP: dict[str, Any] = {"schedule": {"epochs": 1, "warmup_steps": 0, "eval_every": 0}}
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 24}


def initial(recipe: Recipe, classes: int = 5) -> Detector:
    """The detector as the training begins."""
    torch.manual_seed(recipe.seed)
    return build(recipe, classes)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ckpt.LOG).read_text().splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in log(folder) if "step" in entry]


# ---------------------------------------------------------------------- learning rate and optimiser


def test_step_schedule_drops_after_epochs_8_and_11_of_12_and_nowhere_else() -> None:
    schedule = Schedule(warmup_steps=0)
    rates = [learning_rate(Optim(lr=1.0), schedule, step, 7) for step in range(12 * 7)]
    assert rates == pytest.approx([1.0] * 56 + [0.1] * 21 + [0.01] * 7)


def test_cosine_schedule_is_its_closed_form_and_constant_stays() -> None:
    cosine, constant = (Schedule(epochs=5, name=n, warmup_steps=0) for n in ("cosine", "constant"))
    for step in range(20):
        expected = 0.02 * (1 + math.cos(math.pi * step / 20)) / 2
        assert learning_rate(Optim(lr=0.02), cosine, step, 4) == pytest.approx(expected)
        assert learning_rate(Optim(lr=0.02), constant, step, 4) == 0.02


def test_warm_up_is_linear_from_its_factor_and_multiplies_the_schedule() -> None:
    plain = Schedule(epochs=10, name="cosine", warmup_steps=0)
    warm = plain.model_copy(update={"warmup_steps": 4, "warmup_factor": 0.2})
    rates = [[learning_rate(Optim(), s, step, 8) for step in range(80)] for s in (warm, plain)]
    factors = [a / b for a, b in zip(*rates, strict=True)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 76)


def test_the_rate_of_the_schedule_is_the_rate_of_the_optimiser(tmp_path: Path) -> None:
    recipe = small(schedule={"epochs": 4, "name": "cosine", "warmup_steps": 100, "eval_every": 0})
    used: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        original = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *given: Any) -> Any:
            used.extend(group["lr"] for group in self.param_groups)
            return original(self, *given)

        patch.setattr(torch.optim.AdamW, "step", step)
        fit(recipe, tmp_path)
    expected = [learning_rate(recipe.optim, recipe.schedule, i, 3) for i in range(12)]
    assert used[::2] == used[1::2] == pytest.approx(expected)
    assert [e["lr"] for e in steps(tmp_path)] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_and_biases_norms_and_scales_do_not(name: str) -> None:
    model = initial(small())
    optim = Optim(name=name, lr=0.5, weight_decay=0.1)
    optimizer = make_optimizer(optim, model, steps=1)
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for n, p in model.named_parameters():
        decays = n.endswith("weight") and p.ndim == 4
        torch.testing.assert_close(p.detach(), before[n] * (0.95 if decays else 1.0), msg=n)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_parameter_moves_as_its_own_rate_says(name: str) -> None:
    moved = []
    for rate in (1.0, 0.1):
        model = initial(small())
        model.rate_of = lambda n, rate=rate: rate if n == "head.cls.weight" else 1.0  # type: ignore[method-assign]
        optimizer = make_optimizer(Optim(name=name, lr=0.5, weight_decay=0.0), model, steps=1)
        # with one rate for all, groups are as they were before parameters had any
        assert len(optimizer.param_groups) == (2 if rate == 1 else 4)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * group.get("lr_factor", 1.0)  # as the training loop does at every step
        optimizer.step()
        moved.append({n: before[n] - p.detach() for n, p in model.named_parameters()})
    for n, whole in moved[0].items():
        torch.testing.assert_close(moved[1][n], whole * (0.1 if n == "head.cls.weight" else 1.0), msg=n)


def test_clipping_limits_the_norm_of_the_step(tmp_path: Path) -> None:
    recipe = small(optim={**SGD, "clip_norm": 0.001}, **ONE_STEP)
    fit(recipe, tmp_path)
    before, after = dict(initial(recipe).named_parameters()), load_file(tmp_path / ckpt.LAST)
    moved = torch.stack([(after[n].double() - p.detach().double()).norm() for n, p in before.items()]).norm()
    assert float(moved) == pytest.approx(0.01 * 0.001, rel=0.02)  # weights of about 1 are rounded to 1e-7


def test_two_micro_batches_are_one_batch_where_they_hold_equally_many_positives(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", [[[8, 8, 24, 40], [30, 20, 32, 32]]] * 8, same=True)
    changes: dict[str, Any] = {
        "data": {"source": str(tmp_path / "data")},
        "augment": {"flip": 0.0},
        "backbone": {"frozen_bn": True},
        "schedule": {"epochs": 4, "warmup_steps": 0, "eval_every": 0},
    }
    for accumulate in (1, 2):
        recipe = small(**changes, optim={**SGD, "batch_size": 8, "accumulate": accumulate})
        fit(recipe, tmp_path / str(accumulate))
    one, two = (load_file(tmp_path / str(n) / ckpt.LAST) for n in (1, 2))
    first = dict(initial(recipe, 1).named_parameters())
    moved = max(float((one[n] - p.detach()).abs().max()) for n, p in first.items())
    assert moved > 1e-3
    for name in first:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-3 * moved, msg=name)


def test_a_last_group_of_fewer_micro_batches_is_a_step_of_its_own(tmp_path: Path) -> None:
    recipe = small(optim={"batch_size": 16, "accumulate": 2}, schedule={"epochs": 1, "eval_every": 0})
    fit(recipe, tmp_path)
    assert [e["step"] for e in steps(tmp_path)] == [1, 2]  # 24 images: 8 + 8, 8


# ---------------------------------------------------------------------- moving average


def test_the_average_is_the_hand_computed_one_and_is_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    original = AveragedModel.update_parameters

    def update(self: AveragedModel, model: nn.Module) -> None:
        seen.append({n: v.detach().clone() for n, v in model.state_dict().items()})
        original(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", update)
    recipe = small(optim={"ema": 0.25, "lr": 0.01}, schedule={"eval_every": 0})
    fit(recipe, tmp_path)
    expected = dict(seen[0])
    for n, weights in enumerate(seen[1:], 1):
        decay = min(0.25, (1 + n) / (10 + n))  # 2/11, 3/12, then 0.25
        for name, value in weights.items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value
    kept = load_file(tmp_path / ckpt.LAST)
    assert len(seen) == 6 and kept.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert any(not torch.allclose(kept[n], v, atol=1e-4) for n, v in seen[-1].items())


def test_a_short_average_forgets_the_first_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = make_average(Optim(ema=0.9999), model)
    assert average is not None and make_average(Optim(), model) is None
    for value in (0.0, *[1.0] * 30):
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    product = math.prod((1 + n) / (10 + n) for n in range(1, 31))
    assert float(average.module.weight.detach()) == pytest.approx(1 - product, abs=1e-5)


# ---------------------------------------------------------------------- precision and memory


def test_bfloat16_trains_on_a_cpu_and_resumes_exactly(tmp_path: Path) -> None:
    recipe = small(optim={"precision": "bf16"}, augment={"flip": 0.0})
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "cut", on_progress=stop_at(4))
    fit(recipe, tmp_path / "cut")
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    fit(small(augment={"flip": 0.0}), tmp_path / "full")
    half, full = (steps(tmp_path / name)[0]["classification"] for name in ("whole", "full"))
    assert half != full and half == pytest.approx(full, rel=0.02)


def test_float16_is_refused_on_a_cpu_and_auto_is_float32_there() -> None:
    with pytest.raises(RecipeError, match=r"optim\.precision 16 needs a GPU"):
        precision(Optim(precision="16"), CPU)
    assert precision(Optim(), CPU) == torch.float32
    with autocast(small(optim={"precision": "bf16"}), CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(small(), CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_device_that_does_not_exist_is_refused_in_one_sentence() -> None:
    with pytest.raises(CheckpointError, match=r"--device is auto, cpu, cuda or cuda:N, got 'gpu'"):
        pick_device("gpu")
    with pytest.raises(CheckpointError, match=r"--device"):
        pick_device("cuda:99")


def test_caches_and_workers_change_no_weight(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "augment": {"photometric": 0.5, "crop": 0.5},
        "schedule": {"epochs": 2, "eval_every": 0},
    }
    fit(small(**changes), tmp_path / "plain")
    for more in ({"cache": "ram"}, {"cache": "device"}, {"workers": 2}, {"workers": 2, "cache": "ram"}):
        folder = tmp_path / "-".join(map(str, more.values()))
        fit(small(**changes, runtime={"device": "cpu", **more}), folder)
        assert same_weights(tmp_path / "plain", folder), more


def test_channels_last_is_a_memory_layout_not_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[bool] = []
    original = Detector.training_loss

    def training_loss(self: Detector, images: Tensor, targets: Any) -> dict[str, Tensor]:
        weights = [p for p in self.parameters() if p.ndim == 4 and min(p.shape) > 1]
        both = [images, *weights]
        if self.training:  # not the look at the loss that a score rests on
            layouts.append(all(t.is_contiguous(memory_format=torch.channels_last) for t in both))
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", training_loss)
    for on in (True, False):
        recipe = small(optim=SGD, **ONE_STEP, runtime={"device": "cpu", "channels_last": on})
        fit(recipe, tmp_path / str(on))
    assert layouts == [True, False]
    a, b = (load_file(tmp_path / str(on) / ckpt.LAST) for on in (True, False))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_stages_and_batch_norms_end_as_they_began(tmp_path: Path) -> None:
    recipe = small(
        backbone={"frozen_stages": 2, "frozen_bn": True},
        optim={"lr": 0.01, "weight_decay": 0.1},
        schedule={"eval_every": 0},
    )
    fit(recipe, tmp_path)
    model, after = initial(recipe), load_file(tmp_path / ckpt.LAST)
    frozen_modules = {m for stage in model.backbone.stages()[:2] for top in stage for m in top.modules()}
    frozen_modules |= {m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)}
    frozen = {
        f"{name}.{key}".removeprefix(".")
        for name, module in model.named_modules()
        if module in frozen_modules
        for key in module.state_dict()
    }
    assert any("running_mean" in name for name in frozen) and any(
        "running_mean" not in name for name in frozen
    )
    for name, value in model.state_dict().items():
        if name.startswith("backbone"):
            assert torch.equal(after[name], value) == (name in frozen), name


# ---------------------------------------------------------------------- what is written


def test_tensorboard_holds_each_step_once_also_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = small(schedule={"epochs": 3}, runtime={"device": "cpu", "tensorboard": True})
    with pytest.raises(Stop):  # after two steps of the second epoch, which are done again
        fit(recipe, tmp_path, on_progress=stop_at(5))
    fit(recipe, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("lr", "classification", "regression", "centerness"):
        found = events.Scalars(name)
        assert [e.step for e in found] == list(range(1, 10)), name
        assert [e.value for e in found] == pytest.approx([e[name] for e in steps(tmp_path)])
    assert [e.step for e in events.Scalars("AP")] == [3, 6, 9]


def test_tensorboard_is_written_only_where_asked_for(tmp_path: Path) -> None:
    fit(small(**ONE_STEP), tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_without_evaluations_only_the_end_is_scored(tmp_path: Path) -> None:
    fit(small(schedule={"epochs": 3, "eval_every": 0}), tmp_path)
    assert [e["epoch"] for e in log(tmp_path) if "AP" in e] == [3]
    assert not (tmp_path / ckpt.BEST).exists()
    assert not (tmp_path / ckpt.RESUME).exists()


def test_best_are_the_weights_of_the_highest_ap_also_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Tensor]] = []
    original = engine.evaluate

    def evaluate(*given: Any) -> Any:
        result = original(*given)
        kept.append(load_file(tmp_path / ckpt.LAST))
        result.coco["AP"] = [0.1, 0.3, 0.3, 0.2, 0.25][len(kept) - 1]
        return result

    monkeypatch.setattr(engine, "evaluate", evaluate)
    recipe = small(schedule={"epochs": 4, "name": "constant"})
    with pytest.raises(Stop):
        fit(recipe, tmp_path, on_progress=stop_at(7))
    fit(recipe, tmp_path)
    best = load_file(tmp_path / ckpt.BEST)
    scored = [all(torch.equal(best[n], w[n]) for n in best) for w in kept]
    assert scored == [False, True, True, False, False]  # the evaluation before the stop is repeated


def test_the_log_goes_on_after_the_saved_step_without_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / ckpt.LOG
    entries = [
        {"step": 1, "epoch": 1},
        {"step": 2, "epoch": 1},
        {"epoch": 1, "AP": 0.4},
        {"step": 3, "epoch": 2},
    ]
    path.write_text("".join(json.dumps(e) + "\n" for e in entries) + '{"step": 4, "ep')
    with open_journal(path, 3, 2, False) as journal:
        assert journal.best_ap == 0.4
        journal.write(4, {"step": 4, "epoch": 2, "loss": math.nan})
    assert log(tmp_path) == [*entries, {"step": 4, "epoch": 2, "loss": None}]
    with open_journal(path, 2, 2, False) as journal:
        assert journal.evaluated(1) and not journal.evaluated(2)
    assert log(tmp_path) == entries[:3]
