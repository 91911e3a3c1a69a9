"""One search in one process: budgets, repeats, failures, resuming. Trials run inline, without workers."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from detsearch_cli.errors import StorageError, StudyError
from detsearch_cli.files import signed_yaml
from detsearch_cli.search import coordinator, proposing
from detsearch_cli.search.coordinator import Event
from detsearch_cli.search.space import Integer, Product
from detsearch_cli.search.study import open_study, trial_folder
from tests.search.driving import Inline, prepared, read, search, story


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "executor_class", lambda name: Inline)
    monkeypatch.setattr(coordinator, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(proposing, "MAX_KNOWN_IN_A_ROW", 12)


def test_trial_0_is_the_baseline_and_the_sampler_never_hears_of_it(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s", trials=5)
    first = outcome.trials[0]
    assert first.baseline and first.candidate is None and first.state == "complete"
    assert first.asked is None and first.told is None
    assert outcome.baseline == first
    assert [trial.number for trial in outcome.trials] == list(range(6))
    assert sorted(e for trial in outcome.trials[1:] for e in (trial.asked, trial.told)) == list(range(10))
    assert outcome.reason == "all 5 trials are done"


def test_the_best_may_be_the_baseline(tmp_path: Path) -> None:
    space = Product((Integer("a", 20, 25),))  # all worse than the baseline's 2
    outcome = search(tmp_path / "s", trials=3, space=space, sampler="grid")
    assert outcome.best == outcome.baseline


def test_rows_read_back_are_the_rows_of_the_outcome(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s", trials=3)
    study = open_study(tmp_path / "s")
    assert study.trials == outcome.trials
    trial = study.trials[1]
    assert trial.metrics["coco"]["AP50"] == 0.7 and math.isnan(trial.metrics["coco"]["APs"])
    assert (trial.folder / "recipe.yaml").read_text() == signed_yaml("run", trial.recipe_yaml)
    assert trial.fragment == {"assign": trial.candidate}
    assert trial.seconds is not None and trial.worker


def test_failures_are_recorded_with_one_line_and_never_as_zero(tmp_path: Path) -> None:
    events: list[Event] = []
    space = Product((Integer("a", 1, 6),))
    outcome = search(tmp_path / "s", "failing", events.append, trials=6, sampler="grid", space=space)
    reasons = {
        trial.candidate["a"]: trial.reason
        for trial in outcome.trials
        if trial.state == "failed" and trial.candidate
    }
    assert reasons == {
        1: "ValueError: bad number 1",
        3: "ValueError: bad number 3",
        4: "AP is nan, not a number",
        5: "ValueError: bad number 5",
    }
    assert all(trial.value is None for trial in outcome.trials if trial.state == "failed")
    assert "second line" in (outcome.trials[1].folder / "error.txt").read_text()
    assert not outcome.all_failed
    assert sum(event.kind == "failed" for event in events) == 4


def test_a_search_whose_trials_all_failed_says_so(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s", "always_failing", trials=3, sampler="dycors")
    assert outcome.all_failed and outcome.best is None
    assert open_study(tmp_path / "s").all_failed
    assert outcome.trials[0].reason == "RuntimeError: CUDA error: nothing works"


def test_repeats_are_answered_from_the_ledger_until_the_space_is_exhausted(tmp_path: Path) -> None:
    space = Product((Integer("a", 1, 3), Integer("b", 1, 2)))
    for sampler in ("dycors", "random"):
        folder = tmp_path / sampler
        outcome = search(folder, trials=40, sampler=sampler, space=space)
        trained = [trial for trial in outcome.trials if trial.trained]
        assert len(trained) == 6
        assert outcome.reason == "every candidate of the space has been tried (6)"
        for trial in outcome.trials:
            if trial.repeat_of is not None:
                assert trial.state == "repeat" and trial.value == outcome.trials[trial.repeat_of].value
                assert trial.candidate == outcome.trials[trial.repeat_of].candidate
        assert len(list(folder.glob("trials/*"))) == 7


def test_a_sampler_that_only_repeats_itself_ends_the_search(tmp_path: Path) -> None:
    space = Product((Integer("a", 1, 3),))  # CMA-ES never reaches the third
    outcome = search(tmp_path / "s", trials=40, sampler="cmaes", space=space)
    assert outcome.reason in (
        "the last 12 proposals were all known already",
        "every candidate of the space has been tried (3)",
    )
    outcome = search(tmp_path / "t", trials=40, sampler="grid", space=space)
    assert len([trial for trial in outcome.trials if trial.trained]) == 3


def test_candidates_with_equal_recipes_are_trained_once(tmp_path: Path) -> None:
    outcome = search(
        tmp_path / "s",
        trials=5,
        prepare=lambda c: prepared(f'{{"assign": {{"a": {(c or {"a": 0})["a"] // 20}}}}}', c),
    )
    assert sum(trial.trained for trial in outcome.trials) <= 2


def test_more_trials_extend_a_finished_study_and_the_same_command_does_nothing(tmp_path: Path) -> None:
    first = search(tmp_path / "s", trials=6, sampler="dycors")
    again = search(tmp_path / "s", trials=6, sampler="dycors")
    assert again.trials == first.trials
    longer = search(tmp_path / "s", trials=9, sampler="dycors")
    assert longer.trials[:7] == first.trials and sum(trial.trained for trial in longer.trials) == 9


@pytest.mark.parametrize("sampler", ["dycors", "cmaes"])
def test_a_search_in_pieces_is_the_search_in_one(tmp_path: Path, sampler: str) -> None:
    class Stop(Exception):
        pass

    whole = search(tmp_path / "whole", trials=12, sampler=sampler)
    for at in (0, 3, 4, 9):

        def stop(event: Event, at: int = at) -> None:
            if event.trial is not None and event.trial.number == at and event.kind == "started":
                raise Stop

        with pytest.raises(Stop):
            search(tmp_path / "pieces", "quick", stop, trials=12, sampler=sampler)
    pieces = search(tmp_path / "pieces", trials=12, sampler=sampler)
    assert story(pieces.trials) == story(whole.trials)


def test_with_fewer_jobs_a_done_trial_makes_room_for_the_one_it_waits_for(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(event: Event) -> None:
        if event.kind == "started" and event.trial is not None and event.trial.number == 2:
            raise Stop

    whole = search(tmp_path / "whole", trials=4)
    folder = tmp_path / "s"
    with pytest.raises(Stop):  # trials 1 and 2 are under way
        search(folder, "quick", stop, trials=4, jobs=2)
    third, fourth = trial_folder(folder, 2), trial_folder(folder, 3)
    (trial_folder(folder, 1) / "result.json").unlink()
    assert (third / "result.json").exists() and not fourth.exists()
    task = f'{{"trial": 2, "folder": "{third}", "recipe": ""}}'
    (folder / "workers" / "0" / "running.json").write_text(task)
    outcome = search(folder, trials=4)  # worker 0 holds trial 2, which is done and waits for trial 1
    assert [trial.candidate for trial in outcome.trials] == [trial.candidate for trial in whole.trials]
    assert [trial.state for trial in outcome.trials] == ["complete"] * 5
    assert len((third / "begun").read_text().splitlines()) == 1


def test_no_trial_begins_after_the_time_budget(tmp_path: Path) -> None:
    outcome = search(tmp_path / "s", "short", trials=100, time_budget=0.5)
    assert 2 <= len(outcome.trials) < 8 and all(trial.state == "complete" for trial in outcome.trials)
    assert outcome.reason == "the time budget of 0.5 s is spent"
    again = search(tmp_path / "s", "short", trials=100, time_budget=0.5)
    assert len(again.trials) <= len(outcome.trials) + 1  # what was spent before counts


def test_a_full_disk_in_a_trial_stops_the_search_and_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"trial 2 could not write: OSError: .*No space left"):
        search(tmp_path / "s", "full_disk", trials=4)
    assert [trial.state for trial in read(tmp_path / "s")] == ["complete", "complete", "running"]
    outcome = search(tmp_path / "s", "full_disk", trials=4)
    assert [trial.state for trial in outcome.trials] == ["complete"] * 5


@pytest.mark.parametrize(
    "change, named",
    [
        ({"identity": {"recipe": {"optim": {"lr": 0.2}}}}, "optim.lr is 0.1 there, 0.2 here"),
        ({"seed": 9}, "seed is 1 there, 9 here"),
        ({"sampler": "grid"}, "sampler is random there, grid here"),
        ({"space": Product((Integer("a", 1, 9),))}, "space.parameters is"),
    ],
)
def test_a_study_of_another_search_is_refused_naming_what_differs(
    tmp_path: Path, change: dict, named: str
) -> None:
    before = search(tmp_path / "s", trials=1).trials
    with pytest.raises(StudyError) as caught:
        search(tmp_path / "s", trials=2, **change)
    assert named in str(caught.value) and "--name" in str(caught.value)
    assert read(tmp_path / "s") == before


def test_at_most_three_differences_are_told_as_the_user_gave_them(tmp_path: Path) -> None:
    recipe = {"optim": {"lr": 0.1, "momentum": 0.9}, "detector": {"name": "fcos"}}
    identity = {"method": "assign", "options": {"max_count": 5}, "recipe": recipe}
    search(tmp_path / "s", trials=1, identity=identity)
    other = {**recipe, "detector": {"name": "atss"}, "optim": {"lr": 0.2}}
    with pytest.raises(StudyError) as caught:
        search(tmp_path / "s", identity={**identity, "options": {"max_count": 7}, "recipe": other})
    assert str(caught.value) == (
        f"{tmp_path / 's'} holds another search (--max-count is 5 there, 7 here; detector.name is fcos there, atss "
        "here; optim.lr is 0.1 there, 0.2 here; 1 more); give this one another --name, or go on with that "
        f"one by `detsearch study resume {tmp_path / 's'}`"
    )


def test_what_a_resumed_search_may_change(tmp_path: Path) -> None:
    search(tmp_path / "s", trials=2)
    search(tmp_path / "s", trials=3, budget=30, workers=2)
    config = open_study(tmp_path / "s").config
    assert (config.budget, config.workers, config.seed, config.sampler.name) == (2, 1, 1, "random")


def test_a_ledger_of_another_version_is_one_sentence(tmp_path: Path) -> None:
    search(tmp_path / "s", trials=1)
    with sqlite3.connect(tmp_path / "s" / "study.db") as ledger:
        ledger.execute('UPDATE study_user_attributes SET value_json = \'{"space": [], "seed": 1}\'')
    ledger.close()
    for attempt in (lambda: search(tmp_path / "s"), lambda: open_study(tmp_path / "s")):
        with pytest.raises(StudyError, match="another version of detsearch"):
            attempt()


def test_an_unknown_sampler_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"dycor.*did you mean 'dycors'"):
        search(tmp_path / "s", sampler="dycor")
    assert not (tmp_path / "s").exists()


def test_importing_the_coordinator_imports_nothing_heavy() -> None:
    heavy = "'torch', 'numpy', 'optuna', 'pySOT', 'submitit', 'pandas', 'sqlalchemy'"
    code = f"import sys, detsearch_cli.search.coordinator; print([m for m in ({heavy}) if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_trials_without_their_ledger_are_not_mistaken_for_new_ones(tmp_path: Path) -> None:
    search(tmp_path / "s", trials=1)
    (tmp_path / "s" / "study.db").unlink()
    with pytest.raises(StudyError, match="ledger is gone"):
        search(tmp_path / "s", trials=1)
