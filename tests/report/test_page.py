"""Pages: honest wording for every outcome, all content present and escaped, nothing loaded from outside."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.errors import OutputError, StorageError
from detsearch_cli.report import page as pages
from detsearch_cli.report.figures import EpochPoint, Figure
from detsearch_cli.report.page import ClassScore, RunClass, RunPage, SideBySide, StudyPage, Table
from detsearch_cli.report.verdict import SeedComparison, judge
from tests.trials import Trial

HOSTILE = "<script>alert('x')</script>"
SIDES = ("annotations", "baseline", "best")
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """An independent reading of the page: visible text, attributes, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, tag: str, name: str) -> list[str]:
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def rows(*values: float | None, baseline: float | None = 0.381) -> list[Trial]:
    """The baseline as trial 0, then candidates; None is a failed trial."""
    out = [Trial(0, None, "complete", baseline, 20.0)] if baseline is not None else []
    for i, v in enumerate(values, 1):
        state, reason = ("complete", None) if v is not None else ("failed", f"loss became NaN at step {i}")
        out.append(Trial(i, {"k": i}, state, v, 19.0 + i, reason))
    return out


def comparison(low: float | None, high: float | None, seeds: Sequence[int] = (0, 1, 2)) -> SeedComparison:
    n = len(seeds)
    middle = 0.02 if low is None or high is None else (low + high) / 2
    scores = [0.37 + 0.001 * i for i in range(n)]
    return SeedComparison(
        seeds,
        scores,
        [s + middle for s in scores],
        middle,
        low,
        high,
        "paired t-interval over seeds",
        "test",
        72,
    )


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def study() -> StudyPage:
    png = io.BytesIO()
    Image.fromarray(picture()).save(png, "PNG")
    return StudyPage(
        name="bccd-fcos",
        method="HPS-Det sample assignment",
        setup={"detector": "FCOS", "data": "bccd"},
        rows=rows(0.295, None, 0.412),
        split="val (73 images)",
        comparison=comparison(0.011, 0.035),
        importances={"p3_wide": 0.7, "p4_tall": 0.3},
        tables=[Table("Counts", "per ground truth", ("level", "wide", "tall"), [("P3", 3, 12)])],
        figures=[Figure("Positives", "by size", png.getvalue(), "bars of positives")],
        classes=[
            ClassScore("RBC", 812, 0.42, 0.447),
            ClassScore(HOSTILE, 3, 0.11, 0.163),
            ClassScore("x", 0, None),
        ],
        samples=[SideBySide("a.jpg", [(label, picture(i)) for i, label in enumerate(SIDES)])],
        fragment_yaml="assign:\n  name: dynamic  # & more\n",
        recipe_yaml="detector:\n  name: fcos\n",
        versions={"torch": "2.15.0"},
        seeds={"search": 7},
        command="detsearch assign search --data bccd --seed 7",
        timing={"whole search": 3725.0},
        notes=["val was held out of train"],
        created="2025-01-02",
    )  # fmt: skip


def run() -> RunPage:
    return RunPage(
        name="run-1",
        coco={"AP": 0.381, "AP50": 0.71, "APs": None},
        epochs=[EpochPoint(1, {"cls": 1.0, "box": 0.5}, 0.1), EpochPoint(2, {"cls": 0.7, "box": 0.4}, 0.381)],
        classes=[
            RunClass("small", 5, 0.1, 0.2),
            RunClass(HOSTILE, 9, 0.5, 0.8),
            RunClass("empty", 0, math.nan, None),
        ],
        samples=[SideBySide("b.jpg", [("annotations", picture(1)), ("detections", picture(2))])],
        recipe_yaml="detector:\n  name: fcos\n",
        command="detsearch train --detector fcos",
        timing={"training": 61.2},
    )


@pytest.mark.parametrize("page", [study(), run()], ids=["study", "run"])
def test_page_loads_nothing_from_outside(page: StudyPage | RunPage) -> None:
    text = page.render()
    reader = Reader(text)
    for tag, name, value in reader.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert [v for v in reader.values("meta", "content") if "default-src 'none'" in v]


