"""A search's noise in its settings, and the seeds of its test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detsearch_cli import api
from detsearch_cli.data.types import Split
from detsearch_cli.engine.checkpoint import DETECTIONS
from detsearch_cli.engine.train import train
from detsearch_cli.engine.trial import load_data
from detsearch_cli.errors import StudyError
from detsearch_cli.methods.base import load_method
from detsearch_cli.option import LARGEST_SEED
from detsearch_cli.recipe import Recipe
from detsearch_cli.session.pages import luck, write_study_page
from detsearch_cli.session.search import (
    SEARCHED,
    image_noise,
    new_search,
    reopened,
    run_search,
    scored_apart,
    scored_on_the_way,
)
from detsearch_cli.session.study import (
    Settings,
    candidate_of,
    noise_seeds_of,
    races_of,
    read_settings,
    recipe_of,
    study_of,
    unused_seed,
)
from tests.recipes import SMALL


def test_more_seeds_than_trials_are_refused_with_the_rule(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="trained with 1 to 5 seeds, since all but the first count among"):
        new_search(
            load_method("assign", {}), api.recipe_of(SMALL), Settings("s", trials=5, noise_seeds=6), tmp_path
        )
    with pytest.raises(StudyError, match="1 to 100 seeds, got 0"):
        Settings("s", noise_seeds=0)


def test_a_short_search_spends_nothing_on_its_noise_unless_told_to() -> None:
    assert [noise_seeds_of(trials, None) for trials in (1, 9, 10, 100)] == [1, 1, 3, 3]
    assert noise_seeds_of(4, 2) == 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("studies")
    found = api.search("assign", SMALL, options={"bins": "1"}, trials=3, noise_seeds=3, name="s", out=out)
    return found.folder


def test_the_test_of_a_finding_takes_seeds_that_the_search_did_not(study: Path) -> None:
    seed = study_of(study).config.seed
    assert unused_seed(study, seed) == seed + 3
    assert unused_seed(study, seed + 50) == seed + 50
    assert unused_seed(study, LARGEST_SEED - 1, 4) == seed + 3  # the range is used up, so from its beginning


def test_what_a_later_command_says_of_the_seeds_changes_nothing(study: Path) -> None:
    recipe = api.recipe_of(SMALL, SEARCHED)
    later = Settings("s", trials=3, noise_seeds=2, races=False)
    run_search(new_search(load_method("assign", {"bins": "1"}), recipe, later, study.parent))
    kept = read_settings(study)
    assert (kept.noise_seeds, kept.races) == (3, True)


def test_the_page_explains_the_noise(study: Path) -> None:
    told = luck(study_of(study))
    assert told[0].startswith("The recipe as given was trained 3 times, each time with another random seed")
    assert told[-1].endswith(
        ("Equal scores say nothing of the noise; train longer.", "that the search never used.")
    )
    assert "How much of this is luck?" in write_study_page(study).read_text()


def test_the_baseline_is_scored_on_the_way_and_nothing_of_its_training_changes(study: Path) -> None:
    trials = study_of(study).trials
    assert [[epoch for epoch, _ in t.scores] for t in trials] == [[1, 2], [1, 2], [1, 2], [2]]
    # named as what it is, so that a candidate of the same recipe is known again
    recipe = api.recipe_of(SMALL, SEARCHED)
    assert trials[0].recipe_hash == scored_apart(recipe).hash()
    alone = train(scored_apart(recipe), *both(recipe), study.parent / "alone")
    assert alone["AP"] == trials[0].value


def both(recipe: Recipe) -> tuple[Split, Split]:
    data = load_data(scored_apart(recipe).data)
    return data.train, data.val


def test_a_damaged_file_of_one_trial_costs_its_pictures_and_not_the_page(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(study, folder)
    (folder / "trials" / "00000" / DETECTIONS).write_text("{")
    assert "How much of this is luck?" in write_study_page(folder).read_text()


def test_longer_trainings_are_scored_four_or_five_times_on_the_way() -> None:
    for epochs, every in ((1, 1), (2, 1), (4, 1), (5, 1), (6, 2), (10, 2), (12, 3), (24, 6), (100, 25)):
        recipe = api.recipe_of({**SMALL, "schedule": {"epochs": epochs}}, SEARCHED)
        assert scored_on_the_way(recipe).schedule.eval_every == every
        scores = len({*range(every, epochs + 1, every), epochs})
        assert scores == epochs if epochs < 4 else 3 <= scores <= 5
    own = api.recipe_of({**SMALL, "schedule": {"epochs": 10, "eval_every": 3}}, SEARCHED)
    assert scored_on_the_way(own) == own


def test_the_images_part_of_the_noise_is_a_part_and_unknown_without_detections(study: Path) -> None:
    found = study_of(study)
    recipe, rows = recipe_of(found, read_settings(study)), [t for t in found.trials if t.baseline]
    part = image_noise(recipe, rows)
    if len({t.value for t in rows}) == 1:
        assert part is None
    else:
        assert part is not None and 0 <= part <= 1
    gone = [replace(t, folder=t.folder / "gone", value=0.1 * t.number) for t in rows]
    assert image_noise(recipe, gone) is None
    equal = [replace(t, value=0.1) for t in rows]
    assert image_noise(recipe, equal) is None


def test_the_candidate_of_any_trial_can_be_taken_from_a_study(study: Path) -> None:
    trial = study_of(study).trials[3]
    assert candidate_of(study, 3) == trial and trial.fragment
    with pytest.raises(StudyError, match="trial 0 is the baseline, so there is no candidate to take"):
        candidate_of(study, 0)
    with pytest.raises(StudyError, match="trial 99 is none of its trials"):
        candidate_of(study, 99)


def test_leaders_are_trained_again_where_the_noise_is_measured_unless_told_otherwise() -> None:
    assert races_of("auto", 3) and not races_of("auto", 1) and not races_of("1", 3)
    with pytest.raises(StudyError, match="--repeats is auto or 1, got 'always'"):
        races_of("always", 3)


def test_settings_of_before_have_one_seed(study: Path) -> None:
    path = study / "search.json"
    content = json.loads(path.read_text())
    assert read_settings(study).noise_seeds == content.pop("noise_seeds") == 3
    assert content.pop("races") is True
    path.write_text(json.dumps(content))
    assert read_settings(study).noise_seeds == 1 and not read_settings(study).races
    assert reopened(study).settings.trials == 3
