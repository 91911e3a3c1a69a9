"""The loader: the same batches by every route, and what they hold."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detsearch_cli.data import _pool
from detsearch_cli.data.embedded import shapes
from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.transforms import Rule, resize_image
from detsearch_cli.data.types import Record, Split
from detsearch_cli.errors import DataError
from detsearch_cli.recipe import Augment

CPU = torch.device("cpu")
FLIP = {"image_size": 64}
ALL = {"image_size": 64, "crop": 0.5, "photometric": 0.5, "multi_scale": (48, 64, 80)}
YOLO = {
    "image_size": 64,
    "jitter": 0.3,
    "scale": (0.25, 2),
    "hue": 0.1,
    "saturation": 1.5,
    "exposure": 1.5,
    "multi_scale": (32, 64, 96),
    "multi_scale_every": 3,
}


@pytest.fixture
def fresh_pool(monkeypatch: pytest.MonkeyPatch) -> _pool.Pool:
    pool = _pool.Pool(CPU, 10**9)
    monkeypatch.setattr(_pool, "pool", lambda device: pool)
    return pool


class Counting:
    """A split of `count` images of different sizes that counts how often it is read."""

    def __init__(self, count: int = 11, key: str | None = "counting") -> None:
        rng = np.random.default_rng(0)
        self.reads = 0
        self.images = [
            rng.integers(0, 255, (40 + 7 * (i % 4), 50 + 9 * (i % 3), 3), dtype=np.uint8)
            for i in range(count)
        ]
        records = tuple(self._record(i, image, key) for i, image in enumerate(self.images))
        self.split = Split("train", ("a", "b"), (1, 2), records, (), self._read)

    def _read(self, index: int) -> np.ndarray:
        self.reads += 1
        return self.images[index]

    def _record(self, index: int, image: np.ndarray, key: str | None) -> Record:
        boxes = np.array([[2, 3, 30, 35], [5, 5, 5, 20], [1, 1, 9, 9], [0, 0, 20, 20]], dtype=np.float32)
        crowd, difficult = np.array([0, 0, 1, 0], dtype=bool), np.array([0, 0, 0, 1], dtype=bool)
        labels, area = np.array([index % 2, 0, 0, 0]), np.ones(4)
        name = None if key is None else f"{key}/{index}"
        return Record(index + 1, None, *image.shape[:2], boxes, labels, crowd, difficult, area, name)


def loader(split: Split, settings: dict[str, object], **options: object) -> Loader:
    defaults = {"batch_size": 4, "train": True, "seed": 3, "device": CPU}
    return Loader(split, Augment.model_validate(settings), **(defaults | options))  # type: ignore[arg-type]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for name in ("images", "index", "sizes", "scales"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
        for name in ("boxes", "labels", "splits"):
            assert torch.equal(getattr(a.targets, name), getattr(b.targets, name)), name


@pytest.mark.parametrize("settings", [FLIP, ALL, YOLO])
def test_caches_and_workers_never_change_a_batch(settings: dict[str, object], fresh_pool: _pool.Pool) -> None:
    split = shapes.source({"images": "22", "size": "80"}).load("train")
    plain = loader(split, settings)
    expected = {epoch: list(plain.epoch(epoch)) for epoch in (0, 1)}
    for options in ({"cache": "ram"}, {"workers": 2}, {"cache": "ram", "workers": 2}, {"cache": "device"}):
        other = loader(split, settings, **options)
        for epoch in (1, 0):
            assert_same(expected[epoch], list(other.epoch(epoch)))


@pytest.mark.parametrize("settings", [ALL, YOLO])
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_batches_equals_the_uninterrupted_epoch(workers: int, settings: dict[str, object]) -> None:
    split = shapes.source({"images": "22", "size": "64"}).load("train")
    expected = list(loader(split, settings).epoch(2))
    assert_same(expected[3:], list(loader(split, settings, workers=workers).epoch(2, start=3)))
    assert list(loader(split, settings).epoch(2, start=len(expected))) == []


def sides(one: Loader, epochs: int) -> list[int]:
    """The side of every batch's images, all of them alike, over the epochs."""
    batches = [batch for epoch in range(epochs) for batch in one.epoch(epoch)]
    assert all(batch.images.shape[2] == batch.images.shape[3] for batch in batches)
    return [batch.images.shape[2] for batch in batches]


def test_steps_share_a_side_that_changes_every_so_many_steps_across_epochs() -> None:
    split = Counting(20).split  # 5 batches an epoch
    found = sides(loader(split, YOLO), 12)
    runs = [found[i : i + 3] for i in range(0, len(found), 3)]
    assert all(len(set(run)) == 1 for run in runs)
    assert {run[0] for run in runs} == {32, 64, 96}
    assert found != sides(loader(split, YOLO, seed=4), 12)
    assert set(sides(loader(split, YOLO, train=False), 1)) == {64}


