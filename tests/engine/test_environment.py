"""Environment variables of a wrong form, devices and backbones that are not there: one sentence each."""

from __future__ import annotations

import pytest
import torch

from detsearch_cli.cli import console
from detsearch_cli.data import _pool
from detsearch_cli.data.source import open_source
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.engine.machine import own_place, pick_device, processes
from detsearch_cli.errors import CheckpointError, DataError, RecipeError
from detsearch_cli.schema import Backbone, Runtime
from detsearch_cli.search.executors.local import threads_per_worker

WRONG = ["abc", "", "-1", "²", "9" * 30, "1.5", "nan"]


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_number_of_slurm_tasks_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", value)
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with pytest.raises(RecipeError, match="SLURM_NTASKS"):
        own_place(Runtime())  # type: ignore[call-arg]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("variable", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_a_wrong_number_of_torchrun_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=variable):
        processes(Runtime())  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [*WRONG, "0"])
def test_a_rank_that_is_no_number_silences_nobody(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", value)
    console.err.cache_clear()
    assert not console.err().quiet
    console.err.cache_clear()


@pytest.mark.parametrize("value", ["abc", "inf", "nan", "-1", "1e400", ""])
def test_a_wrong_limit_of_the_cache_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETSEARCH_CACHE_GB", value)
    with pytest.raises(DataError, match="DETSEARCH_CACHE_GB must be a number of gigabytes"):
        _pool._limit(torch.device("cpu"))


def test_a_wrong_number_of_threads_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "²")
    assert threads_per_worker(10**6) == 1


def test_the_home_of_nobody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="home of no user"):
        open_source("~nosuchuser/set")
    monkeypatch.setenv("DETSEARCH_DATA", "~nosuchuser/x")
    with pytest.raises(DataError, match="home of no user"):
        open_source("voc")


@pytest.mark.parametrize(
    "name", ["mps", "xla", "meta", "cpu:5", "cuda:-1", "banana", "", "cuda:9999", "cuda:٣"]
)
def test_a_device_that_is_none_is_refused_with_those_of_this_machine(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"auto, cpu, cuda or cuda:N.*this machine has cpu"):
        pick_device(name)


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        CheckpointError, match="cuda:99 is not there; this machine has cpu and cuda:0 to cuda:1"
    ):
        pick_device("cuda:99")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/hf-hub:a/b", "timm has no model"),
        ("timm/local-dir:/tmp", "timm has no model"),
        ("timm/../resnet18", "timm has no model"),
        ("timm/resnet19", "did you mean timm/resnet1"),
        ("timm/", "timm has no model"),
        ("resnet18\x1b[31m", "is none of"),
        ("x" * 5000, "is none of"),
    ],
)
def test_a_name_loads_nothing_that_somebody_else_wrote(
    name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def no_network(*args: object, **more: object) -> None:
        raise AssertionError("a name opened a connection")

    monkeypatch.setattr(socket, "create_connection", no_network)
    with pytest.raises(RecipeError, match=said) as caught:
        build_backbone(Backbone(name=name), (3, 5))  # type: ignore[call-arg]
    assert len(str(caught.value)) < 400 and "\x1b" not in str(caught.value)
