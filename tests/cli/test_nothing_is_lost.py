"""Every command that writes refuses a place that holds something of the user's, and changes no byte there."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.cli.app import run
from detsearch_cli.files import write_png
from tests.cli.small import DATA

Told = pytest.CaptureFixture[str]


def tree(folder: Path) -> dict[str, str]:
    """What stands at every path below: the file's hash, a link's target, or that it is a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (200, 40, 40)).save(path)


@pytest.fixture
def here(trained: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with things of the user's: photographs, notes, tables, links, a run, a study."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/a.png", "photos/confusion.png", "sheet.png"):
        photograph(tmp_path / name)
    for name in ("notes.csv", "notes.json", "notes.parquet", "deep/er/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "link.png").symlink_to("sheet.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "mixed").mkdir()  # one of our pictures does not make the user's beside it ours
    write_png(tmp_path / "mixed" / "ours.png", np.zeros((8, 8, 3), np.uint8))
    photograph(tmp_path / "mixed" / "a.png")
    photograph(tmp_path / "mixed" / "confusion.png")
    shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(study, tmp_path / "study")
    for folder in ("run", "study"):
        (tmp_path / folder / "report.html").write_text("<!doctype html><p>mine</p>")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["predict", "run", "photos/a.jpg", "--out", "photos"],
            "photos holds a.jpg and is no folder of pictures",
        ),
        (["predict", "run", "photos/a.jpg", "--out", "link"], "link holds a.jpg"),
        (["predict", "run", "photos/a.jpg", "--out", "deep"], "deep holds er"),
        (["predict", "run", "photos/a.jpg", "--out", "sheet.png"], "sheet.png is a file"),
        (["predict", "run", "photos/a.jpg", "--out", "mixed"], "mixed/a.png exists and was not written"),
        (["eval", "run", "--plots", "photos"], "photos holds a.jpg"),
        (["eval", "run", "--plots", "mixed"], "mixed/confusion.png exists and was not written"),
        (["eval", "run", "--plots", "notes.csv"], "notes.csv is a file"),
        (["data", "preview", DATA, "--out", "sheet.png"], "sheet.png exists and was not written"),
        (["data", "preview", DATA, "--out", "photos"], "photos is a folder"),
        (["data", "preview", DATA, "--out", "link.png"], "link.png is a link"),
        (["data", "preview", DATA, "--out", "dangling.png"], "dangling.png is a link"),
        (["data", "convert", DATA, "--out", "photos"], "photos is not empty"),
        (["data", "convert", DATA, "--out", "link"], "link is not empty"),
        (["data", "convert", DATA, "--out", "sheet.png"], "sheet.png is a file"),
        (["data", "split", DATA, "--out", "deep"], "deep is not empty"),
        (["study", "export", "study", "notes.csv"], "notes.csv exists and was not written"),
        (["study", "export", "study", "notes.json"], "notes.json exists and was not written"),
        (["study", "export", "study", "notes.parquet"], "notes.parquet exists and was not written"),
        (["study", "export", "study", "study/search.json"], "study/search.json exists and was not written"),
        (["report", "run"], "run/report.html exists and was not written"),
        (["report", "study"], "study/report.html exists and was not written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_user_put_there_is_refused_in_one_sentence_and_kept(
    arguments: list[str], said: str, here: Path, capsys: Told
) -> None:
    before = tree(here)
    capsys.readouterr()
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert tree(here) == before
    assert out == "" and "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], err


def test_the_same_command_again_replaces_what_the_first_one_wrote(here: Path, capsys: Told) -> None:
    for arguments in (
        ["predict", "run", "photos", "--out", "found"],
        ["eval", "run", "--plots", "plots"],
        ["data", "preview", DATA, "--out", "new.png"],
        ["study", "export", "study", "t.csv"],
        ["study", "export", "study", "t.json"],
        ["study", "export", "study", "t.parquet"],
    ):
        assert run(arguments) == 0, arguments
        first = tree(here)
        assert run(arguments) == 0, arguments
        assert tree(here) == first, arguments


def test_pictures_that_were_given_are_never_replaced(here: Path) -> None:
    write_png(here / "found" / "a.png", np.full((48, 64, 3), 90, np.uint8))
    before = tree(here / "found")
    assert run(["predict", "run", "found/a.png", "photos/a.jpg", "--out", "found"]) == 0
    after = tree(here / "found")
    assert before.items() <= after.items()
    assert sorted(after) == ["a-2.png", "a-3.png", "a.png"]
