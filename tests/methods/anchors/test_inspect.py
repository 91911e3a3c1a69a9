"""What shapes did and do, and the pictures of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detsearch_cli.errors import CheckpointError
from detsearch_cli.methods.anchors import figures
from detsearch_cli.methods.anchors.inspect import ShapeHistory, inspect, read_histories, read_history, spread

SIZES = np.exp(np.random.default_rng(0).normal(4, 1, (300, 2)))


def a_run(folder: Path, ends: tuple[float, ...] = (30.0, 20.0)) -> Path:
    folder.mkdir(parents=True)
    lines = [{"epoch": 0, "anchors": [[[40.0, 50.0]]]}, {"step": 1, "epoch": 1, "loss": 2.0}]
    lines += [{"epoch": i + 1, "anchors": [[[end, 10.0]]]} for i, end in enumerate(ends)]
    cut = '{"epoch": 9, "anchors": [[[1'
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut)
    return folder


def test_the_history_of_a_run_is_read_from_its_log(tmp_path: Path) -> None:
    history = read_history(a_run(tmp_path / "run"))
    assert history.epochs.tolist() == [0, 1, 2]
    assert history.initial.tolist() == [[[40, 50]]]
    assert history.learned.tolist() == [[[20, 10]]]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / start / "learned-seed0") for start in ("uniform", "identical")]
    assert [w.name for w in read_histories([*runs, runs[0]])] == [
        "uniform/learned-seed0",
        "identical/learned-seed0",
    ]
    assert [w.name for w in read_histories(runs[:1])] == ["learned-seed0"]
    assert read_histories([]) == []


def test_a_folder_without_learned_shapes_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no log\.jsonl"):
        read_history(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"epoch": 1, "AP": 0.1}\n')
    with pytest.raises(CheckpointError, match="its recipe has fixed priors"):
        read_history(tmp_path)


def test_shares_and_recall_are_counted_over_all_levels() -> None:
    sizes = np.array([[10.0, 10.0], [11.0, 10.0], [100.0, 100.0], [1.0, 2000.0]])
    (found,) = inspect(sizes, [("two levels", np.array([[[10.0, 10.0]], [[100.0, 100.0]]]))])
    assert found.shares.tolist() == [[0.5], [0.5]]
    assert found.recall == 0.75 and found.idle == 0
    assert found.mean_iou == pytest.approx((1 + 10 / 11 + 1 + 100 / (10_000 + 1900)) / 4)


def test_the_spread_matches_shapes_by_area_whatever_their_order() -> None:
    first = np.array([[[10.0, 10.0], [50.0, 40.0]]])
    assert spread([first, first[:, ::-1]]) == 0
    assert spread([first, first * 1.1, first]) == pytest.approx(0.1)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("runs", [0, 1, 4])
def test_the_pictures_are_drawn_for_any_number_of_runs_and_levels(levels: int, runs: int) -> None:
    rng = np.random.default_rng(1)
    histories = [
        ShapeHistory(f"$run_{i}$", np.arange(3), np.exp(rng.normal(4, 1, (3, levels, 2, 2))))
        for i in range(runs)
    ]
    fixed = {"k-means": np.exp(rng.normal(4, 1, (levels, 2, 2)))}
    drawn = figures.plane(SIZES, fixed, histories, 3), figures.shares(inspect(SIZES, list(fixed.items())), 3)
    for figure in drawn:
        assert min(Image.open(io.BytesIO(figure.png)).size) > 200
    assert drawn[0].alt.count(" to ") == runs


def test_one_ground_truth_or_equal_ones_are_drawn_too() -> None:
    one = np.array([[[32.0, 32.0]]])
    for sizes in (np.array([[7.0, 90.0]]), np.full((50, 2), 32.0)):
        assert figures.plane(sizes, {"k-means": one}, []).png
        assert figures.shares(inspect(sizes, [("k-means", one)])).png
