"""Run folders: what a user put there is never lost, and two trainings never write into one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from detsearch_cli import files
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.machine import own_rank
from detsearch_cli.engine.processes import Place
from detsearch_cli.engine.train import train
from detsearch_cli.engine.trial import load_data, run_trial, train_with_retry
from detsearch_cli.errors import CheckpointError, DetsearchError, OutputError
from detsearch_cli.files import signed_yaml
from detsearch_cli.recipe import Recipe, with_fragment
from tests.engine.coco_folder import write_coco
from tests.engine.test_train import Stop, fit, same_weights, stop_at
from tests.recipes import small

HALVED = small(optim={"accumulate": 2})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fit_with_retry(recipe: Recipe, folder: Path, **more: Any) -> dict[str, Any]:
    return train_with_retry(recipe, load_data(recipe.data), folder, **more)


@pytest.fixture
def hungry(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 4 images at a time do not fit, from the second step on."""
    original, calls = Detector.training_loss, 0

    def training_loss(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if images.shape[0] > 4 and calls > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", training_loss)


# ---------------------------------------------------------------------- what a user put there


def test_a_data_set_as_the_run_folder_is_refused_and_not_touched(tmp_path: Path, hungry: None) -> None:
    write_coco(tmp_path / "set", [[[8, 8, 24, 40]]] * 16)
    before = contents(tmp_path)
    recipe = small(data={"source": str(tmp_path / "set")})
    with pytest.raises(OutputError, match=r"set holds .* and is no run of detsearch, so nothing is written"):
        fit_with_retry(recipe, tmp_path / "set")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.json", "notes.txt", "resume.safetensors", "lock"])
def test_a_folder_that_holds_anything_of_the_users_is_refused(tmp_path: Path, name: str) -> None:
    text = small().to_yaml() if name == "recipe.yaml" else "{}"
    (tmp_path / name).write_text(text)
    writing: list[Callable[[], object]] = [
        lambda: fit(small(), tmp_path),
        lambda: fit_with_retry(small(), tmp_path),
        lambda: run_trial(small().to_yaml(), str(tmp_path)),
        lambda: ckpt.claim(tmp_path, small()),
        lambda: ckpt.start_anew(tmp_path, small(), HALVED),
    ]
    for write in writing:
        with pytest.raises(OutputError, match=f"holds {name} and is no run"):
            write()
    assert contents(tmp_path) == {name: text.encode()}


def test_a_file_as_the_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="file is a file; name a new folder for the run"):
        fit(small(), tmp_path / "file")


def test_a_signed_recipe_that_is_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / ckpt.RECIPE).write_text(signed_yaml("run", "detector: {name: fcos}\nbackbone: 3\n"))
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is damaged or of another version"):
        fit(small(), tmp_path)
    (tmp_path / ckpt.RECIPE).write_text(signed_yaml("run", "detector: {name"))
    with pytest.raises(CheckpointError, match=r"recipe\.yaml is not valid YAML"):
        fit(small(), tmp_path)


def test_a_folder_that_a_coordinator_prepared_is_trained_in(tmp_path: Path) -> None:
    recipe = small(schedule={"epochs": 1})
    (tmp_path / ckpt.RECIPE).write_text(signed_yaml("run", recipe.to_yaml()))
    assert run_trial((tmp_path / ckpt.RECIPE).read_text(), str(tmp_path))["AP"] >= 0
    (tmp_path / "result.json").write_text("{}")  # as its worker then reports
    assert run_trial((tmp_path / ckpt.RECIPE).read_text(), str(tmp_path))["AP"] >= 0
    assert (tmp_path / "result.json").read_text() == "{}"


def test_out_of_memory_keeps_what_the_user_put_beside_the_run(tmp_path: Path, hungry: None) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    with pytest.raises(Stop):
        fit(small(), folder, on_progress=stop_at(1))
    elsewhere.mkdir()
    mine = {"notes.txt": "of mine", "figures/a.png": "png", "tensorboard/mine.txt": "of mine"}
    for name, text in mine.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (elsewhere / "best.yaml").write_text("of mine")
    (folder / "best.yaml").symlink_to(elsewhere / "best.yaml")
    (folder / "scores.json").mkdir()
    (folder / "scores.json" / "mine.txt").write_text("of mine")
    assert fit_with_retry(small(), folder)["halved_batch"] is True
    assert ckpt.read_recipe(folder).hash() == HALVED.hash()
    assert {name: (folder / name).read_text() for name in mine} == mine
    assert (elsewhere / "best.yaml").read_text() == "of mine"
    assert (folder / "scores.json" / "mine.txt").read_text() == "of mine"