def test_ranks_and_halved_batches_share_the_side_of_a_step() -> None:
    split = Counting(16).split
    whole = sides(loader(split, YOLO), 6)
    for rank in range(2):
        assert sides(loader(split, YOLO, batch_size=2, rank=rank, world=2), 6) == whole
    halves = sides(loader(split, YOLO, batch_size=2, accumulate=2), 6)
    assert halves[::2] == halves[1::2] == whole


def test_an_epoch_left_early_does_not_disturb_the_next() -> None:
    split = shapes.source({"images": "22", "size": "64"}).load("train")
    expected = list(loader(split, FLIP).epoch(1))
    interrupted = loader(split, FLIP, workers=2)
    next(iter(interrupted.epoch(0)))
    assert_same(expected, list(interrupted.epoch(1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_the_global_generator(workers: int) -> None:
    split = Counting().split
    before = torch.get_rng_state()
    list(loader(split, ALL, workers=workers).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_epochs_and_seeds_shuffle_differently_and_hold_every_image_once() -> None:
    split = Counting(24).split
    first = loader(split, FLIP)
    orders = [first.rows(0), first.rows(1), loader(split, FLIP, seed=4).rows(0)]
    assert all(sorted(order) == list(range(24)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    flips = [torch.cat([b.targets.boxes[:, 0] for b in loader(split, FLIP).epoch(e)]) for e in (0, 1)]
    assert not torch.equal(*flips)


def test_images_are_resized_normalised_and_padded_with_zeros() -> None:
    data = Counting()
    augment = Augment(image_size=(50, 70))  # type: ignore[call-arg]
    batches = list(loader(data.split, {"image_size": (50, 70)}, train=False).epoch(0))
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape[2] % 32 == 0 and batch.images.shape[3] % 32 == 0
        for image, row, (height, width) in zip(batch.images, batch.index, batch.sizes.tolist(), strict=True):
            pixels = torch.from_numpy(data.images[int(row)]).permute(2, 0, 1).contiguous()
            resized = resize_image(pixels, Rule(50, 70))
            mean, std = torch.tensor(augment.mean)[:, None, None], torch.tensor(augment.std)[:, None, None]
            expected = (resized / 255 - mean) / std
            torch.testing.assert_close(image[:, :height, :width], expected)
            assert not image[:, height:].any() and not image[:, :, width:].any()


def test_boxes_divided_by_the_scales_are_the_originals_of_kept_objects() -> None:
    data = Counting()
    for batch in loader(data.split, {"image_size": (50, 70)}, train=False).epoch(0):
        assert batch.targets.splits.tolist() == list(range(len(batch.index) + 1)), (
            "one of four objects is kept"
        )
        original = batch.targets.boxes / batch.scales.repeat(1, 2)[batch.targets.image_index()]
        torch.testing.assert_close(original, torch.tensor([[2.0, 3, 30, 35]]).expand_as(original))
        assert torch.equal(batch.targets.labels, batch.index % 2)


def test_evaluation_keeps_the_order_and_ranks_share_it() -> None:
    split = Counting(11).split
    whole = torch.cat([b.index for b in loader(split, FLIP, train=False).epoch(0)])
    assert whole.tolist() == list(range(11))
    ranks = [loader(split, FLIP, train=False, rank=rank, world=3) for rank in range(3)]
    rows = [torch.cat([b.index for b in one.epoch(0)]).tolist() for one in ranks]
    assert sorted(itertools.chain(*rows)) == list(range(11))
    assert [len(one) for one in ranks] == [len(list(one.epoch(0))) for one in ranks]


@pytest.mark.parametrize(("count", "world"), [(11, 2), (11, 4), (3, 8), (16, 4), (1, 3)])
def test_training_ranks_take_equally_many_steps_and_see_every_image(count: int, world: int) -> None:
    split = Counting(count).split
    ranks = [loader(split, FLIP, rank=rank, world=world) for rank in range(world)]
    rows = [one.rows(5) for one in ranks]
    assert len({len(one) for one in ranks}) == 1
    assert len({len(row) for row in rows}) == 1
    assert set(itertools.chain(*rows)) == set(range(count))
    assert len(ranks[0]) == len(list(ranks[0].epoch(5)))


def test_the_last_incomplete_batch_is_kept() -> None:
    assert [len(b.index) for b in loader(Counting(11).split, FLIP).epoch(0)] == [4, 4, 3]


def test_a_batch_without_any_object_is_a_batch() -> None:
    record = Record(
        1,
        None,
        40,
        40,
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.int64),
        *[np.zeros(0, bool)] * 2,
        np.zeros(0),
    )
    split = Split("train", ("a",), (1,), (record,), (), lambda i: np.zeros((40, 40, 3), np.uint8))
    (batch,) = loader(split, ALL).epoch(0)
    assert batch.targets.boxes.shape == (0, 4) and batch.targets.splits.tolist() == [0, 0]
    assert batch.targets.labels.dtype == torch.int64


def test_training_on_no_image_is_refused() -> None:
    with pytest.raises(DataError, match="at least one image"):
        loader(Counting(0).split, FLIP)
    assert list(loader(Counting(0).split, FLIP, train=False).epoch(0)) == []


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 1, "cache": "ram"}])
def test_an_unreadable_image_raises_its_own_one_sentence_error(options: dict[str, object]) -> None:
    def read(index: int) -> np.ndarray:
        raise DataError("broken.jpg is truncated; remove it or run without --strict")

    split = Split("train", ("a",), (1,), Counting(3, key=None).split.records, (), read)
    with pytest.raises(DataError) as caught:
        list(loader(split, FLIP, **options).epoch(0))
    assert str(caught.value) == "broken.jpg is truncated; remove it or run without --strict"


def test_an_image_that_changed_its_size_is_refused() -> None:
    data = Counting(2)
    data.images[1] = data.images[1][:-3]
    with pytest.raises(DataError, match="was the data changed"):
        list(loader(data.split, FLIP).epoch(0))


def test_later_loaders_of_the_same_data_decode_nothing(fresh_pool: _pool.Pool) -> None:
    data = Counting(8)
    list(loader(data.split, FLIP, cache="ram").epoch(0))
    assert data.reads == 8
    list(loader(data.split.take([5, 2, 7, 1]), FLIP, cache="ram", seed=9).epoch(3))
    list(loader(data.split, FLIP, cache="ram", train=False).epoch(0))
    assert data.reads == 8
    list(loader(data.split, {"image_size": 32}, cache="ram").epoch(0))
    assert data.reads == 16, "another size is another image"
    list(loader(data.split, FLIP).epoch(0))
    assert data.reads == 24, "cache off decodes each time"


def test_images_of_unknown_origin_are_not_shared_between_loaders(fresh_pool: _pool.Pool) -> None:
    first, second = Counting(3, key=None), Counting(3, key=None)
    second.images = [255 - image for image in second.images]
    a = next(loader(first.split, FLIP, cache="ram").epoch(0))
    b = next(loader(second.split, FLIP, cache="ram").epoch(0))
    assert not torch.equal(a.images, b.images)


def test_a_file_that_was_rewritten_is_read_again(tmp_path: Path, fresh_pool: _pool.Pool) -> None:
    path = tmp_path / "a.png"

    def write(grey: int, time: int) -> None:
        Image.new("RGB", (40, 40), (grey, grey, grey)).save(path)
        os.utime(path, (time, time))

    boxes = np.array([[0, 0, 10, 10]], dtype=np.float32)
    no = np.zeros(1, dtype=bool)
    record = Record(1, path, 40, 40, boxes, np.zeros(1, np.int64), no, no, np.ones(1))
    split = Split("train", ("a",), (1,), (record,), (), lambda i: np.asarray(Image.open(path)))
    values = []
    for grey, time in ((10, 1000), (10, 1000), (200, 2000)):
        write(grey, time)
        (batch,) = loader(split, FLIP, cache="ram").epoch(0)
        values.append(float(batch.images[0, 0, 0, 0]))
    assert values[0] == values[1] < values[2]


def test_a_full_pool_warns_once_and_still_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Counting(11)
    expected = list(loader(data.split, FLIP).epoch(0))
    small = _pool.Pool(CPU, 30_000)
    monkeypatch.setattr(_pool, "pool", lambda device: small)
    cached = loader(data.split, FLIP, cache="ram")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_same(expected, list(cached.epoch(0)))
        assert_same(expected, list(cached.epoch(0)))
    assert len([w for w in caught if _pool.LIMIT_VARIABLE in str(w.message)]) == 1
    assert 0 < len(small) < 11 and small.used <= small.limit


def test_a_full_pool_gives_way_to_new_data_but_never_drops_what_a_loader_goes_round_in() -> None:
    pool = _pool.Pool(CPU, 3 * 100)
    image = torch.zeros(100, dtype=torch.uint8)
    old, new = pool.enter(), pool.enter()
    for key in "abc":
        pool.get(key, old, lambda: image)
    pool.get("b", new, lambda: image)
    pool.get("d", new, lambda: image)
    pool.get("e", new, lambda: image)
    with pytest.warns(UserWarning, match=_pool.LIMIT_VARIABLE):
        pool.get("f", new, lambda: image)
    made: list[str] = []
    for key in "bdeaf":
        pool.get(key, new, lambda key=key: made.append(key) or image)  # type: ignore[misc]
    assert made == ["a", "f"]


def test_the_pools_limit_can_be_set_and_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_pool.LIMIT_VARIABLE, "0.5")
    assert _pool._limit(CPU) == 5 * 10**8
    monkeypatch.setenv(_pool.LIMIT_VARIABLE, "plenty")
    with pytest.raises(DataError, match="plenty"):
        _pool._limit(CPU)
