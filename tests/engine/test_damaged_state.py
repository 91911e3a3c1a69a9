"""resume.safetensors and log.jsonl that are damaged, and weights that are no numbers: one sentence, nothing changed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detsearch_cli.detectors import build
from detsearch_cli.detectors._weights import load_backbone_weights
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.journal import open_journal, read_entries
from detsearch_cli.errors import CheckpointError
from tests.engine.test_train import Stop, fit, stop_at
from tests.recipes import small


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stop):
        fit(small(), folder, on_progress=stop_at(4))
    return folder


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"about": "[]", "optim": "[]"},
        {"about": "{", "optim": "[]"},
        {"about": '{"step": "x", "seconds": 1, "precision": {}}', "optim": "[]"},
        {"about": '{"step": -1, "seconds": 1, "precision": {}}', "optim": "[]"},
        {"about": '{"step": 1, "seconds": NaN, "precision": {}}', "optim": "[]"},
        {"about": '{"step": 1, "seconds": 1, "precision": {}}'},
        {"about": '{"step": 1, "seconds": 1, "precision": {}}', "optim": "[{}]"},
        {"about": '{"step": 1, "seconds": 1, "precision": {}}', "optim": "{"},
    ],
)
def test_a_damaged_state_is_named_and_left(stopped: Path, about: dict[str, str]) -> None:
    path = stopped / ckpt.RESUME
    whole = path.read_bytes()
    tensors, _ = ckpt.load_tensors(path)
    try:
        save_file(tensors, path, metadata=about)
        damaged = path.read_bytes()
        with pytest.raises(
            CheckpointError, match=r"resume\.safetensors.*remove it to train from the first step"
        ):
            fit(small(), stopped)
        assert path.read_bytes() == damaged
    finally:
        path.write_bytes(whole)


def test_a_state_of_another_detector_is_named(stopped: Path) -> None:
    path = stopped / ckpt.RESUME
    whole = path.read_bytes()
    tensors, about = ckpt.load_tensors(path)
    try:
        save_file(dict(list(tensors.items())[5:]), path, metadata=about)
        with pytest.raises(CheckpointError, match=r"does not fit this training's detector"):
            fit(small(), stopped)
    finally:
        path.write_bytes(whole)


STEP = {"step": 1, "epoch": 1, "lr": 0.1, "loss": 0.5}


def test_a_log_goes_on_without_its_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for torn in (b'{"step": 2, "ep', b"\xff\xfe", b"\0\0\0", b"[" * 9000):
        path.write_bytes(json.dumps(STEP).encode() + b"\n" + torn)
        assert read_entries(path) == [STEP]
    with open_journal(path, 1, 4, False) as journal:
        journal.write(2, {**STEP, "step": 2})
    assert [entry["step"] for entry in read_entries(path)] == [1, 2]


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"step": 1, "ep', "line 1, is damaged: it is not JSON"),
        ('{"epoch": "x", "AP": 1}', "epoch should be a valid integer, got 'x'"),
        ('{"epoch": 1, "AP": "x"}', "AP should be a valid number, got 'x'"),
        ('{"epoch": 1, "step": 1, "lr": 1, "loss": "a"}', "loss should be a valid number, got 'a'"),
        ('{"epoch": 1, "step": 1, "lr": 1, "loss": NaN}', "loss should be a finite number, got nan"),
        ("[]", "its content should be an object"),
    ],
)
def test_a_log_that_is_damaged_further_up_is_told_and_not_rewritten(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{line}\n{json.dumps(STEP)}\n")
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught, open_journal(path, 9, 4, False):
        pass
    assert said in str(caught.value) and "log.jsonl, line 1" in str(caught.value)
    assert path.read_bytes() == before


def test_backbone_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    backbone = build(small(), 3).backbone
    state = backbone.body.state_dict()
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("inf"))
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=f"NaN or infinite, .* in {name}"):
        load_backbone_weights(backbone, path)


def test_an_archive_that_grows_when_it_is_opened_is_refused(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, plain)
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in source.infolist():
            content = source.read(entry)
            bomb.writestr(entry.filename, bytes(5_000_000) if "data/" in entry.filename else content)
    with pytest.raises(CheckpointError, match="compressed archive of 10"):
        load_backbone_weights(build(small(), 3).backbone, path)
