"""Training in two processes: gradients of the whole batch, no hang, no orphan, the same after any interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from detsearch_cli.cli.app import run
from detsearch_cli.data.loader import Loader
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.machine import make_fabric, own_place, processes
from detsearch_cli.engine.processes import _Other, first_place
from detsearch_cli.engine.rank import _run as run_rank
from detsearch_cli.engine.train import train
from detsearch_cli.engine.trial import load_data, train_with_retry
from detsearch_cli.errors import DataError, ProcessLost, ProgramError, RecipeError
from detsearch_cli.recipe import Recipe, Runtime
from tests.engine.coco_folder import write_coco
from tests.recipes import small

REPO = Path(__file__).parents[2]
TWO: dict[str, Any] = {"runtime": {"device": "cpu", "devices": 2}}
LONG = small(
    optim={"lr": 0.01, "ema": 0.9},
    schedule={"epochs": 12, "name": "constant", "eval_every": 0},
    test={"score_threshold": 0.0},
    **TWO,
)
"""36 steps: long enough to be interrupted, and to find something."""


def fit(recipe: Recipe, folder: Path, **more: Any) -> dict[str, Any]:
    data = load_data(recipe.data)
    return train(recipe, data.train, data.val, folder, **more)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "detsearch_cli.cli.app", *arguments]


def torchrun(*arguments: str) -> list[str]:
    script = str(REPO / "tests" / "engine" / "ranks.py")
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, *arguments]


def start(arguments: list[str], **env: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal would start it."""
    return subprocess.Popen(
        arguments,
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)} | env,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], seconds: float = 90) -> str:
    """What it said on stderr."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {seconds:g} s: {process.communicate()[1]}")


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The other ranks that a rank 0 has started."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "engine.rank"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LONG trained by torchrun without interruption: long.yaml, the run, and the weights of each rank."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "long.yaml").write_text(LONG.to_yaml())
    arguments = ["train", "--recipe", str(folder / "long.yaml"), "--out", str(folder / "run")]
    process = start(torchrun(*arguments), RANK_WEIGHTS=str(folder))
    said = end(process)
    assert process.returncode == 0, said
    assert said.count("AP on val") == 1
    return folder


def test_all_ranks_end_with_the_same_weights(whole: Path) -> None:
    assert same_weights(whole / "rank0.safetensors", whole / "rank1.safetensors")


def test_every_validation_image_is_scored_once(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = ckpt.read_metrics(whole / "run")
    assert metrics is not None and metrics["AP"] > 0
    assert run(["eval", str(whole / "run"), "--split", "val", "--device", "cpu", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["coco"] == pytest.approx(metrics["coco"], abs=1e-9)
    for own, theirs in zip(alone["per_class"], metrics["per_class"], strict=True):
        # a score is one of the network's, which rounds otherwise where a batch holds other images
        assert own == pytest.approx(theirs, abs=1e-5)


def test_killed_then_interrupted_the_same_command_ends_in_the_same_weights(
    whole: Path, tmp_path: Path
) -> None:
    again = command("train", "--recipe", str(whole / "long.yaml"), "--out", str(tmp_path))
    resume, log = tmp_path / ckpt.RESUME, tmp_path / ckpt.LOG
    process = start(again)
    wait_for(resume.is_file)
    others = children(process.pid)
    assert others
    process.kill()  # rank 0 alone: the other ends by itself
    process.wait()
    wait_for(lambda: not any(map(is_running, others)), seconds=10)
    assert not (tmp_path / ckpt.METRICS).exists()

    process, done = start(again), len(log.read_bytes())
    wait_for(lambda: len(log.read_bytes()) > done)
    others = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
    said = end(process)
    assert process.returncode == 130, said
    assert said.count("give the same command again") == 1
    assert "Traceback" not in said
    assert resume.is_file()
    assert not any(map(is_running, others))

    fit(LONG, tmp_path)
    assert same_weights(tmp_path / ckpt.LAST, whole / "run" / ckpt.LAST)


@pytest.mark.parametrize(
    ("loss", "term", "with_boxes"),
    [
        # each of 4 steps x 2 micro-batches of 4 images has one image with boxes, which is rank 0's
        ("focal_iou", "regression", {0, 4}),
        # rank 1 has none in the first micro-batch, and both of its images have some in the second; these rank together
        ("parameterized_ap", "ap", {0, 4, 5, 7}),
    ],
)
def test_two_processes_train_what_one_does_even_where_one_has_no_ground_truth(
    tmp_path: Path, loss: str, term: str, with_boxes: set[int]
) -> None:
    # frozen batch norms, because a share of the batch has other statistics
    order = loader(small(data={"source": "shapes:images=32,val=8,test=8,size=64"}), 0, 1).rows(0)
    some = [[8.0, 8, 24, 40], [30, 20, 32, 32]]
    boxes = [some if order.index(i) % 8 in with_boxes else [] for i in range(32)]
    write_coco(tmp_path / "data", boxes)
    changes: dict[str, Any] = {
        "data": {"source": str(tmp_path / "data")},
        "loss": loss,
        "backbone": {"frozen_bn": True},
        "optim": {"name": "sgd", "lr": 0.01, "accumulate": 2, "clip_norm": 0.1},
        "schedule": {"epochs": 1, "warmup_steps": 0},
    }
    one, two = small(**changes), small(**changes, **TWO)
    losses = {}
    for name, recipe in (("one", one), ("two", two)):
        fit(recipe, tmp_path / name)
        entries = map(json.loads, (tmp_path / name / ckpt.LOG).read_text().splitlines())
        losses[name] = [e[term] for e in entries if "step" in e]
    assert len(losses["one"]) == 4 and min(losses["one"]) > 0
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    torch.manual_seed(one.seed)
    first = dict(build(one, 1).named_parameters())
    left, right = (load_file(tmp_path / name / ckpt.LAST) for name in ("one", "two"))
    moved = max(float((left[k] - value.detach()).abs().max()) for k, value in first.items())
    for name in first:
        torch.testing.assert_close(right[name], left[name], rtol=0, atol=1e-4 * moved, msg=name)


def loader(recipe: Recipe, rank: int, world: int) -> Loader:
    """What a rank trains on."""
    return Loader(
        load_data(recipe.data).train,
        recipe.augment,
        batch_size=recipe.optim.batch_size // world,
        train=True,
        seed=recipe.seed,
        device=torch.device("cpu"),
        rank=rank,
        world=world,
    )


def test_the_error_of_another_rank_is_raised_in_rank_0(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", [[[8, 8, 24, 40]]] * 8)
    recipe = small(data={"source": str(tmp_path / "data")}, schedule={"eval_every": 0}, **TWO)
    data = load_data(recipe.data)
    of_rank_1 = loader(recipe, 1, 2).rows(1)

    def shrink(progress: Any) -> None:
        for row in of_rank_1 if progress.losses else []:  # what it reads next
            file = data.train.records[row].file
            assert file is not None
            Image.new("RGB", (32, 32)).save(file)

    with pytest.raises(DataError, match=r"\.png must be 64 x 64"):
        fit(recipe, tmp_path / "run", on_progress=shrink)
    assert not torch.distributed.is_initialized()
    assert (tmp_path / "run" / ckpt.RESUME).is_file()


def test_a_rank_that_is_killed_ends_the_training_in_one_sentence(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(progress: Any) -> None:
        if not killed:
            killed.extend(children(os.getpid()))
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(ProcessLost, match=r"process 1 of the training stopped \(signal 9\)"):
        fit(small(**TWO), tmp_path, on_progress=kill)


def test_a_mistake_of_the_program_in_another_rank_names_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_rank({}) == 70  # an order without a recipe is never given
    (tmp_path / "told").write_text(capfd.readouterr().out)
    other = object.__new__(_Other)
    other.rank, other._told = 1, (tmp_path / "told").open("rb")
    with other._told:
        error = other.error()
    assert isinstance(error, ProgramError) and error.exit_code == 70
    assert "(KeyError: 'recipe', in detsearch_cli/engine/rank.py:" in str(error)
    assert "in process 1:\nTraceback" in error.__notes__[0]  # what --debug shows


def test_a_folder_that_is_taken_ends_every_rank_that_srun_started(tmp_path: Path) -> None:
    recipe = small(schedule={"epochs": 2})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    words = ["train", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    place = {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(first_place(2).port)}
    with ckpt.owned(tmp_path / "run", recipe):
        both = [
            start(command(*words), **slurm, **place, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            for rank in range(2)
        ]
        said = [end(process, seconds=240) for process in both]
    assert [process.returncode for process in both] == [2, 2], said
    assert all("is being trained by process" in text and "Traceback" not in text for text in said)


NEVER_JOINS = """
import subprocess, sys
from pathlib import Path
from detsearch_cli.engine import processes
from tests.engine.test_distributed import TWO, fit
from tests.recipes import small

