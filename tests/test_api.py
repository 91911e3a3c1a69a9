"""detsearch from Python: each call returns typed results, prints nothing, and goes on with what was interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from detsearch_cli import api
from detsearch_cli.errors import OutputError, RecipeError, StudyError
from tests.cli.small import DATA, ENVIRONMENT

RECIPE = {
    "detector": "fcos",
    "backbone": "tiny",
    "neck": {"channels": 16, "levels": [3, 5]},
    "head": {"convs": 1},
    "data": {"source": DATA},
    "augment": {"image_size": 64},
    "optim": {"name": "adamw", "lr": 0.003, "batch_size": 8},
    "schedule": {"epochs": 1},
    "runtime": {"device": "cpu"},  # not kernels: off, which would hold for the other tests of this process
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.TrainedRun:
    return api.train(RECIPE, tmp_path_factory.mktemp("api") / "run")


def test_train_returns_the_metrics_and_finds_a_finished_run(
    run: api.TrainedRun, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = []
    again = api.train(RECIPE, run.folder, steps.append)
    assert again.metrics == run.metrics and run.metrics["coco"]["AP"] == again.AP and not steps
    assert capfd.readouterr().out == ""


def test_a_recipe_is_a_mapping_or_a_file_and_wrong_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    assert api.recipe_of(file) == api.recipe_of(RECIPE) == api.recipe_of(str(file))
    with pytest.raises(RecipeError, match=r"optim\.lrr"):
        api.train({**RECIPE, "optim": {"lrr": 1}}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_evaluate_scores_what_training_scored(run: api.TrainedRun) -> None:
    assert api.evaluate(run.folder, split="val").coco["AP"] == pytest.approx(run.AP)


def test_predict_gives_boxes_in_the_pixels_of_the_image(run: api.TrainedRun, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (90, 50), (200, 30, 30)).save(tmp_path / "a.png")
    (found,) = api.predict(run.folder, [tmp_path / "a.png"])
    assert found.image == tmp_path / "a.png" and len(found.classes) > 1
    assert found.boxes.shape == (len(found.scores), 4) and len(found.labels) == len(found.scores)
    assert (found.boxes >= 0).all() and (found.boxes <= np.array([90, 50, 90, 50])).all()


def test_search_and_compare_give_recipes_trials_and_an_interval(tmp_path: Path) -> None:
    kinds = []
    found = api.search(
        "assign",
        RECIPE,
        options={"bins": "1"},
        trials=2,
        name="s",
        out=tmp_path,
        on_event=lambda event: kinds.append(event.kind),
    )
    assert kinds.count("finished") == 3 and len(found.outcome.trials) == 3
    assert found.recipe.data.val_fraction is None and found.recipe.assign is None
    if found.fragment:
        assert found.recipe_with_finding.assign is not None
    again = api.search("assign", RECIPE, options={"bins": "1"}, trials=2, name="s", out=tmp_path)
    assert again.fragment == found.fragment
    other = {**RECIPE, "assign": {"name": "dynamic", "counts": [[3]]}}
    outcome = api.compare(RECIPE, other, seeds=2, out=tmp_path / "c")
    against = outcome.against["b"].decisive
    assert against.low <= against.difference <= against.high
    assert against.difference == pytest.approx(np.mean(outcome.aps("b")) - np.mean(outcome.aps("a")))


def test_a_method_that_finds_within_its_training_has_no_search(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="anchors has nothing to search"):
        api.search("anchors", RECIPE, out=tmp_path)
    with pytest.raises(StudyError, match="did you mean 'assign'"):
        api.search("asign", RECIPE, out=tmp_path)


def test_a_folder_of_the_users_is_refused_by_every_call_that_writes(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (tmp_path / "studies").mkdir()
    calls = [
        lambda: api.train(RECIPE, mine),
        lambda: api.compare(RECIPE, {**RECIPE, "seed": 4}, out=mine),
        lambda: api.search("assign", RECIPE, name="mine", out=tmp_path),
    ]
    for call in calls:
        with pytest.raises(OutputError, match=r"holds notes\.txt"):
            call()
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_the_python_interface_knows_neither_typer_nor_rich() -> None:
    code = (
        "import sys; from detsearch_cli import api; print([m for m in ('typer', 'rich') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert shown.stdout == "[]\n"
