"""Batches for training and evaluation, the same ones whatever the worker count, the cache or a resume.

A sample's augmentation depends on (seed, epoch, row of the split) only, the order of an epoch on (seed, epoch),
and a size that several steps share on (seed, step); so `epoch(e, start)` continues an interrupted epoch exactly,
and all ranks share a size; workers and caches change speed only.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detsearch_cli.data import _pool
from detsearch_cli.data.transforms import Sample, Transform, resize_image, seed_of
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError, DetsearchError, RecipeError
from detsearch_cli.schema import Augment
from detsearch_cli.structures import Targets

DIVISOR = 32
"""Heights and widths of batches are multiples of this, so that every pyramid level fits."""
ORDER, SIDES = 2**32, 2**32 + 1
"""In place of a row, for seeds that belong to none."""
Item = tuple[int, list[int], int | None]
"""What a batch is made from: the epoch, rows of the split, the short side its images share."""


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    images (B, 3, H, W) float32, normalised, padded right and bottom with zeros, on the device.
    targets: in the pixels of these images, on the device, without crowd, difficult and zero-area objects.
    index (B,) int64: rows of split.records, on the CPU like the following.
    sizes (B, 2) int64: height, width before padding.
    scales (B, 2) float32: x and y factor original -> resized; boxes / scale maps back (not after a crop).
    """

    images: Tensor
    targets: Targets
    index: Tensor
    sizes: Tensor
    scales: Tensor


class _Samples(Dataset[Any]):
    """One item a batch -> a Batch of uint8 images; a user's error is returned, not raised."""

    def __init__(self, split: Split, transform: Transform, seed: int, pool: _pool.Pool | None) -> None:
        self.split, self.transform, self.seed, self.pool = split, transform, seed, pool
        self.generation = pool.enter() if pool else 0
        self._own = object()
        self._identities: dict[int, Hashable] = {}

    def __getitem__(self, item: Item) -> Batch | DetsearchError:
        epoch, rows, short = item
        try:
            seeds = [seed_of(self.seed, epoch, row) for row in rows]
            samples = [
                self.transform(self.original(r), seed, short) for r, seed in zip(rows, seeds, strict=True)
            ]
        except DetsearchError as error:
            return error
        return _collate(samples, rows)

    def original(self, row: int) -> Sample:
        """The sample before augmentation: resized already where every epoch resizes it the same way."""
        rule = self.transform.fixed_size
        record = self.split.records[row]
        kept = record.trainable
        boxes, labels = torch.from_numpy(record.boxes[kept]), torch.from_numpy(record.labels[kept])
        image = self.image(row)
        whole = Sample(image, boxes, labels)
        if rule is None:
            return whole
        sy, sx = image.shape[-2] / record.height, image.shape[-1] / record.width
        return Sample(image, boxes * torch.tensor([sx, sy, sx, sy]), labels, (sx, sy))

    def image(self, row: int) -> Tensor:
        """(3, H, W) uint8, on the pool's device."""
        if self.pool is None:
            return self._decode(row)
        key = self._identities.get(row)
        if key is None:
            found = _pool.identity(self.split.records[row])
            key = (self._own, row) if found is None else (found, self.transform.fixed_size)
            self._identities[row] = key
        return self.pool.get(key, self.generation, lambda: self._decode(row))

    def _decode(self, row: int) -> Tensor:
        pixels, record = self.split.read(row), self.split.records[row]
        if pixels.shape != (record.height, record.width, 3):
            name, found = (
                record.file or record.key or record.image_id,
                f"{pixels.shape[1]} x {pixels.shape[0]}",
            )
            raise DataError(
                f"{name} must be {record.width} x {record.height} as when it was listed, is {found} now;"
                " was the data changed meanwhile?"
            )
        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        rule = self.transform.fixed_size
        return image if rule is None else resize_image(image, rule)


