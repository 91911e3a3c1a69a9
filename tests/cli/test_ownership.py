"""Nothing a user owns is lost: a place that holds anything of the user's is refused by every command that writes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from tests.cli.interface import commands
from tests.cli.small import ANCHORED, DATA, SMALL

COUNTS = ["--set", "assign={name: dynamic, counts: [[3]]}"]
FOLDERS = {
    "train": ["train", *SMALL, "--out"],
    "assign train": ["assign", "train", *SMALL, "--against", "f.yaml", "--out"],
    "assign train --baseline": ["assign", "train", *SMALL, "--against", "f.yaml", "--baseline", "--out"],
    "assign train --jobs": [
        "assign",
        "train",
        *SMALL,
        "--against",
        "f.yaml",
        "--seeds",
        "2",
        "--jobs",
        "2",
        "--out",
    ],
    "assign show": ["assign", "show", *SMALL, *COUNTS, "--images", "2", "--samples", "0", "--out"],
    "anchors train": ["anchors", "train", *ANCHORED, "--out"],
    "anchors train --baseline": ["anchors", "train", *ANCHORED, "--baseline", "--out"],
    "anchors show": ["anchors", "show", *ANCHORED, "--out"],
    "assign search": ["assign", "search", *SMALL, "--bins", "1", "--trials", "1", "--out", ".", "--name"],
    "aploss search": ["aploss", "search", *SMALL, "--segments", "2", "--trials", "1", "--out", ".", "--name"],
    "aploss train": ["aploss", "train", *SMALL, "--against", "f.yaml", "--out"],
    "aploss show": ["aploss", "show", *SMALL, "--set", "loss=parameterized_ap", "--out"],
    "demo": ["demo", "--out"],
    "predict": ["predict", "RUN", "image.png", "--out"],
    "eval --plots": ["eval", "RUN", "--plots"],
    "data convert": ["data", "convert", DATA, "--out"],
    "data split": ["data", "split", DATA, "--out"],
}
FILES = {
    "anchors fit": ["anchors", "fit", *ANCHORED, "--out"],
    "data preview": ["data", "preview", DATA, "--images", "2", "--tile", "32", "--out"],
    "study compare": ["study", "compare", "STUDY", "--out", "FILE.png"],
    "study export csv": ["study", "export", "STUDY", "FILE.csv"],
    "study export json": ["study", "export", "STUDY", "FILE.json"],
    "study export parquet": ["study", "export", "STUDY", "FILE.parquet"],
}
# what users have in their folders, some by names that this program uses
THEIRS = {
    "notes.txt": "mine",
    "recipe.yaml": "flour: 500 g\n",
    "best.yaml": "mine\n",
    "search.json": "{}",
    "runs.json": '{"a": 1}',
    "metrics.json": "{}",
    "log.jsonl": "my own log\n",
    "report.html": "<!doctype html><p>mine</p>",
    "counts.png": "no picture",
    "plane.png": "no picture",
    "image.png": "no picture",
    "lock": "mine",
    "study.db": "mine",
}


def tree(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("image.png")
    Path("f.yaml").write_text("assign: {name: dynamic, counts: [[3]]}\n")
    return tmp_path


def refused(words: list[str], told: pytest.CaptureFixture[str]) -> str:
    told.readouterr()
    assert run(words) == 2
    said = told.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("theirs", ["all", "notes.txt"])
def test_a_folder_that_holds_something_of_the_users_is_refused(
    command: str, theirs: str, here: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine").mkdir()
    for name, text in THEIRS.items():
        if theirs in ("all", name):
            (here / "mine" / name).write_text(text)
    before = tree(here)
    words = [str(trained) if word == "RUN" else word for word in FOLDERS[command]]
    assert "mine" in refused([*words, "mine"], capsys)
    assert tree(here) == before


@pytest.mark.parametrize("command", FILES)
def test_a_file_of_the_users_is_refused_and_one_of_ours_is_replaced(
    command: str, here: Path, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(study) if word == "STUDY" else word.replace("FILE", "out") for word in FILES[command]]
    if words[-1] == "--out":
        words.append("out.png" if "preview" in words else "out.yaml")
    for text in ("mine", "number,mine\n1,2\n", '{"mine": 1}'):
        Path(words[-1]).write_text(text)
        before = tree(here)
        assert words[-1] in refused(words, capsys)
        assert tree(here) == before
    Path(words[-1]).unlink()
    assert run(words) == 0
    assert run(words) == 0


def test_training_into_the_data_set_leaves_every_byte_of_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["data", "convert", DATA, "--out", "set"]) == 0
    before = tree(here)
    small = ["set" if word == DATA else word for word in SMALL]
    for words in (
        ["train", *small, "--out", "set"],
        ["assign", "search", *small, "--bins", "1", "--trials", "1", "--out", ".", "--name", "set"],
        ["assign", "train", *small, "--against", "f.yaml", "--out", "set"],
    ):
        assert "set holds" in refused(words, capsys)
        assert tree(here) == before


def test_a_foreign_page_is_not_replaced(
    trained: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, here / "run")
    (here / "run" / "report.html").write_text("<!doctype html><p>mine</p>")
    before = tree(here)
    assert "report.html" in refused(["report", "run"], capsys)
    assert tree(here) == before
    (here / "run" / "report.html").unlink()
    assert run(["report", "run"]) == 0
    assert run(["report", "run"]) == 0


def test_the_list_of_commands_that_write_is_whole() -> None:
    writes = {
        words
        for words, command in commands().items()
        if any(p.name in ("out", "plots") for p in command.params) or words == "report"
    }
    tested = {" ".join(w for w in name.split() if not w.startswith("-")) for name in (*FOLDERS, *FILES)}
    tested = {words.removesuffix(" csv").removesuffix(" json").removesuffix(" parquet") for words in tested}
    assert writes == tested | {"report"}
