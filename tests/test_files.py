"""What this program wrote is known again, whatever the library that encodes it; all else is the user's and stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from detsearch_cli import files
from detsearch_cli.errors import OutputError, StorageError
from detsearch_cli.files import (
    EXPORT_COLUMNS,
    claim_file,
    claim_folder,
    is_ours,
    signed_yaml,
    write_png,
    write_signed_json,
    write_text,
)
from detsearch_cli.report.figures import to_png
from detsearch_cli.report.page import RunPage
from detsearch_cli.search.export import write_parquet

PIXELS = np.zeros((4, 6, 3), np.uint8)
TABLE = pd.DataFrame([dict.fromkeys(EXPORT_COLUMNS, 1) | {"reason": None}])


def matplotlib_png() -> bytes:
    from matplotlib.figure import Figure

    return to_png(Figure(figsize=(2, 1)))


def page(path: Path) -> None:
    RunPage(name="r" * 300, recipe_yaml="x" * 200_000).write(path)


def wide_parquet(path: Path) -> None:
    """Many columns and rows: the descriptions of the columns alone are larger than what is looked at."""
    columns = {f"metric.{i:04d}.{'long' * 10}": np.random.default_rng(i).random(50) for i in range(1500)}
    write_parquet(pd.concat([pd.DataFrame(columns), TABLE], axis=1), path)
    assert path.stat().st_size > 10 * (1 << 16)  # beyond both ends that are looked at


OURS: dict[str, Callable[[Path], object]] = {
    "a.yaml": lambda p: write_text(p, signed_yaml("fragment of a search", "assign: {}\n")),
    "a.json": lambda p: write_signed_json(p, "export", {"trials": [1.5, None]}),
    "picture.png": lambda p: write_png(p, PIXELS),
    "figure.png": lambda p: p.write_bytes(matplotlib_png()),
    "a.html": page,
    "a.csv": lambda p: TABLE.to_csv(p, index=False),
    "empty.csv": lambda p: TABLE[list(EXPORT_COLUMNS)][:0].to_csv(p, index=False),
    "a.parquet": lambda p: write_parquet(TABLE, p),
    "empty.parquet": lambda p: write_parquet(TABLE[:0], p),
    "wide.parquet": wide_parquet,
}
NOT_OURS: dict[str, Callable[[Path], object]] = {
    "a.yaml": lambda p: p.write_text("detector: {name: fcos}\n"),
    "notes.yaml": lambda p: p.write_text("# detsearch: recipes that I like\noptim: {}\n"),
    "late.yaml": lambda p: p.write_text("\n# written by detsearch: not in its first line\n"),
    "a.json": lambda p: p.write_text(json.dumps({"images": [], "detsearch": "export"})),
    "list.json": lambda p: p.write_text("[]"),
    "picture.png": lambda p: Image.fromarray(PIXELS).save(p),
    "figure.png": lambda p: foreign_figure(p),
    "jpeg.png": lambda p: Image.fromarray(PIXELS).save(p, format="JPEG"),
    "a.html": lambda p: p.write_text("<!doctype html><p>about <meta name=detsearch></p>"),
    "a.csv": lambda p: pd.DataFrame({"number": [1], "state": [2]}).to_csv(p, index=False),
    "a.parquet": lambda p: pd.DataFrame({"detsearch": ["export", '"detsearch"']}).to_parquet(p),
    "empty.yaml": lambda p: p.touch(),
    "binary.png": lambda p: p.write_bytes(os.urandom(200_000)),
}


def foreign_figure(path: Path) -> None:
    from matplotlib.figure import Figure

    Figure(figsize=(2, 1)).savefig(path)


@pytest.mark.parametrize("name", OURS)
def test_what_was_written_is_known_again_and_may_be_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    OURS[name](path)
    assert is_ours(path)
    claim_file(path)


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_file_of_the_user_is_refused_and_keeps_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    NOT_OURS[name](path)
    before = path.read_bytes()
    assert not is_ours(path)
    with pytest.raises(OutputError, match=f"{name} exists and was not written by detsearch"):
        claim_file(path)
    assert path.read_bytes() == before


def test_a_signature_does_not_disturb_what_reads_the_file(tmp_path: Path) -> None:
    for name in ("a.yaml", "a.json", "picture.png", "wide.parquet"):
        OURS[name](tmp_path / name)
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"assign": {}}
    assert json.loads((tmp_path / "a.json").read_text())["trials"] == [1.5, None]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "picture.png")), PIXELS)
    table = pd.read_parquet(tmp_path / "wide.parquet")
    assert table.shape == (50, 1506) and table.number[0] == 1


def test_json_and_yaml_of_another_kind_are_not_replaced(tmp_path: Path) -> None:
    settings, fragment = tmp_path / "search.json", tmp_path / "best.yaml"
    write_signed_json(settings, "search", {})
    write_text(fragment, signed_yaml("fragment of s", "{}\n"))
    claim_file(settings, "search")
    claim_file(fragment, "fragment")
    for path in (settings, fragment):
        with pytest.raises(OutputError, match="was not written by detsearch as export"):
            claim_file(path, "export")
    write_png(tmp_path / "a.png", PIXELS)
    claim_file(tmp_path / "a.png", "export")  # a picture does not say what it is


def test_a_new_name_is_free(tmp_path: Path) -> None:
    claim_file(tmp_path / "new.png")
    claim_folder(tmp_path / "new", "recipe.yaml", "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_a_link_and_a_pipe_are_no_files_to_write(tmp_path: Path) -> None:
    write_png(tmp_path / "ours.png", PIXELS)
    (tmp_path / "link.png").symlink_to("ours.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in (("", "is a folder"), ("link.png", "a link"), ("dangling.png", "a link")):
        with pytest.raises(OutputError, match=said):
            claim_file(tmp_path / name)
    with pytest.raises(OutputError, match="exists"):
        claim_file(tmp_path / "pipe.png")  # must not wait for a writer
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "dangling.png").is_symlink()


def test_a_folder_with_the_signed_mark_is_taken_and_any_other_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "recipe.yaml", signed_yaml("recipe", "{}\n"))
    write_text(tmp_path / "run" / "mine.txt", "mine")
    claim_folder(tmp_path / "run", "recipe.yaml", "run")
    write_text(tmp_path / "other" / "recipe.yaml", "flour: 500 g\n")
    with pytest.raises(OutputError, match=r"holds recipe\.yaml and is no run of detsearch"):
        claim_folder(tmp_path / "other", "recipe.yaml", "run")
    with pytest.raises(OutputError, match="is a file; name a new folder for the run"):
        claim_folder(tmp_path / "run" / "mine.txt", "recipe.yaml", "run")


def test_a_folder_of_pictures_is_known_by_any_signed_one(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(OutputError, match=r"holds a\.png and is no folder of pictures"):
        claim_folder(tmp_path, None, "folder of pictures")
    write_png(tmp_path / "b.png", PIXELS)
    claim_folder(tmp_path, None, "folder of pictures")


def test_many_pictures_of_the_user_are_refused_at_once(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).resize((500, 500)).save(tmp_path / "0.png", compress_level=0)
    for i in range(1, 3000):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    start = time.monotonic()
    with pytest.raises(OutputError, match="is no folder of pictures"):
        claim_folder(tmp_path, None, "folder of pictures")
    assert time.monotonic() - start < 2


def test_an_empty_folder_and_the_temporaries_of_a_killed_write_are_free(tmp_path: Path) -> None:
    claim_folder(tmp_path, "recipe.yaml", "run")
    (tmp_path / ".recipe.yaml.123.tmp").write_text("half")
    claim_folder(tmp_path, "recipe.yaml", "run")
    (tmp_path / "x.tmp").touch()
    with pytest.raises(OutputError, match=r"holds x\.tmp"):
        claim_folder(tmp_path, "recipe.yaml", "run")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, PIXELS)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_png(path, np.zeros((2, 2, 3), np.complex128))
    with pytest.raises(StorageError, match="cannot write"):
        write_png(path / "b.png", PIXELS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------- what a killed process leaves

KILLED = """
import os, signal, sys
from pathlib import Path
from detsearch_cli.files import replace_file

