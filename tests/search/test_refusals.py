"""Refused candidates: nothing is trained, no row is added, the sampler hears of it, and a search ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detsearch_cli.errors import RecipeError, StorageError, StudyError
from detsearch_cli.search import coordinator, proposing
from detsearch_cli.search.plan import Event, Prepared, Refused
from detsearch_cli.search.refusals import REFUSED, read_refusals
from detsearch_cli.search.space import Candidate, Integer, Product
from detsearch_cli.search.study import Trial, open_study
from tests.search.driving import Inline, prepare, search, story
from tests.search.driving import refusing_even as odd
from tests.search.words import Words

MANY = 400


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(proposing, "MAX_REFUSED_IN_A_ROW", MANY)


def none(candidate: Candidate | None) -> Prepared | Refused:
    return prepare(None) if candidate is None else Refused("never")


def test_a_refused_candidate_is_no_trial_and_the_log_says_why(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s", trials=6, prepare=odd)
    assert len(outcome.trials) == 7 and all(t.state == "complete" for t in outcome.trials)
    assert all(t.candidate["a"] % 2 for t in outcome.trials if t.candidate)
    lines = [json.loads(line) for line in (tmp_path / "s" / REFUSED).read_text().splitlines()]
    assert outcome.refused == len(lines) > 0
    assert all(line["reason"] == "a must be odd" and line["candidate"]["a"] % 2 == 0 for line in lines)
    assert list(lines[0]) == ["asked", "told", "candidate", "epochs", "reason"]
    numbers = [line[event] for line in lines for event in ("asked", "told")]
    numbers += [number for t in outcome.trials if t.candidate for number in (t.asked, t.told)]
    assert sorted(numbers) == list(range(len(numbers)))


@pytest.mark.parametrize(
    "error, told",
    [
        (RecipeError("loss is no key"), "loss is no key"),
        (ValueError("no such count\nmore"), "no recipe: ValueError: no such count"),
    ],
)
def test_a_candidate_without_a_recipe_is_refused(tmp_path: Path, error: Exception, told: str) -> None:
    def make(candidate: Candidate | None) -> Prepared:
        if candidate and candidate["a"] == 2:
            raise error
        return prepare(candidate)

    space = Product((Integer("a", 1, 4),))
    outcome = search(tmp_path / "s", trials=4, sampler="grid", space=space, prepare=make)
    assert [t.candidate for t in outcome.trials] == [None, {"a": 1}, {"a": 3}, {"a": 4}]
    assert [refusal.reason for refusal in read_refusals(tmp_path / "s")] == [told]


def test_a_disk_that_refuses_is_not_the_candidates_fault(tmp_path: Path) -> None:
    def make(candidate: Candidate | None) -> Prepared:
        if candidate:
            raise StorageError("full")
        return prepare(candidate)

    with pytest.raises(StorageError):
        search(tmp_path / "s", prepare=make)
    assert read_refusals(tmp_path / "s") == []


def test_a_refused_baseline_ends_the_search_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="the recipe itself cannot be trained: never"):
        search(tmp_path / "s", prepare=lambda candidate: Refused("never"))


def test_a_search_whose_candidates_are_all_refused_gives_up_and_the_baseline_is_the_best(
    tmp_path: Path,
) -> None:
    events: list[Event] = []
    outcome = search(tmp_path / "s", "quick", events.append, prepare=none, space=Words("abcdefgh"))
    assert outcome.reason == f"the last {MANY} proposals were refused, most often: never"
    assert outcome.refused == MANY and outcome.best == outcome.baseline and not outcome.all_failed
    told = [event.message for event in events if event.kind == "refused"]
    assert len(told) <= 4 and told[-1] == f"{MANY} refused so far, most often: never"
    again = search(tmp_path / "s", prepare=none, space=Words("abcdefgh"))
    assert again.reason == outcome.reason and again.refused == MANY


@pytest.mark.parametrize("sampler", ["random", "grid", "dycors", "tpe"])
def test_a_small_space_of_refused_candidates_is_exhausted(tmp_path: Path, sampler: str) -> None:
    space = Product((Integer("a", 1, 6),))
    some = search(tmp_path / "some", trials=40, sampler=sampler, space=space, prepare=odd)
    assert sum(t.trained for t in some.trials) == 3
    assert "tried (6)" in some.reason or "proposed all its candidates (3)" in some.reason
    assert "3 proposals were refused" in some.reason or sampler != "grid"
    every = search(tmp_path / "every", trials=40, sampler=sampler, space=space, prepare=none)
    assert len(every.trials) == 1 and "most often: never" in every.reason


def test_the_time_budget_ends_a_search_that_only_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing, "MAX_REFUSED_IN_A_ROW", 10**9)
    outcome = search(tmp_path / "s", prepare=none, space=Words("abcdefgh"), time_budget=0.5)
    assert outcome.reason.startswith("the time budget of 0.5 s is spent; ")


def test_ctrl_c_ends_a_search_that_only_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[int] = []

    def refuse(candidate: Candidate | None) -> Prepared | Refused:
        pressed.append(1)
        return none(candidate)

    class Pressed:
        def __enter__(self) -> Any:
            return lambda: len(pressed) > 20

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(coordinator, "interruptible", Pressed)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "s", prepare=refuse)
    assert len(read_refusals(tmp_path / "s")) == 20


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("sampler", ["random", "dycors", "tpe", "cmaes"])
def test_a_search_in_pieces_refuses_and_trains_what_the_search_in_one_does(
    tmp_path: Path, sampler: str, jobs: int
) -> None:
    class Stop(Exception):
        pass

    options: dict[str, Any] = {"trials": 9, "sampler": sampler, "prepare": odd, "jobs": jobs}
    whole = search(tmp_path / "whole", **options)
    folder = tmp_path / "pieces"
    calls = 0

    def killed(candidate: Candidate | None) -> Prepared | Refused:
        nonlocal calls
        calls += 1
        if calls % 5 == 4:
            raise KeyboardInterrupt
        return odd(candidate)

    for _ in range(50):
        try:
            pieces = search(folder, **{**options, "prepare": killed})
            break
        except KeyboardInterrupt:
            continue
    assert story(pieces.trials) == story(whole.trials)
    assert read_refusals(folder) == read_refusals(tmp_path / "whole")


def test_a_torn_last_line_is_dropped_and_written_again(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", trials=9, prepare=odd)
    search(tmp_path / "s", trials=5, prepare=odd)
    log = tmp_path / "s" / REFUSED
    with log.open("ab") as file:
        file.write(b'{"asked": 99, "told": 1')
    outcome = search(tmp_path / "s", trials=9, prepare=odd, budget=9)
    assert [t.candidate for t in outcome.trials] == [t.candidate for t in whole.trials]
    assert log.read_bytes() == (tmp_path / "whole" / REFUSED).read_bytes()


def test_a_lost_log_is_noticed_before_the_sampler_is_rebuilt_without_it(tmp_path: Path) -> None:
    search(tmp_path / "s", trials=5, prepare=odd)
    (tmp_path / "s" / REFUSED).unlink()
    with pytest.raises(StudyError, match=r"event \d+ of \d+ of the sampler is neither in"):
        search(tmp_path / "s", trials=9, prepare=odd)


def test_the_log_is_synced_before_a_row_of_a_later_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detsearch_cli.search import ledger, refusals

    synced: list[int] = []
    order: list[tuple[int, int]] = []
    monkeypatch.setattr(refusals.os, "fsync", lambda descriptor: synced.append(1))
    written = ledger.Ledger._refresh

    def refresh(self: ledger.Ledger, trial_id: int) -> Trial:
        order.append((len(self.refusals.entries), int(self.refusals._unsynced)))
        return written(self, trial_id)

    monkeypatch.setattr(ledger.Ledger, "_refresh", refresh)
    outcome = search(tmp_path / "s", trials=5, prepare=odd)
    assert outcome.refused and synced and all(not unsynced for _, unsynced in order)


def test_candidates_that_are_no_product_are_kept_as_json(tmp_path: Path) -> None:
    outcome = search(
        tmp_path / "s", trials=3, space=Words(), prepare=lambda c: prepare(c and {"a": len(c["word"])})
    )
    study = open_study(tmp_path / "s")
    assert study.config.space is None and study.config.space_json == {"kind": "words", "letters": "abc"}
    assert study.trials == outcome.trials
    assert all(set(t.candidate["word"]) <= set("abc") for t in study.trials if t.candidate)
    assert story(search(tmp_path / "s", trials=3, space=Words(), prepare=prepare).trials) == story(
        study.trials
    )
    with pytest.raises(StudyError, match=r"space.letters is abc there, abd here"):
        search(tmp_path / "s", space=Words("abd"))


def test_a_sampler_that_does_not_fit_the_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        search(tmp_path / "s", space=Words(), sampler="dycors")
    assert str(caught.value) == "the sampler dycors cannot search a space of the kind 'words'; random can"
    assert not (tmp_path / "s").exists()