def test_policy_allows_exactly_the_page_s_own_script() -> None:
    text = study().render()
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


@pytest.mark.parametrize("page", [study(), run()], ids=["study", "run"])
def test_hostile_names_stay_text(page: StudyPage | RunPage) -> None:
    text = page.render()
    assert HOSTILE not in text
    assert "<script>alert" in Reader(text).text
    assert text.count("<script") == 1


def test_every_foreign_string_is_escaped() -> None:
    evil = '"><img src=x onerror=alert(1)>'
    page = replace(
        study(), name=evil, method=evil, setup={evil: evil}, split=evil, class_split=evil,
        importances={evil: 1.0}, tables=[Table(evil, evil, (evil, "b"), [(evil, evil)])], fragment_yaml=evil,
        recipe_yaml=evil, fragment_path=evil, usage=[evil], versions={evil: evil}, seeds={evil: evil},
        command=evil, notes=[evil], created=evil, samples=[SideBySide(evil, [(evil, picture())])],
        figures=[Figure(evil, evil, b"", evil)],
        rows=[*rows(0.4), Trial(9, {evil: evil}, evil), Trial(10, {"k": 1}, "failed", reason=evil)],
    )  # fmt: skip
    reader = Reader(page.render())
    assert [a for a in reader.attributes if a[1] == "onerror"] == []
    assert "x" not in reader.values("img", "src")


def test_study_page_holds_every_part() -> None:
    reader = Reader(study().render())
    for said in (
        "bccd-fcos", "HPS-Det sample assignment", "38.1", "41.2", "trial 3", "val (73 images)", "72 images",
        "paired t-interval over seeds", "Counts", "per ground truth", "Positives", "RBC", "44.7", "+2.7",
        "annotations", "name: dynamic # & more", "detsearch train --recipe best.yaml", "name: fcos", "2.15.0",
        "search 7", "detsearch assign search --data bccd --seed 7", "1 h 02 min", "val was held out of train",
        "2025-01-02", "loss became NaN at step 2",
    ):  # fmt: skip
        assert said in reader.text, said
    pictures = reader.values("img", "src")
    assert len(pictures) == 3 + 1
    assert len(reader.values("img", "alt")) == 4 and all(reader.values("img", "alt"))


def test_comparison_lists_every_seed() -> None:
    reader = Reader(study().render())
    assert "0 37.0 39.3 +2.3 1 37.1 39.4 +2.3 2 37.2 39.5 +2.3 Mean 37.1 39.4 +2.3" in reader.text
    assert "95% interval of the difference +1.1 to +3.5" in reader.text


def test_failed_trials_are_listed_with_their_reasons_and_without_a_score() -> None:
    page = replace(
        study(),
        rows=[*rows(0.3, None), Trial(3, {"k": 9}, "failed", 0.99, 1.0, "a\n" * 40 + "out of memory")],
    )
    text = page.render()
    reader = Reader(text)
    assert "failed k= 2 loss became NaN at step 2" in reader.text
    assert "out of memory" in reader.text and "whole message" in reader.text
    assert "99.0" not in reader.text
    assert "4 2 scored, 2 failed" in reader.text
    assert "2 trials failed and have no score" in reader.text


@pytest.mark.parametrize(
    ("low", "high", "kind", "headline", "detail"),
    [
        (0.011, 0.035, "improved", "+2.3 AP over the baseline (95% interval +1.1 to +3.5)", "3 seeds each"),
        (-0.01, 0.03, "noise", "+1.0 AP: within noise", "contains 0, so no improvement is claimed"),
        (0.0, 0.03, "noise", "+1.5 AP: within noise", "contains 0"),
        (-0.03, -0.01, "worse", "\N{MINUS SIGN}2.0 AP: worse than the baseline", "keep the baseline"),
        (None, None, "unproven", "without an interval", "No improvement is claimed without an interval"),
        (
            math.nan,
            math.nan,
            "unproven",
            "without an interval",
            "No improvement is claimed without an interval",
        ),
    ],
)
def test_a_comparison_claims_only_what_its_interval_shows(
    low: float | None, high: float | None, kind: str, headline: str, detail: str
) -> None:
    c = (
        comparison(low, high)
        if low is None or math.isfinite(low)
        else replace(comparison(0, 0), low=low, high=high)
    )
    said = judge(rows(0.412), c, "val")
    assert said.kind == kind
    assert headline in said.headline
    assert detail in said.detail
    text = Reader(replace(study(), rows=rows(0.412), comparison=c).render()).text
    assert said.headline in text and said.detail in text


