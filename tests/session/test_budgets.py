"""A trial asked for at fewer epochs, and later at more, ends as one uninterrupted training of the real engine does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import detsearch_cli.search.samplers
from detsearch_cli import api, discovery
from detsearch_cli.recipe import with_fragment
from tests.test_api import RECIPE


@pytest.fixture
def halving() -> Iterator[None]:
    before = list(detsearch_cli.search.samplers.__path__)
    detsearch_cli.search.samplers.__path__.append(str(Path(__file__).parent / "samplers"))
    discovery.forget()
    yield
    detsearch_cli.search.samplers.__path__[:] = before
    discovery.forget()


def test_a_trial_in_two_stages_has_the_weights_of_one_training(halving: None, tmp_path: Path) -> None:
    recipe = {**RECIPE, "schedule": {"epochs": 3, "eval_every": 0}}
    events = []
    found = api.search(
        "assign",
        recipe,
        options={"bins": "1"},
        trials=3,
        sampler="halving",
        name="s",
        out=tmp_path,
        on_event=lambda event: events.append(event.kind),
    )
    trials = found.outcome.trials
    assert [t.state for t in trials] == ["complete", "stopped", "stopped", "complete"]
    assert [t.epochs for t in trials[1:]] == [1, 1, None]
    last = trials[3]
    assert last.continues in (1, 2) and last.folder == trials[last.continues].folder
    assert last.fragment == trials[last.continues].fragment
    assert [epoch for epoch, _ in last.scores] == [1, 3]
    assert found.outcome.best in (trials[0], last)  # never a stopped one
    api_recipe = api.recipe_of({**recipe, "runtime": {**RECIPE["runtime"], "cache": "off"}})
    whole = api.train(with_fragment(api_recipe, last.fragment), tmp_path / "whole")
    staged, once = (load_file(folder / "last.safetensors") for folder in (last.folder, whole.folder))
    assert staged.keys() == once.keys()
    assert all((staged[name] == once[name]).all() for name in staged)
    assert last.value == whole.AP
    again = api.search(
        "assign", recipe, options={"bins": "1"}, trials=3, sampler="halving", name="s", out=tmp_path
    )
    assert again.outcome.trials == trials
