"""The commands as a user gives them: exit codes, one sentence an error, files written."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest

from detsearch_cli.cli.app import run
from detsearch_cli.engine.checkpoint import read_recipe
from detsearch_cli.engine.trial import load_data
from detsearch_cli.session.study import study_of
from tests.cli.small import SMALL
from tests.data.samples import yolo


def test_eval_of_a_run_and_of_its_detections_agree(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(trained), "--split", "val", "--json", "--plots", str(tmp_path)]) == 0
    own = json.loads(capsys.readouterr().out)
    data = SMALL[SMALL.index("--data") + 1]
    assert (
        run(
            [
                "eval",
                "--detections",
                str(trained / "detections.json"),
                "--data",
                data,
                "--split",
                "val",
                "--json",
            ]
        )
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert own["coco"] == pytest.approx(again["coco"], nan_ok=True)
    assert {p.name for p in tmp_path.iterdir()} == {"precision_recall.png", "confusion.png"}


def test_fail_under_exits_1_and_compare_gives_an_interval(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", str(trained), "--fail-under", "AP=0.99", "--compare", str(trained)]) == 1
    told = capsys.readouterr().err
    assert "under the required 0.99" in told
    assert "+0.0 AP [+0.0, +0.0]" in told and told.count("within noise") == 1


def test_predict_draws_pictures_and_prints_coco_json(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("L", (80, 50), 128).save(tmp_path / "grey.png")
    assert run(["predict", str(trained), str(tmp_path / "grey.png"), "--out", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "grey.png").size == (80, 50)
    capsys.readouterr()
    assert run(["predict", str(trained), str(tmp_path / "grey.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["id"] == 1


def test_one_broken_picture_does_not_stop_predict_and_is_noticed_by_a_script(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    for name in "abc":
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no image")
    assert run(["predict", str(trained), str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    told = capsys.readouterr().err
    assert f"{tmp_path / 'b.png'} is passed over: it is no image" in told
    assert told.count("error:") == 1 and "1 of 3 files cannot be read" in told
    assert run(["predict", str(trained), str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [image["id"] for image in found["images"]] == [1, 3] and len(found["unreadable"]) == 1

    assert run(["predict", str(trained), str(tmp_path / "b.png"), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "none of the 1 files can be read as an image" in captured.err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(["predict", str(trained), str(tmp_path / "a.png"), "--out", str(tmp_path / "out2")]) == 1
    assert "No space left on device" in capsys.readouterr().err


def test_data_that_changed_since_the_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = yolo(tmp_path / "set")
    words = [*SMALL, "--data", str(folder), "--out", str(tmp_path / "run")]
    assert run(["train", *words]) == 0
    assert "began with" not in capsys.readouterr().err
    (folder / "labels" / "val" / "val0.txt").write_text("0 0.2 0.2 0.1 0.1\n")
    for again in (["train", *words], ["eval", str(tmp_path / "run")]):
        load_data.cache_clear()  # as another process would begin
        assert run(again) == 0
        assert "(val: 1 with other labels)" in capsys.readouterr().err


def test_a_search_writes_its_files_and_the_study_can_be_read(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"best.yaml", "report.html", "search.json", "study.db", "trials"} <= {
        p.name for p in study.iterdir()
    }
    for ending in ("csv", "parquet", "json"):
        assert run(["study", "export", str(study), str(tmp_path / f"t.{ending}")]) == 0
    capsys.readouterr()
    assert run(["study", "list", str(study.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["trials"] == 3
    assert run(["study", "resume", str(study)]) == 0
    assert run(["study", "show", str(study)]) == 0


def test_searches_are_compared_by_what_they_found_so_far(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "searches.png"
    again = shutil.copytree(study, tmp_path / "again")
    assert run(["study", "compare", str(study), str(again), "--out", str(picture), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    scores = [
        t.value or 0.0 for t in study_of(study).trials if t.candidate is not None and t.again_of is None
    ]
    expected = list(itertools.accumulate(scores, max))
    assert content["best_so_far"] == {"dycors": [expected, expected]} and len(expected) > 1
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run(["study", "compare", str(study), str(again), "--out", str(picture)]) == 0
    assert run(["study", "compare", str(study), f"{study}/.", "--out", str(picture)]) == 2
    assert "was given twice" in capsys.readouterr().err
    assert run(["study", "compare", str(study), "--out", str(tmp_path / "searches.jpg")]) == 2
    assert "the picture is a .png" in capsys.readouterr().err


def test_a_candidate_of_a_study_can_be_looked_at(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = ["assign", "show", "--study", str(study), "--samples", "0", "--images", "2", "--json"]
    out = str(study.parent / "shown")
    assert run([*show, "--trial", "1", "--out", out]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["counts"] == study_of(study).trials[1].fragment["assign"]["counts"]
    leader = study_of(study).leader
    assert leader is not None
    assert run([*show, "--trial", "leader", "--out", out]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == leader.trial.fragment["assign"]["counts"]
    for given, told in (
        ("99", "trial 99 is none of its trials"),
        ("best", "is the number of a trial, or leader"),
    ):
        assert run([*show, "--trial", given]) == 2
        assert told in capsys.readouterr().err


def test_the_recipe_as_given_is_the_baseline_of_every_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("three", 3), ("nine", 9)):
        (tmp_path / f"{name}.yaml").write_text(f"assign: {{name: dynamic, counts: [[{count}]]}}\n")
    against = [word for name in ("three", "nine") for word in ("--against", str(tmp_path / f"{name}.yaml"))]
    given = [*SMALL, "--set", "assign=simota", *against, "--out", str(tmp_path / "out")]
    assert run(["assign", "train", *given, "--baseline", "--seeds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sides"] == ["baseline", "three", "nine"]
    assert [r["side"] for r in told["runs"]] == told["sides"] * 2
    for found in told["comparisons"].values():
        over = found["over_seeds"]
        assert over["low"] <= over["difference"] <= over["high"]
    first = read_recipe(tmp_path / "out" / "baseline-seed0").assign
    assert first is not None and first.name == "simota"
    assert run(["assign", "train", *given, "--baseline", "--seeds", "2"]) == 0  # nothing is trained again
    assert "difference of nine" in capsys.readouterr().err


def test_several_trainings_at_a_time_give_what_one_after_the_other_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "three.yaml").write_text("assign: {name: dynamic, counts: [[3]]}\n")
    words = ["assign", "train", *SMALL, "--against", str(tmp_path / "three.yaml"), "--baseline", "--json"]
    told = []
    for jobs in ("1", "2"):
        capsys.readouterr()
        assert run([*words, "--jobs", jobs, "--out", str(tmp_path / jobs)]) == 0
        told.append(json.loads(capsys.readouterr().out))
    scores = [[(r["side"], r["coco"]) for r in one["runs"]] for one in told]
    assert scores[0] == scores[1]


def test_a_fragment_is_shown_as_counts_and_pictures(tmp_path: Path) -> None:
    fragment = tmp_path / "f.yaml"
    fragment.write_text("assign: {name: dynamic, counts: [[3]]}\n")
    show = ["assign", "show", *SMALL, "--recipe", str(fragment), "--images", "4", "--samples", "1"]
    for _ in range(2):  # the second time over pictures of our own
        assert run([*show, "--out", str(tmp_path / "show")]) == 0
    assert len(list((tmp_path / "show").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "no/such/folder"], "no/such/folder"),
        (["train", *SMALL, "--detector", "fcoss"], "did you mean 'fcos'"),
        (["train", *SMALL, "--set", "optim.lrr=1"], "optim.lrr is no key"),
        (["train", *SMALL, "--image-size", "big"], "--image-size takes pixels"),
        (["train", *SMALL, "--recipe", "none.yaml"], "cannot read none.yaml"),
        (["train", *SMALL, "--device", "cuda"], "this machine has cpu alone"),
        (["eval", "no/run"], "no/run"),
        (["eval"], "exactly one of"),
        (["assign", "search", *SMALL, "--sampler", "magic"], "magic"),
        (["assign", "search", *SMALL, "--bins", "3,3"], "bins must be"),
        (["study", "show", "no/study"], "no/study"),
        (["assign", "show", "--study", "no/study"], "no/study is no study"),
        (["data", "inspect", "no/data"], "no/data"),
    ],
)
def test_what_the_user_can_fix_is_one_sentence_and_exit_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_a_truncated_ledger_is_refused_and_left_alone(study: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "s"
    shutil.copytree(study, copy)
    (copy / "study.db").write_bytes((study / "study.db").read_bytes()[:5000])
    before = (copy / "study.db").read_bytes()
    assert run(["study", "resume", str(copy)]) == 2
    assert (copy / "study.db").read_bytes() == before