@pytest.mark.parametrize(
    ("trials", "kind", "headline", "detail"),
    [
        ([], "pending", "No trial has finished yet", "Nothing was measured"),
        ([Trial(0, None, "running")], "pending", "No trial has finished yet", "Nothing was measured"),
        (rows(None, None, baseline=None), "failed", "All 2 trials failed", "table of trials"),
        (rows(None, baseline=None), "failed", "The only trial failed", "table of trials"),
        (rows(), "pending", "Only the baseline has a score: AP 38.1", "nothing to compare"),
        (rows(None), "pending", "Only the baseline has a score", "No candidate has finished"),
        (
            rows(0.3, 0.37),
            "same",
            "Nothing better than the baseline was found",
            "stayed below the baseline's 38.1",
        ),
        (rows(0.381), "same", "Nothing better than the baseline was found", "tied with"),
        (rows(0.4, baseline=None), "alone", "with no baseline to compare", "is unknown"),
        (
            rows(0.3, 0.412),
            "unproven",
            "scored AP 41.2 in the search, the baseline 38.1",
            "not yet an improvement",
        ),
    ],
)
def test_every_outcome_of_a_search_has_an_honest_headline(
    trials: list[Trial], kind: str, headline: str, detail: str
) -> None:
    said = judge(trials, None, "val")
    assert (said.kind, headline in said.headline, detail in said.detail) == (kind, True, True), said
    page = replace(study(), rows=trials, comparison=None)
    assert said.headline in Reader(page.render()).text


def test_nothing_better_stays_nothing_better_when_a_comparison_is_given() -> None:
    assert judge(rows(0.3), comparison(0.01, 0.02), "val").kind == "same"


def test_a_single_training_each_is_named_as_such() -> None:
    assert "not the luck of a seed" in judge(rows(0.412), comparison(0.01, 0.03, seeds=(0,)), "val").detail


def test_a_baseline_that_learned_nothing_is_said_beside_the_claim() -> None:
    claimed = comparison(0.01, 0.03)
    unlearned = replace(claimed, baseline=[0.0002] * 3)
    assert "learned next to nothing (AP 0.02 at best)" in judge(rows(0.40), unlearned, "val").detail
    assert "learned next to nothing" not in judge(rows(0.40), claimed, "val").detail


def test_repeats_answered_from_the_ledger_count_neither_as_candidates_nor_as_time() -> None:
    trials = [*rows(0.3, 0.412), Trial(3, {"k": 2}, "repeat", 0.412, 0.0)]
    assert "highest of 2 candidates" in judge(trials, None, "val").detail
    text = Reader(replace(study(), rows=trials, comparison=None).render()).text
    assert "1 repeats another" in text and "20 s median" in text


def test_a_stopped_trial_is_shown_and_is_neither_best_nor_complete_nor_failed() -> None:
    trials = [*rows(0.3, 0.412, None), Trial(4, {"k": 7}, "stopped", 0.6, 6.0)]
    said = judge(trials, None, "val")
    assert "A candidate scored AP 41.2" in said.headline and "highest of 2 candidates" in said.detail
    text = Reader(replace(study(), rows=trials, comparison=None).render()).text
    assert "Trials 5 3 scored, 1 failed , 1 stopped early Time of a trial" in text
    assert "4 60.0 6.0 s stopped early k= 7" in text
    assert "1 trial stopped early, after fewer epochs" in text
    assert "Best found 41.2 trial 2" in text


def test_a_stopped_candidate_alone_is_nothing_to_compare() -> None:
    trials = [*rows(), Trial(1, {"k": 7}, "stopped", 0.6, 6.0)]
    assert judge(trials, None, "val").kind == "pending"
    assert "stopped early" not in Reader(replace(study(), rows=rows(), comparison=None).render()).text


