"""Two recipes against each other: trained once, compared over seeds, resumed for free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.contest import FINAL, contest, entrants, train_entry
from detsearch_cli.recipe import Recipe
from tests.recipes import small

FEW: dict[str, Any] = {
    "schedule": {"epochs": 4, "name": "constant", "eval_every": 0},
    "test": {"score_threshold": 0.0},
}
BASELINE = small(**FEW, optim={"lr": 0.01})
OTHER = small(**FEW, optim={"lr": 0.01}, assign={"name": "dynamic", "counts": [[9]]})


def forbid(*_: Any) -> Any:
    raise AssertionError("trained again")


def test_a_contest_trains_each_entry_once_and_compares_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def watch(title: str) -> Any:
        titles.append(title)
        return lambda _: None

    first = entrants(BASELINE, OTHER, (3, 4), tmp_path)[0]
    train_entry(first.recipe.to_yaml(), str(first.folder))  # as a worker did before
    before = (first.folder / ckpt.METRICS).stat().st_mtime_ns
    result = contest(BASELINE, OTHER, (3, 4), tmp_path, watch)
    assert titles == ["baseline, seed 3", "searched, seed 3", "baseline, seed 4", "searched, seed 4"]
    assert (first.folder / ckpt.METRICS).stat().st_mtime_ns == before
    assert result.split.name == "test"
    assert all((entry.folder / FINAL).is_file() for entry in result.entries)

    baseline, searched = result.aps("baseline"), result.aps("searched")
    assert len(set(baseline + searched)) == 4 and min(baseline + searched) > 0
    reference = stats.ttest_rel(searched, baseline)
    low, high = reference.confidence_interval(0.95)
    assert result.over_seeds is not None and result.decisive is result.over_seeds
    assert (result.over_seeds.low, result.over_seeds.high) == pytest.approx((low, high))
    assert result.over_seeds.p_value == pytest.approx(reference.pvalue)
    assert (result.over_images.a, result.over_images.b) == pytest.approx((baseline[0], searched[0]))

    monkeypatch.setattr("detsearch_cli.engine.train._Run.fit", forbid)
    with pytest.raises(AssertionError, match="trained again"):
        contest(BASELINE, OTHER, (3, 5), tmp_path / "elsewhere")
    again = contest(BASELINE, OTHER, (3, 4), tmp_path)
    assert again.to_json() == result.to_json()


def test_a_contest_of_one_seed_is_decided_over_images_and_equal_recipes_tie(tmp_path: Path) -> None:
    short: Recipe = BASELINE.with_({"schedule": {"epochs": 1}})
    result = contest(short, short, (0,), tmp_path)
    assert result.over_seeds is None and result.decisive is result.over_images
    assert (result.over_images.difference, result.over_images.low, result.over_images.high) == (0, 0, 0)
    assert [run["side"] for run in result.to_json()["runs"]] == ["baseline", "searched"]