def test_a_run_that_starts_anew_is_the_run_of_an_empty_folder(tmp_path: Path, hungry: None) -> None:
    board = {"runtime": {"tensorboard": True}}
    recipe = small(**board)
    fit_with_retry(recipe, tmp_path / "retried")
    fit(with_fragment(recipe, {"optim": {"accumulate": 2}}), tmp_path / "halved")
    assert same_weights(tmp_path / "retried", tmp_path / "halved")
    names = [
        {p.name for p in (tmp_path / run).rglob("*") if "tfevents" not in p.name}
        for run in ("retried", "halved")
    ]
    assert names[0] == names[1]
    assert len(list((tmp_path / "retried" / ckpt.BOARD).iterdir())) == 1  # the failed run's events are gone
    steps = [len((tmp_path / run / ckpt.LOG).read_text().splitlines()) for run in ("retried", "halved")]
    assert steps[0] == steps[1]


def test_events_behind_a_symbolic_link_stay(tmp_path: Path) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    with ckpt.owned(run, small()):
        pass  # a training was begun there
    theirs.mkdir()
    (theirs / "events.out.tfevents.1").write_text("another run's")
    (run / ckpt.BOARD).symlink_to(theirs)
    ckpt.start_anew(run, small(), HALVED)
    assert (theirs / "events.out.tfevents.1").read_text() == "another run's"
    assert (run / ckpt.BOARD).is_symlink()


def test_every_file_that_a_run_writes_is_known_by_name(tmp_path: Path) -> None:
    """Learned anchors, TensorBoard, best weights, scores: all that a run can write, but for diverged.json."""
    recipe = small(
        detector="retinanet",
        priors={"name": "learned", "init": [[16.0, 16.0]]},
        runtime={"tensorboard": True},
    )
    run_trial(recipe.to_yaml(), str(tmp_path / "stopped"), epochs=1)
    run_trial(recipe.to_yaml(), str(tmp_path / "whole"))
    written = {p.name for run in ("stopped", "whole") for p in (tmp_path / run).iterdir()}
    assert written == {*ckpt.RUN_FILES, ckpt.RECIPE, ckpt.BOARD, "lock"} - {ckpt.FINAL, ckpt.DIVERGED}
    before = contents(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="whole is finished, so it does not start anew"):
        ckpt.start_anew(tmp_path / "whole", recipe, HALVED)
    with pytest.raises(CheckpointError, match="holds the run of another recipe"):
        ckpt.start_anew(tmp_path / "stopped", HALVED, recipe)
    assert contents(tmp_path / "whole") == before
    ckpt.start_anew(tmp_path / "stopped", recipe, HALVED)
    left = {p.name for p in (tmp_path / "stopped").rglob("*")}
    assert left == {ckpt.RECIPE, ckpt.BOARD, "lock"}