def test_comparison_needs_one_score_a_seed() -> None:
    with pytest.raises(ValueError, match="2 seeds, 1 and 2 scores"):
        SeedComparison((0, 1), (0.1,), (0.1, 0.2), 0.0, None, None, "none")


def test_bare_study_renders() -> None:
    reader = Reader(StudyPage(name="empty", rows=[]).render())
    assert "No trial has started yet" in reader.text
    assert "Sample detections" not in reader.text


def test_large_study_shows_all_trials_and_classes() -> None:
    many = [Trial(i, {"k": i} if i else None, "complete", 0.3 + i / 10_000, 20.0) for i in range(300)]
    classes = [ClassScore(f"class-{i}", i, 0.5, 0.5 + (i - 40) / 1000) for i in range(80)]
    text = Reader(replace(study(), rows=many, classes=classes, comparison=None).render()).text
    assert all(f"class-{i} " in text for i in range(80))
    assert text.index("class-79 ") < text.index("class-40 ") < text.index("class-0 ")  # largest gain first
    assert "300 scored" in text and "k= 299" in text


@pytest.mark.parametrize("make", [study, run])
def test_the_same_input_gives_the_same_page(make: type[StudyPage] | type[RunPage]) -> None:
    assert make().render() == make().render()


def test_tables_have_headers_with_a_scope() -> None:
    for page in (study(), run()):
        text = page.render()
        heads = re.findall(r"<th\b[^>]*>", text)
        assert heads and all('scope="' in h for h in heads)


def test_contents_lead_to_sections_that_exist() -> None:
    for page in (
        study(),
        replace(study(), comparison=None, tables=[], figures=[], importances={}, samples=[]),
    ):
        reader = Reader(page.render())
        targets = {v for t, n, v in reader.attributes if n == "id" and t == "section"}
        assert {h[1:] for h in reader.values("a", "href")} <= targets


def test_run_page_holds_every_part() -> None:
    reader = Reader(run().render())
    for said in (
        "AP 38.1 on the val split",
        "71.0",
        "APs – small",
        "detections",
        "1 min 01 s",
        "empty 0 – –",
    ):
        assert said in reader.text
    assert reader.text.index("50.0") < reader.text.index("small 5")
    assert "No score yet" in Reader(RunPage(name="new").render()).text


def test_pictures_are_embedded_unchanged_when_small_and_shrunk_when_large() -> None:
    uri = pages.image_uri(picture())
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(decoded, picture())
    large = pages.image_uri(picture(height=800, width=1333))
    assert large.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))).size == (640, 384)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_pictures_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        pages.image_uri(wrong)


def test_rows_of_a_table_must_fit_its_columns() -> None:
    with pytest.raises(ValueError, match="2 cells like the columns, got 3"):
        Table("t", "", ("a", "b"), [("x", 1, 2)])


def test_write_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    run().write(target)
    study().write(target)
    assert target.read_text(encoding="utf-8") == study().render()
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]


def test_full_disk_is_a_storage_error_and_keeps_the_old_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "report.html"
    old = replace(run(), name="old").render()
    target.write_text(old)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        run().write(target)
    assert target.read_text() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_page_of_somebody_else_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("<!doctype html><title>mine</title>")
    for page in (run(), study()):
        with pytest.raises(OutputError, match=r"report\.html exists and was not written by detsearch"):
            page.write(target)
    assert target.read_text() == "<!doctype html><title>mine</title>"


def test_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another place"):
        run().write(tmp_path / "file" / "report.html")


def test_names_that_are_no_unicode_do_not_stop_the_page(tmp_path: Path) -> None:
    replace(run(), name="bad\udcff").write(tmp_path / "report.html")
    assert "bad\\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.84, "0.8 s"),
        (43.2, "43 s"),
        (59.9, "1 min 00 s"),
        (725, "12 min 05 s"),
        (10930, "3 h 02 min"),
        (None, "–"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float | None, said: str) -> None:
    assert pages.duration(seconds) == said