class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(3)"], **options)

processes.GRACE_SECONDS, processes.subprocess.Popen = 0.5, Popen
fit(small(**TWO), Path(sys.argv[1]))
"""


def test_a_rank_that_never_joins_does_not_keep_rank_0_waiting(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", NEVER_JOINS, str(tmp_path)])
    said = end(process, seconds=60)
    assert process.returncode == 1
    assert said.count("process 1 of the training stopped (exit code 3)") == 1


def test_a_loss_of_one_rank_that_is_not_finite_stops_all_with_that_ranks_images(tmp_path: Path) -> None:
    recipe = small()
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    arguments = ["train", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    process = start(torchrun(*arguments), NAN_STEP="2")
    said = end(process)
    assert process.returncode == 1
    assert said.count("the loss is not finite at step 2") == 1
    told = json.loads((tmp_path / "run" / "diverged.json").read_text())
    of_rank_1 = loader(recipe, 1, 2)
    assert told["step"] == 2
    records = of_rank_1.split.records
    assert told["image_ids"] == [records[i].image_id for i in of_rank_1.rows(0)[4:8]]
    assert set(told["losses"].values()) == {"nan"}


def test_out_of_memory_in_one_rank_retries_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Detector.training_loss

    def hungry(self: Detector, images: torch.Tensor, targets: Any) -> dict[str, torch.Tensor]:
        if images.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, images, targets)

    monkeypatch.setattr(Detector, "training_loss", hungry)
    recipe = small(**TWO)
    metrics = train_with_retry(recipe, load_data(recipe.data), tmp_path)
    assert metrics["halved_batch"] is True
    assert ckpt.read_recipe(tmp_path).optim.accumulate == 2


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim\.batch_size 6 must be a multiple .* 2 x 2"):
        fit(small(optim={"batch_size": 6, "accumulate": 2}, **TWO), tmp_path)


def test_several_nodes_need_somebody_who_starts_them(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"num_nodes 2 needs torchrun or srun"):
        fit(small(runtime={"device": "cpu", "num_nodes": 2}), tmp_path)


@pytest.mark.parametrize(
    "started",
    [
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"},
    ],
)
def test_processes_that_are_there_are_used_and_a_recipe_that_contradicts_them_refused(
    monkeypatch: pytest.MonkeyPatch, started: dict[str, str]
) -> None:
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert own_place(Runtime()) is None
    assert processes(Runtime()) == processes(Runtime(devices=2, num_nodes=2)) == (2, 2)
    with pytest.raises(RecipeError, match=r"started 2 processes on 2 nodes, the recipe asks for 3 on 1"):
        processes(Runtime(devices=3))


def test_a_slurm_job_of_one_process_starts_the_others_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "worker")
    place = own_place(Runtime(devices=2))
    assert place is not None and (place.rank, place.world) == (0, 2)
    assert make_fabric(small(**TWO), place).world_size == 2