# ---------------------------------------------------------------------- killed while it starts anew


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(6))
def test_killed_between_any_two_steps_the_same_call_goes_on(
    tmp_path: Path, hungry: None, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    fit(HALVED, tmp_path / "halved")
    removed = 0

    def unlink(path: Path) -> None:
        nonlocal removed
        if removed == step:
            raise Killed
        removed += path.is_file()
        original(path)

    def write(folder: Path, recipe: Recipe) -> None:
        raise Killed

    original = ckpt._remove
    monkeypatch.setattr(ckpt, "_remove", unlink)
    with monkeypatch.context() as patch:
        patch.setattr(ckpt, "start_anew", killing(ckpt.start_anew, patch, write))
        with pytest.raises(Killed):
            fit_with_retry(small(), tmp_path / "run")
    monkeypatch.setattr(ckpt, "_remove", original)
    assert fit_with_retry(small(), tmp_path / "run")["halved_batch"] is True
    assert same_weights(tmp_path / "run", tmp_path / "halved")


def killing(start_anew: Callable[..., None], patch: pytest.MonkeyPatch, write: Any) -> Callable[..., None]:
    """`start_anew` whose last step, writing the recipe, is one too many."""

    def start(folder: Path, old: Recipe, new: Recipe) -> None:
        patch.setattr(ckpt, "_write_recipe", write)
        start_anew(folder, old, new)

    return start


# ---------------------------------------------------------------------- one training a folder


TRAIN = """
import sys, time
from pathlib import Path
from detsearch_cli.engine.trial import load_data, train_with_retry
from detsearch_cli.recipe import validate
import yaml
recipe = validate(yaml.safe_load(Path(sys.argv[1]).read_text()))
def wait(progress):
    print("training", flush=True)
    time.sleep(60)
train_with_retry(recipe, load_data(recipe.data), Path(sys.argv[2]), wait)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Recipe, Path], subprocess.Popen[str]]]:
    """Start a training in another process and return when it is under way."""
    with ExitStack() as stack:

        def begin(recipe: Recipe, folder: Path) -> subprocess.Popen[str]:
            (tmp_path / "given.yaml").write_text(recipe.to_yaml())
            command = [sys.executable, "-c", TRAIN, str(tmp_path / "given.yaml"), str(folder)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "training\n"
            return process

        yield begin


def test_a_second_training_in_a_folder_is_refused_and_named_until_the_first_ends(
    tmp_path: Path, start: Callable[[Recipe, Path], subprocess.Popen[str]]
) -> None:
    process = start(small(), tmp_path / "{run}")
    before = contents(tmp_path / "{run}")
    for again in (fit, fit_with_retry):
        with pytest.raises(
            CheckpointError, match=rf"\{{run\}} is being trained by process {process.pid} on .*; wait for it"
        ):
            again(small(), tmp_path / "{run}")
    with pytest.raises(CheckpointError, match="is being trained by"):
        ckpt.start_anew(tmp_path / "{run}", small(), HALVED)
    assert contents(tmp_path / "{run}") == before
    process.kill()
    process.wait()
    assert fit(small(), tmp_path / "{run}")["AP"] >= 0
    assert (tmp_path / "{run}" / "lock").is_file()


def test_after_kill_9_the_workers_that_read_images_do_not_hold_the_folder(
    tmp_path: Path, start: Callable[[Recipe, Path], subprocess.Popen[str]]
) -> None:
    recipe = small(runtime={"workers": 2})
    process = start(recipe, tmp_path / "run")
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    assert fit(recipe, tmp_path / "run")["AP"] >= 0  # at once: nothing waits for anything
    assert time.monotonic() - began < 60


def test_a_finished_run_is_read_while_another_process_holds_it(tmp_path: Path) -> None:
    metrics = fit(small(), tmp_path)
    with files.locked(tmp_path, CheckpointError, "held"):
        assert fit(small(), tmp_path) == metrics
        assert fit_with_retry(small(), tmp_path) == metrics


def test_a_training_in_this_process_refuses_another_in_the_same_folder_and_lets_go(tmp_path: Path) -> None:
    refused: list[DetsearchError] = []

    def inside(progress: Any) -> None:
        if not refused:
            with pytest.raises(CheckpointError, match=f"by process {os.getpid()}") as caught:
                fit(small(), tmp_path)
            refused.append(caught.value)

    assert fit(small(), tmp_path, on_progress=inside)["AP"] >= 0
    assert refused and refused[0].exit_code == 2
    with pytest.raises(Stop):
        fit(small(seed=1), tmp_path / "other", on_progress=stop_at(1))
    assert fit(small(seed=1), tmp_path / "other")["AP"] >= 0


def test_another_recipe_that_claims_the_folder_meanwhile_wins_and_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ckpt._locked

    def locked(folder: Path) -> Any:
        (folder / ckpt.RECIPE).write_text(signed_yaml("run", small(seed=7).to_yaml()))
        return original(folder)

    monkeypatch.setattr(ckpt, "_locked", locked)
    with pytest.raises(CheckpointError, match="seed is 7 there, 0 here"):
        fit(small(), tmp_path / "run")
    assert ckpt.read_recipe(tmp_path / "run").seed == 7


def test_only_rank_0_claims_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_rank(Place(1, 2, 0)) == 1
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert own_rank(None) == 3
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert own_rank(None) == 2

    monkeypatch.setattr("detsearch_cli.engine.train.make_fabric", stop)
    recipe = small()
    data = load_data(recipe.data)
    with pytest.raises(Stop):
        train(recipe, data.train, data.val, tmp_path / "run", place=Place(1, 2, 0))
    assert not (tmp_path / "run").exists()


def stop(*_: Any) -> Any:
    raise Stop
