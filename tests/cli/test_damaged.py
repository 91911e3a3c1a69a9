"""Every field of every file of a run and of a study, missing or of another type: 0, or one sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from detsearch_cli.cli.app import run
from detsearch_cli.engine.checkpoint import LAST, load_detector, load_tensors
from detsearch_cli.errors import CheckpointError, StudyError
from detsearch_cli.report.page import RunPage, StudyPage
from detsearch_cli.search.study import open_study
from detsearch_cli.session import pages
from detsearch_cli.session.study import read_settings, recipe_of
from tests.cli.damaging import answer, damaged

Told = pytest.CaptureFixture[str]
SIGNED = '<!doctype html><meta name="generator" content="detsearch">'
BYTES = (b"", b"null", b"[]", b"{}", b"5", b"\xff\xfe{}", b"\0" * 40, b"{" * 5000)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without what costs their seconds and reads none of the damaged files: charts, pictures, importances."""
    for page in (RunPage, StudyPage):
        monkeypatch.setattr(page, "render", lambda self: SIGNED)
    monkeypatch.setattr(pages, "samples", lambda *given: [])
    monkeypatch.setattr(pages, "_samples", lambda *given: [])
    monkeypatch.setattr(pages, "importances", lambda study: {})


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def study_folder(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "studies" / "s")).parent / "s"


def test_every_field_of_the_metrics_of_a_run(run_folder: Path, undrawn: None, capsys: Told) -> None:
    path = run_folder / "metrics.json"
    codes = set()
    for what, content in damaged(json.loads(path.read_text()), values=1):
        path.write_text(json.dumps(content))
        codes.add(answer(["report", str(run_folder)], path, capsys, what))
    assert codes == {0, 2}


def test_a_training_that_is_done_tells_what_its_metrics_lack(run_folder: Path, capsys: Told) -> None:
    path = run_folder / "metrics.json"
    whole = json.loads(path.read_text())
    again = ["train", "--recipe", str(run_folder / "recipe.yaml"), "--out", str(run_folder)]
    codes = {}
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        codes[name] = answer(again, path, capsys, f"{name} gone")
    assert set(codes.values()) == {0, 2} and codes["val_images"] == codes["coco"] == 2


def test_every_field_of_the_log_of_a_run(run_folder: Path, undrawn: None, capsys: Told) -> None:
    path = run_folder / "log.jsonl"
    lines = path.read_text().splitlines()
    for number in (0, len(lines) - 1):  # a step, an epoch
        for what, content in damaged(json.loads(lines[number])):
            changed = [*lines[:number], json.dumps(content), *lines[number + 1 :], lines[-1]]
            path.write_text("\n".join(changed) + "\n")
            answer(["report", str(run_folder)], path, capsys, what)


def test_a_torn_last_line_is_left_out_and_one_further_up_is_told(
    run_folder: Path, undrawn: None, capsys: Told
) -> None:
    path = run_folder / "log.jsonl"
    whole = path.read_bytes()
    for torn in (whole[:-20], whole + b"\0" * 30, whole + b'{"epoch": 1, "AP": \xff'):
        path.write_bytes(torn)
        assert answer(["report", str(run_folder)], path, capsys, repr(torn[-30:])) == 0
    path.write_bytes(b'{"step": 1, "epo\n' + whole)
    assert answer(["report", str(run_folder)], path, capsys, "torn first line") == 2


