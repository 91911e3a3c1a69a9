"""Resizing and training-time augmentation of one image and its boxes, on torchvision.transforms.v2.

Everything works on uint8 (3, H, W) tensors, on whichever device holds them, and draws from torch's global CPU
generator only inside `seeded`, which puts it back; so an augmented sample depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detsearch_cli.recipe import Augment

_MASK = 2**64 - 1


@dataclass(frozen=True)
class Sample:
    """image (3, H, W) uint8; boxes (N, 4) float32 xyxy px of it, labels (N,) int64, both on the CPU.

    scale: x and y factor from the original to this image; after a crop, from the cropped part.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Rule:
    """Resize to `short` on the short side, or less where the long side would pass `long`; aspect is kept."""

    short: int
    long: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, each at least 1."""
        factor = min(self.short / min(height, width), self.long / max(height, width))
        return max(1, round(height * factor)), max(1, round(width * factor))


def seed_of(seed: int, epoch: int, index: int) -> int:
    """A 64-bit seed for one sample (splitmix64 over the three), the same in every process."""
    state = 0
    for part in (seed, epoch, index):
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator starts from `seed` inside and goes on afterwards as if nothing had happened.

    Unlike torch.manual_seed this leaves the generators of GPUs alone.
    """
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed & (2**63 - 1))
    try:
        yield
    finally:
        torch.set_rng_state(before)


def resize_image(image: Tensor, rule: Rule) -> Tensor:
    """(3, H, W) uint8 -> the rule's size, bilinear with antialiasing."""
    size = rule.size(image.shape[-2], image.shape[-1])
    if size == tuple(image.shape[-2:]):
        return image
    return F.resize(image, list(size), antialias=True)


def scaled(sample: Sample, image: Tensor) -> Sample:
    """The sample with `image`, a resized version of its own, and the boxes to fit."""
    sy, sx = image.shape[-2] / sample.image.shape[-2], image.shape[-1] / sample.image.shape[-1]
    return Sample(image, sample.boxes * torch.tensor([sx, sy, sx, sy]), sample.labels, (sx, sy))


def flip(sample: Sample) -> Sample:
    """Mirrored left to right."""
    boxes = sample.boxes[:, [2, 1, 0, 3]]
    boxes[:, 0::2] = sample.image.shape[-1] - boxes[:, 0::2]
    return replace(sample, image=sample.image.flip(-1), boxes=boxes)


def without_degenerate(sample: Sample) -> Sample:
    """Without boxes of zero width or height, their labels neither."""
    good = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)
    if good.all():
        return sample
    return replace(sample, boxes=sample.boxes[good], labels=sample.labels[good])


class Transform:
    """The recipe's resizing and, in training, its augmentation.

    Order: IoU crop (of the original), resize, photometric distortion, flip. With `multi_scale` the short side
    is drawn anew for each image, and the long side's limit is scaled with it: a square stays a square.
    """

    def __init__(self, augment: Augment, train: bool) -> None:
        self.rule = Rule(*augment.image_size)
        self.scales = augment.multi_scale if train else None
        self.crop = augment.crop if train else 0.0
        self.photometric = augment.photometric if train else 0.0
        self.flip = augment.flip if train else 0.0
        self._distort = v2.RandomPhotometricDistort()
        self._crop = v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])

    @property
    def fixed_size(self) -> Rule | None:
        """The rule by which every image is resized; None when the original is needed each time."""
        return None if self.scales or self.crop else self.rule

    def __call__(self, sample: Sample, seed: int) -> Sample:
        """An original, or where `fixed_size` is set an already resized, sample -> what the detector sees."""
        if not (self.scales or self.crop or self.photometric or self.flip):
            return without_degenerate(sample)
        with seeded(seed):
            if self.fixed_size is None:
                sample = self._resized(self._cropped(sample))
            if self.photometric and torch.rand(()) < self.photometric:
                sample = replace(sample, image=self._distort(sample.image))
            if self.flip and torch.rand(()) < self.flip:
                sample = flip(sample)
        return without_degenerate(sample)

    def _cropped(self, sample: Sample) -> Sample:
        # RandomIoUCrop chooses by overlap with the boxes and cannot work without any.
        if not self.crop or torch.rand(()) >= self.crop or len(sample.boxes) == 0:
            return sample
        height, width = sample.image.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(height, width))
        image, found = self._crop(tv_tensors.Image(sample.image), {"boxes": boxes, "labels": sample.labels})
        return Sample(image.as_subclass(Tensor), found["boxes"].as_subclass(Tensor), found["labels"])

    def _resized(self, sample: Sample) -> Sample:
        rule = self.rule
        if self.scales:
            short = self.scales[int(torch.randint(len(self.scales), ()))]
            rule = Rule(short, round(rule.long * short / rule.short))
        return scaled(sample, resize_image(sample.image, rule))