def _collate(samples: list[Sample], rows: list[int]) -> Batch:
    """Stack on a zero canvas, still uint8, and concatenate the targets."""
    sizes = torch.tensor([s.image.shape[-2:] for s in samples])
    height, width = (-(-int(side) // DIVISOR) * DIVISOR for side in sizes.amax(0))
    first = samples[0].image
    images = first.new_zeros((len(samples), 3, height, width))
    for canvas, sample in zip(images, samples, strict=True):
        canvas[:, : sample.image.shape[-2], : sample.image.shape[-1]] = sample.image
    targets = Targets.from_lists([s.boxes for s in samples], [s.labels for s in samples])
    scales = torch.tensor([s.scale for s in samples], dtype=torch.float32)
    return Batch(images, targets, torch.tensor(rows), sizes, scales)


class _Order:
    """A sampler whose batches are set before each epoch; keeps worker processes alive between epochs."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Loader:
    """Batches of a split.

    batch_size: images a batch on this rank. train: shuffle and augment; otherwise keep the order, each rank
    taking every `world`-th image. cache: "off" decodes each time; "ram" keeps uint8 images in memory,
    "device" on `device` and augments there (workers then only help to fill it). With several ranks a
    training epoch is padded by images from its beginning, so that all ranks take equally many steps. accumulate:
    batches a step, which share a size where the recipe draws one for several steps. Raises
    DataError for an empty training split and RecipeError where workers are impossible.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        *,
        batch_size: int,
        train: bool,
        seed: int,
        device: torch.device,
        workers: int = 0,
        cache: str = "off",
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        if train and not len(split):
            raise DataError(f"training needs at least one image, {split.name!r} has none")
        if workers and "fork" not in multiprocessing.get_all_start_methods():
            raise RecipeError(f"runtime.workers must be 0 on this system, got {workers}: it cannot fork")
        self.split, self.batch_size, self.train, self.seed = split, batch_size, train, seed
        self.device, self.workers, self.cache, self.rank, self.world = device, workers, cache, rank, world
        where = {"off": None, "ram": torch.device("cpu"), "device": device}[cache]
        shared = None if where is None else _pool.pool(where)
        self.augment, self.accumulate = augment, accumulate
        self._samples = _Samples(split, Transform(augment, train), seed, shared)
        scale = torch.tensor([augment.mean, augment.std], device=device).mul(255)[:, None, :, None, None]
        self._mean, self._std = scale[0], scale[1]
        self._order = _Order()
        self._processes: DataLoader[Any] | None = None
        self._filled = workers == 0 or shared is None

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        count = len(range(0 if self.train else self.rank, len(self.split), self.world))
        return -(-count // self.batch_size)

    def rows(self, epoch: int) -> list[int]:
        """Rows of split.records this rank sees in the epoch, in order."""
        count = len(self.split)
        if not self.train:
            return list(range(self.rank, count, self.world))
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, ORDER) & (2**63 - 1))
        order = torch.randperm(count, generator=generator)
        padded = torch.arange(-(-count // self.world) * self.world) % count
        return order[padded][self.rank :: self.world].tolist()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The epoch's batches from the `start`-th on. Raises DataError for an image that cannot be read."""
        rows = self.rows(epoch)
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        items = [(epoch, rows, self._short(epoch, i)) for i, rows in enumerate(batches)][start:]
        self._fill()
        produced = self._produce(items)
        for found in produced:
            if isinstance(found, DetsearchError):
                # Whoever keeps the error keeps this frame; without the processes in it, they end at once.
                del produced
                self._processes = None
                raise found
            yield self._finish(found)

    def _short(self, epoch: int, batch: int) -> int | None:
        """The short side that a batch shares with others; None where each image has its own."""
        sides, every = self.augment.multi_scale, self.augment.multi_scale_every
        if not self.train or sides is None or every is None:
            return None
        step = epoch * -(-len(self) // self.accumulate) + batch // self.accumulate
        return sides[seed_of(self.seed, step // every, SIDES) % len(sides)]

    def _produce(self, items: list[Item]) -> Iterator[Batch | DetsearchError]:
        if not self.workers or self.cache == "device":
            return (self._samples[item] for item in items)
        self._order.items = items
        self._processes = self._processes or self._start()
        return iter(self._processes)

    def _start(self) -> DataLoader[Any]:
        return DataLoader(
            self._samples,
            sampler=self._order,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=True,
            multiprocessing_context="fork",
            # Its own generator: the global one would advance only when there are workers.
            generator=torch.Generator(),
        )

    def _fill(self) -> None:
        """Decode what this rank can meet, in threads, before worker processes are forked and share it."""
        if self._filled:
            return
        self._filled = True
        with ThreadPoolExecutor(self.workers) as threads:
            for _ in threads.map(self._warm, range(len(self.split)) if self.train else self.rows(0)):
                pass

    def _warm(self, row: int) -> None:
        with contextlib.suppress(DetsearchError):  # met again, and raised, when its batch is due
            self._samples.image(row)

    def _finish(self, batch: Batch) -> Batch:
        """Move to the device, normalise, and clear the padding again."""
        pixels = batch.images
        if self.device.type == "cuda" and pixels.device.type == "cpu":
            pixels = pixels.pin_memory()
        images = pixels.to(self.device, non_blocking=True).float().sub_(self._mean).div_(self._std)
        full = images.shape[-2:]
        for canvas, (height, width) in zip(images, batch.sizes.tolist(), strict=True):
            if (height, width) != full:
                canvas[:, height:] = 0
                canvas[:, :, width:] = 0
        return Batch(images, batch.targets.to(self.device), batch.index, batch.sizes, batch.scales)
