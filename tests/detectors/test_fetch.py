"""Published weights: from a cache without asking anybody, and one sentence, soon, where there is no network."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detsearch_cli.detectors import _fetch, find_published, find_trained
from detsearch_cli.errors import CheckpointError, RecipeError

URL = "https://weights.example/models/net-0123abcd.pth"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)


def test_what_lies_in_torchs_cache_is_taken_without_a_connection(caches: Path, offline: None) -> None:
    cached = caches / "checkpoints" / "net-0123abcd.pth"
    cached.parent.mkdir()
    cached.touch()
    assert _fetch.fetch_url(URL, "init net", "--init FILE") == cached


def test_offline_one_sentence_names_the_file_its_address_and_both_remedies(
    caches: Path, offline: None
) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_trained("fcos_resnet50_fpn")
    said = str(caught.value)
    assert "\n" not in said
    assert "https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth" in said
    assert "--init FILE" in said
    assert str(caches / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth") in said


def test_offline_a_backbones_file_and_page_are_named(offline: None) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors from https://huggingface\.co/timm/resnet50\.\S+ "
    ) as e:
        find_published("resnet50")
    assert "--backbone-weights FILE" in str(e.value)


def test_the_hubs_own_switch_is_heeded_before_any_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_fetch, "reachable", lambda host: pytest.fail("asked the network"))
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        find_published("resnet18")


def test_a_server_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    released = threading.Event()

    def stall(*args: Any, **kwargs: Any) -> Any:
        released.wait(2)
        raise OSError("at last")

    monkeypatch.setattr(socket, "create_connection", stall)
    monkeypatch.setattr(_fetch, "PATIENCE", 0.05)
    started = time.monotonic()
    assert not _fetch.reachable("weights.example")
    assert time.monotonic() - started < 1
    released.set()


def test_a_file_that_is_not_what_its_name_promises_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(url: str, to: str, digits: str) -> None:
        assert digits == "0123abcd"
        raise RuntimeError('invalid hash value (expected "0123abcd")')

    monkeypatch.setattr(_fetch, "reachable", lambda host: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", torn)
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        _fetch.fetch_url(URL, "init net", "--init FILE")
    assert socket.getdefaulttimeout() is None


def test_the_second_name_is_asked_for_where_a_repository_lacks_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    def download(repository: str, name: str, **more: Any) -> str:
        if name.endswith(".safetensors"):
            raise EntryNotFoundError("none of that name")
        return f"/cache/{repository}/{name}"

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_fetch, "reachable", lambda host: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_published("resnet18").file.name == "pytorch_model.bin"


def test_mean_and_deviation_are_those_timm_publishes_with_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    about = SimpleNamespace(
        hf_hub_id="someone/net", hf_hub_filename=None, url="", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: about)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: "/cache/model.safetensors")
    found = find_published("timm/net")
    assert (found.file, found.origin) == (Path("/cache/model.safetensors"), "someone/net")
    assert (found.mean, found.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", ["tiny", "mobilenetv1_025", "shufflenetv2_050", "darknet19"])
def test_a_backbone_of_ours_has_no_published_weights(name: str) -> None:
    with pytest.raises(RecipeError, match=f"nobody publishes weights of {name}"):
        find_published(name)


def test_a_model_that_timm_does_not_know_is_told(offline: None) -> None:
    with pytest.raises(RecipeError, match="timm publishes no weights for 'no_such_net'"):
        find_published("timm/no_such_net")