@pytest.mark.parametrize("name", ["metrics.json", "log.jsonl", "recipe.yaml", "detections.json"])
def test_files_of_a_run_with_another_content(
    name: str, run_folder: Path, undrawn: None, capsys: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_folder / name
    for content in BYTES:
        path.write_bytes(content)
        answer(["report", str(run_folder)], path, capsys, repr(content[:9]))
    path.unlink()
    path.mkdir()
    assert answer(["report", str(run_folder)], path, capsys, "a folder") == 2


def test_every_field_of_the_recipe_and_the_classes_inside_weights(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_folder / LAST
    tensors, about = load_tensors(path)
    recipes = [
        (what, {**about, "recipe": yaml.safe_dump(content)})
        for what, content in damaged(yaml.safe_load(about["recipe"]), values=1, missing=False)
    ]
    texts = (
        "",
        "null",
        "{}",
        "5",
        "[]",
        "[1]",
        '["a"]',
        "[[]]",
        "{",
        "[" * 9000,
        '["' + 'a","' * 100_000 + '"]',
    )
    classes = [(f"classes {text[:9]}", {**about, "classes": text}) for text in texts]
    refused = 0
    for what, changed in [*recipes, *classes]:
        save_file(tensors, path, metadata=changed)
        try:
            load_detector(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error), what
    assert refused > len(recipes) / 3


def test_weights_that_are_no_numbers_are_refused_naming_the_tensor(run_folder: Path, capsys: Told) -> None:
    path = run_folder / LAST
    tensors, about = load_tensors(path)
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    for value in (float("nan"), float("inf")):
        tensors[name].view(-1)[0] = value
        save_file(tensors, path, metadata=about)
        capsys.readouterr()
        assert run(["eval", str(run_folder)]) == 2
        said = capsys.readouterr().err
        assert "NaN or infinite" in said and name in said and str(path) in said


def test_every_field_of_the_settings_of_a_study(study_folder: Path, capsys: Told) -> None:
    path, opened = study_folder / "search.json", open_study(study_folder)
    refused = 0
    for what, content in damaged(json.loads(path.read_text())):
        path.write_text(json.dumps(content))
        try:
            recipe_of(opened, read_settings(study_folder))
        except StudyError as error:
            refused += 1
            assert str(study_folder) in str(error), what
    assert refused > 20
    for content in BYTES:
        path.write_bytes(content)
        assert answer(["report", str(study_folder)], path, capsys, repr(content[:9])) == 2


def _attributes(ledger: Path, table: str, where: str) -> list[tuple[int, str, Any]]:
    with sqlite3.connect(ledger) as database:
        rows = database.execute(f"SELECT rowid, key, value_json FROM {table} WHERE {where}").fetchall()
    database.close()
    return [(row, key, json.loads(text)) for row, key, text in rows]


def _write(ledger: Path, table: str, row: int, text: str) -> None:
    with sqlite3.connect(ledger) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"UPDATE {table} SET value_json = ? WHERE rowid = ?", (text, row))
    database.close()


def test_every_field_of_a_ledger(study_folder: Path, undrawn: None, capsys: Told) -> None:
    ledger = study_folder / "study.db"
    commands = (["study", "show", "--json"], ["study", "list", "--json"], ["report"], ["study", "export"])
    turn, codes = 0, set()
    for table, where in (("study_user_attributes", "1"), ("trial_user_attributes", "trial_id = 2")):
        for row, key, content in _attributes(ledger, table, where):
            # of the metrics only what the page reads: the rest has more fields than all others together
            shown = {"per_class": content["per_class"]} if key == "metrics" else content
            for what, changed in damaged({"value": shown}, depth=3, values=1, missing=False):
                if "value" not in changed:
                    continue
                _write(ledger, table, row, json.dumps(changed["value"]))
                words = commands[turn % len(commands)]
                place = study_folder.parent if "list" in words else study_folder
                more = [str(study_folder.parent / "table.csv")] if "export" in words else []
                codes.add(answer([*words, str(place), *more], ledger, capsys, f"{key}: {what}, {words}"))
                turn += 1
            _write(ledger, table, row, json.dumps(content))
    assert codes == {0, 2} and turn > 20


COMPARISON = {
    "detsearch": "comparison", "split": "test", "images": 4,
    "runs": [{"side": side, "seed": 0, "coco": {"AP": 0.1}} for side in ("baseline", "searched")],
    "comparisons": {"searched": {"over_images": {"difference": 0.1, "low": 0.0, "high": 0.2}, "over_seeds": None}},
}  # fmt: skip


def test_every_field_of_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(COMPARISON))
    whole = pages.read_comparison(path)
    assert whole is not None and whole.bounds == (0.0, 0.2)
    refused = 0
    for what, content in damaged(COMPARISON):
        path.write_text(json.dumps(content))
        try:
            pages.read_comparison(path)
        except StudyError as error:
            refused += 1
            assert str(path) in str(error), what
    assert refused > 40


def test_a_study_without_a_whole_training_has_no_best(study_folder: Path, capsys: Told) -> None:
    with sqlite3.connect(study_folder / "study.db") as database:
        database.execute("UPDATE trials SET state = 'PRUNED'")
    assert run(["study", "resume", str(study_folder)]) == 1
    assert "was trained to its end, so none is the best" in capsys.readouterr().err


def test_a_damaged_study_is_named_and_the_others_are_listed(study_folder: Path, capsys: Told) -> None:
    root = study_folder.parent
    whole = (study_folder / "study.db").read_bytes()
    bad = {"cut": whole[:-1000], "half": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}
    for name, content in bad.items():
        (root / name).mkdir()
        (root / name / "study.db").write_bytes(content)
    (root / "folder" / "study.db").mkdir(parents=True)
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / "study.db")
    (root / "other").mkdir()
    with sqlite3.connect(root / "other" / "study.db") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    capsys.readouterr()
    assert run(["study", "list", str(root), "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)] == ["s"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 7
    for name in (*bad, "folder", "pipe", "other"):
        assert sum(str(root / name / "study.db") in line for line in errors) == 1
    for name, content in bad.items():
        assert (root / name / "study.db").read_bytes() == content
    with safe_open(study_folder / "trials" / "00000" / LAST, "pt") as untouched:
        assert untouched.metadata()