def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


@pytest.fixture
def leftover(tmp_path: Path) -> Path:
    """The temporary file of a process that was killed while it wrote `weights`."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "weights")], check=False)
    assert done.returncode == -signal.SIGKILL
    (found,) = tmp_path.iterdir()
    assert found.read_text() == "half"
    return found


def test_the_next_write_removes_what_a_killed_one_left(leftover: Path) -> None:
    write_text(leftover.parent / "weights", "whole")
    assert [(p.name, p.read_text()) for p in leftover.parent.iterdir()] == [("weights", "whole")]


def test_a_folder_with_such_a_leftover_alone_is_still_nobodys(leftover: Path) -> None:
    claim_folder(leftover.parent, "recipe.yaml", "run")


def test_only_leftovers_of_dead_processes_of_this_machine_are_removed(leftover: Path) -> None:
    folder, (name, dead, machine) = leftover.parent, leftover.name[1:].removesuffix(".tmp").split(".")
    elsewhere = f"{int(machine, 16) ^ 1:08x}"
    kept = [
        folder / f".{name}.{os.getppid()}.{machine}.tmp",  # alive
        folder / f".{name}.{dead}.{elsewhere}.tmp",
        folder / f".{name}.{dead}.tmp",
        folder / f"{name}.{dead}.{machine}.tmp",
        folder / f".{name}.{dead}.{machine}.tmp.bak",
        folder / f".{name}.{'9' * 30}.{machine}.tmp",
        folder / f".{name}.0.{machine}.tmp",
        folder / f".notes.{dead}.{machine}.tmp",  # a link
        folder / f".folder.{dead}.{machine}.tmp",
        folder / "target",
    ]
    for path in kept[:-3]:
        path.write_text("kept")
    kept[-1].write_text("kept")
    kept[-3].symlink_to(kept[-1])
    kept[-2].mkdir()
    own = folder / f".other.{os.getpid()}.{machine}.tmp"  # of an earlier process that had our number
    own.write_text("left")
    write_text(folder / "weights", "whole")
    assert sorted(folder.iterdir()) == sorted([*kept, folder / "weights"])
    assert kept[-1].read_text() == "kept"


def test_a_temporary_file_that_this_process_is_writing_is_no_leftover(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_text("first")
        files._searched.discard(tmp_path)  # as if the other thread had come first
        write_text(tmp_path / "other", "second")
        assert path.read_text() == "first"

    files.replace_file(tmp_path / "one", write)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"one": "first", "other": "second"}


def test_a_folder_of_many_files_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    original = os.scandir
    monkeypatch.setattr(files.os, "scandir", lambda p: (looked.append(p), original(p))[1])
    for number in range(5):
        write_text(tmp_path / f"{number}.txt", "x")
    assert looked == [tmp_path]


def test_what_ends_the_process_removes_exactly_what_is_unfinished(tmp_path: Path) -> None:
    draft, file, kept = tmp_path / "draft", tmp_path / "file", tmp_path / "kept"
    (draft / "images").mkdir(parents=True)
    kept.mkdir()
    (kept / "a").write_text("a")
    (draft / "link").symlink_to(kept)
    file.write_text("half")
    with files.unfinished(draft), files.unfinished(file), files.unfinished(tmp_path / "not yet there"):
        files.remove_unfinished()
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (kept / "a").read_text() == "a"
    file.write_text("whole")
    files.remove_unfinished()
    assert file.read_text() == "whole"
