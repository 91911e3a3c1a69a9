"""Recipes against each other: trained once, each compared with the first over seeds, resumed for free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.comparison import FINAL, compare_recipes, planned_runs, train_and_detect
from detsearch_cli.errors import EvaluationError
from detsearch_cli.recipe import Recipe, with_fragment
from tests.recipes import small

FEW: dict[str, Any] = {
    "schedule": {"epochs": 4, "name": "constant", "eval_every": 0},
    "test": {"score_threshold": 0.0},
}
BASELINE = small(**FEW, optim={"lr": 0.01})
OTHER = small(**FEW, optim={"lr": 0.01}, assign={"name": "dynamic", "counts": [[9]]})
TWO = {"baseline": BASELINE, "searched": OTHER}


def forbid(*_: Any) -> Any:
    raise AssertionError("trained again")


def test_a_comparison_trains_each_run_once_and_compares_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def on_run(title: str) -> Any:
        titles.append(title)
        return lambda _: None

    first = planned_runs(TWO, (3, 4), tmp_path)[0]
    train_and_detect(first.recipe.to_yaml(), str(first.folder))  # as a worker did before
    before = (first.folder / ckpt.METRICS).stat().st_mtime_ns
    result = compare_recipes(TWO, (3, 4), tmp_path, on_run)
    assert titles == ["baseline, seed 3", "searched, seed 3", "baseline, seed 4", "searched, seed 4"]
    assert (first.folder / ckpt.METRICS).stat().st_mtime_ns == before
    assert result.split.name == "test"
    assert all((run.folder / FINAL).is_file() for run in result.runs)

    baseline, searched = result.aps("baseline"), result.aps("searched")
    assert len(set(baseline + searched)) == 4 and min(baseline + searched) > 0
    reference = stats.ttest_rel(searched, baseline)
    low, high = reference.confidence_interval(0.95)
    against = result.against["searched"]
    assert against.over_seeds is not None and against.decisive is against.over_seeds
    assert (against.over_seeds.low, against.over_seeds.high) == pytest.approx((low, high))
    assert against.over_seeds.p_value == pytest.approx(reference.pvalue)
    assert (against.over_images.a, against.over_images.b) == pytest.approx((baseline[0], searched[0]))

    monkeypatch.setattr("detsearch_cli.engine.train._Run.fit", forbid)
    with pytest.raises(AssertionError, match="trained again"):
        compare_recipes(TWO, (3, 5), tmp_path / "elsewhere")
    again = compare_recipes(TWO, (3, 4), tmp_path)
    assert again.to_json() == result.to_json()


def test_three_sides_take_turns_and_each_is_compared_with_the_first_of_its_seed(tmp_path: Path) -> None:
    schedule = {"schedule": {"epochs": 1}}
    short, other = with_fragment(BASELINE, schedule), with_fragment(OTHER, schedule)
    result = compare_recipes({"plain": short, "same": short, "dynamic": other}, (0, 1), tmp_path)
    assert result.sides == ("plain", "same", "dynamic")
    assert [run.folder.name for run in result.runs] == [
        f"{side}-seed{seed}" for seed in (0, 1) for side in ("plain", "same", "dynamic")
    ]
    assert list(result.against) == ["same", "dynamic"]
    for side, found in result.against.items():
        plain, theirs = result.aps("plain"), result.aps(side)
        assert (found.over_images.a, found.over_images.b) == pytest.approx((plain[0], theirs[0]))
        assert found.over_seeds is not None
        assert found.over_seeds.difference == pytest.approx(sum(theirs) / 2 - sum(plain) / 2)
    assert result.against["same"].decisive.verdict == "within noise"
    told = result.to_json()
    assert told["sides"] == ["plain", "same", "dynamic"] and len(told["runs"]) == 6
    assert set(told["comparisons"]) == {"same", "dynamic"}
    assert set(told["comparisons"]["same"]) == {"over_images", "over_seeds"}


def test_one_seed_is_decided_over_images_and_equal_recipes_tie(tmp_path: Path) -> None:
    short: Recipe = with_fragment(BASELINE, {"schedule": {"epochs": 1}})
    result = compare_recipes({"baseline": short, "searched": short}, (0,), tmp_path)
    against = result.against["searched"]
    assert against.over_seeds is None and against.decisive is against.over_images
    assert (against.over_images.difference, against.over_images.low, against.over_images.high) == (0, 0, 0)
    assert [run["side"] for run in result.to_json()["runs"]] == ["baseline", "searched"]


@pytest.mark.parametrize(
    ("sides", "seeds", "said"),
    [
        ({"alone": BASELINE}, (0,), "at least two sides, got alone"),
        (TWO, (), r"at least one, got \[\]"),
        (TWO, (1, 1), r"seeds that differ, at least one, got \[1, 1\]"),
        (
            {"a": BASELINE, "b": with_fragment(BASELINE, {"data": {"source": "faces:images=8"}})},
            (0,),
            r"a and b have different data \(source is shapes:.* there, faces:images=8 here\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    tmp_path: Path, sides: dict[str, Recipe], seeds: tuple[int, ...], said: str
) -> None:
    with pytest.raises(EvaluationError, match=said):
        compare_recipes(sides, seeds, tmp_path / "out")
    assert not (tmp_path / "out").exists()
