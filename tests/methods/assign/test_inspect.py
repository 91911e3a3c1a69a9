"""What `assign show` reports equals what the assigners did, and draws in every case."""

from __future__ import annotations

import math

import pytest
import torch

from detsearch_cli.data.loader import Loader
from detsearch_cli.data.source import open_source
from detsearch_cli.detectors import build
from detsearch_cli.errors import DataError
from detsearch_cli.methods.assign import figures
from detsearch_cli.methods.assign.inspect import inspect, positives, summarise
from detsearch_cli.methods.assign.space import Bins, parse_bins
from detsearch_cli.slots.assigners.dynamic import Dynamic
from tests.recipes import small

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ["baseline", "searched"]


@pytest.fixture(scope="module", params=["fcos", "retinanet", "faster_rcnn"])
def case(request):
    """(recipe, detector, split, searched assigner, inspection of images 3, 0 and 5)."""
    torch.manual_seed(0)
    recipe = small(detector=request.param)
    split = open_source(recipe.data.source).load("train")
    detector = build(recipe, len(split.classes))
    searched = Dynamic(counts=((2, 4, 3), (5, 1, 6), (7, 8, 9)))
    found = inspect(
        detector,
        {"baseline": detector.assigner, "searched": searched},
        recipe,
        split,
        [3, 0, 5],
        grouping=searched,
        samples=2,
    )
    return recipe, detector, split, searched, found


def test_rows_are_the_ground_truths_the_loader_gives_in_the_order_asked(case):
    recipe, _, split, _, found = case
    loader = Loader(
        split.take([3, 0, 5]), recipe.augment, batch_size=9, train=False, seed=0, device=torch.device("cpu")
    )
    targets = next(iter(loader.epoch(0))).targets
    assert torch.allclose(torch.tensor([row.box for row in found.rows]), targets.boxes)
    assert [row.label for row in found.rows] == [split.classes[i] for i in targets.labels.tolist()]
    assert list(dict.fromkeys(row.image for row in found.rows)) == [3, 0, 5]


def test_positives_of_rows_and_of_locations_agree(case):
    found = case[-1]
    for sample in found.samples:
        rows = [row for row in found.rows if row.image == sample.image]
        for name in NAMES:
            per_gt = [int((sample.locations[name].gt == g).sum()) for g in range(len(rows))]
            assert per_gt == [row.positives[name] for row in rows]
    assert [sample.image for sample in found.samples] == [3, 0]


def test_searched_positives_never_exceed_the_count_or_the_candidates(case):
    recipe, _, _, searched, found = case
    for row in found.rows:
        assert row.positives["searched"] <= min(row.wanted, row.candidates)
        assert (row.positives["searched"] > 0) == (row.candidates > 0)
        if row.level is not None:
            assert row.wanted == searched.counts[row.level - recipe.neck.levels[0]][row.bin]


def test_looking_changes_nothing(case):
    recipe, detector, split, searched, found = case
    state = {k: v.clone() for k, v in detector.state_dict().items()}
    assert detector.training
    again = positives(detector, searched, recipe, split, [3, 0, 5], grouping=searched)
    assert [r.positives["positives"] for r in again] == [r.positives["searched"] for r in found.rows]
    assert detector.training and all(torch.equal(v, state[k]) for k, v in detector.state_dict().items())


def test_samples_show_the_image_as_it_was(case):
    _, _, split, _, found = case
    shown, original = found.samples[0].pixels.astype(int), split.read(3).astype(int)
    if shown.shape == original.shape:
        assert abs(shown - original).max() <= 1


def test_an_image_outside_the_split_is_named(case):
    recipe, detector, split, searched, _ = case
    with pytest.raises(DataError, match=r"numbered 0 to 23, got 24"):
        positives(detector, searched, recipe, split, [0, 24], grouping=searched)


def test_the_summary_adds_up(case):
    found = case[-1]
    *ranges, whole = summarise(found.rows, NAMES)
    assert whole["ground truths"] == sum(line["ground truths"] for line in ranges) == len(found.rows)
    total = sum(line["ground truths"] * line["searched"] for line in ranges if line["ground truths"])
    assert math.isclose(total / len(found.rows), whole["searched"])
    assert math.isnan(summarise([], NAMES)[-1]["baseline"])


def test_figures_are_pictures_with_words_and_the_same_each_time(case):
    recipe, _, _, searched, found = case
    bins = parse_bins(None, recipe.neck.levels)
    drawn = [
        figures.counts_table(bins, searched.counts),
        figures.positives_per_ground_truth(found.rows, NAMES),
        *figures.locations(found, NAMES),
    ]
    assert len(drawn) == 4
    assert all(f.png.startswith(PNG) and f.title and f.caption and f.alt for f in drawn)
    assert figures.counts_table(bins, searched.counts) == drawn[0]
    assert "P3 2, 4, 3; P4 5, 1, 6; P5 7, 8, 9" in drawn[0].alt


def test_figures_draw_without_ground_truths_and_for_uneven_bins():
    assert figures.positives_per_ground_truth([], NAMES).png.startswith(PNG)
    uneven = Bins(((), (1.0,)), (3, 4))
    assert figures.counts_table(uneven, [[5], [3, 4]]).png.startswith(PNG)
