"""Hold-outs and subsets depend on the seed and the image ids alone, and never let a split be used twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from detsearch_cli.data.splits import fractions_of, holdout, resolve, subset
from detsearch_cli.data.types import Record, Split
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Data


def make(name: str, count: int, first_id: int = 1) -> Split:
    none = np.zeros(0, dtype=bool)
    records = tuple(
        Record(i, None, 4, 4, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), none, none, np.zeros(0))
        for i in range(first_id, first_id + count)
    )
    pixels = [np.full((4, 4, 3), r.image_id % 256, np.uint8) for r in records]
    return Split(name, ("a",), (1,), records, (), lambda i: pixels[i])


@dataclass(frozen=True)
class Fake:
    sizes: dict[str, int]
    spec: str = "fake"
    format: str = "fake"

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    def load(self, split: str, strict: bool = False) -> Split:
        return make(split, self.sizes[split], 1 + 1000 * list(self.sizes).index(split))


def ids(split: Split) -> list[int]:
    return [r.image_id for r in split.records]


def data(**options: object) -> Data:
    return Data.model_validate(options)


def test_a_holdout_is_a_partition_in_order() -> None:
    rest, held = holdout(make("train", 50), 0.2, 3)
    assert (len(rest), len(held)) == (40, 10)
    assert sorted(ids(rest) + ids(held)) == list(range(1, 51))
    assert ids(rest) == sorted(ids(rest)) and ids(held) == sorted(ids(held))
    assert all(held.read(i)[0, 0, 0] == held.records[i].image_id for i in range(10))


def test_a_holdout_depends_on_ids_and_seed_not_on_record_order() -> None:
    split = make("train", 50)
    reversed_split = replace(split, records=split.records[::-1])
    assert set(ids(holdout(split, 0.2, 3)[1])) == set(ids(holdout(reversed_split, 0.2, 3)[1]))
    assert ids(holdout(split, 0.2, 3)[1]) != ids(holdout(split, 0.2, 4)[1])


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_of_a_holdout_have_an_image(fraction: float) -> None:
    rest, held = holdout(make("train", 5), fraction, 0)
    assert min(len(rest), len(held)) == 1


def test_a_holdout_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        holdout(make("train", 1), 0.5, 0)
    with pytest.raises(DataError, match="between 0 and 1"):
        holdout(make("train", 5), 1.0, 0)


def test_subsets_are_nested_and_sized_as_asked() -> None:
    split = make("train", 40)
    assert [len(subset(split, n, 0)) for n in (1, 10, 99, 0.25, 1.0, 0.001)] == [1, 10, 40, 10, 40, 1]
    assert set(ids(subset(split, 5, 0))) < set(ids(subset(split, 0.5, 0)))
    assert ids(subset(split, 5, 0)) != ids(subset(split, 5, 1))
    for amount in (0, 1.5, 0.0, -3):
        with pytest.raises(DataError):
            subset(split, amount, 0)


def test_the_sources_own_splits_are_used_where_they_exist() -> None:
    found = resolve(data(), Fake({"train": 20, "val": 5, "test": 7}))
    assert (len(found.train), len(found.val), found.notes) == (20, 5, ())
    assert found.test is not None and len(found.test) == 7


def test_a_fifth_is_held_out_where_val_is_missing_or_trained_on() -> None:
    found = resolve(data(), Fake({"train": 20, "test": 7}))
    assert (len(found.train), len(found.val)) == (16, 4)
    assert found.notes == ("fake has no split 'val': 20% of 'train' is held out to score candidates",)
    found = resolve(data(train="train+val"), Fake({"train": 20, "val": 5}))
    assert (len(found.train), len(found.val), found.test) == (20, 5, None)
    assert "is trained on" in found.notes[0]
    assert not set(ids(found.train)) & set(ids(found.val))


def test_val_fraction_leaves_the_sources_val_untouched() -> None:
    found = resolve(data(val_fraction=0.25, subset=10), Fake({"train": 20, "val": 5}))
    assert found.test is not None
    assert (len(found.train), len(found.val), len(found.test)) == (10, 5, 5)
    assert max(ids(found.val)) <= 20
    assert not set(ids(found.train)) & set(ids(found.val))


def test_an_unsplit_set_keeps_for_the_end_what_a_plain_training_scores_on() -> None:
    source = Fake({"train": 20})
    searched, plain = resolve(data(val_fraction=0.25), source), resolve(data(), source)
    assert searched.test is not None
    assert ids(searched.test) == ids(plain.val)
    assert (len(searched.train), len(searched.val), len(searched.test)) == (12, 4, 4)
    parts = [set(ids(s)) for s in (searched.train, searched.val, searched.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 20


def test_the_holdout_is_the_same_whatever_the_subset() -> None:
    source = Fake({"train": 20})
    whole = resolve(data(val_fraction=0.25), source)
    assert ids(resolve(data(val_fraction=0.25, subset=0.5), source).val) == ids(whole.val)


def test_a_test_split_in_use_is_not_offered_again() -> None:
    found = resolve(data(val="test"), Fake({"train": 20, "test": 7}))
    assert (len(found.val), found.test) == (7, None)
    found = resolve(data(train="train+test"), Fake({"train": 20, "val": 5, "test": 7}))
    assert (len(found.train), found.test) == (27, None)
    assert len(found.notes) == 1


def test_a_misspelt_val_is_refused_and_a_large_subset_noted() -> None:
    with pytest.raises(DataError, match=r"data\.val must be train, val or test"):
        resolve(data(val="vall"), Fake({"train": 20}))
    found = resolve(data(subset=500), Fake({"train": 20, "val": 5}))
    assert found.notes == ("a subset of 500 images was asked for, all 20 are used",)


def test_counts_of_fractions_sum_to_the_total() -> None:
    for total in range(1, 60):
        assert sum(fractions_of(total, (0.7, 0.1, 0.2))) == total
    assert fractions_of(10, (0.7, 0.1, 0.2)) == (7, 1, 2)
