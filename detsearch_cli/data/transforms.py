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

from detsearch_cli.schema import Augment

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

    def size(self, height: float, width: float) -> tuple[int, int]:
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
    """The sample with `image`, which is its own one resized, and with boxes to fit."""
    sy, sx = image.shape[-2] / sample.image.shape[-2], image.shape[-1] / sample.image.shape[-1]
    return Sample(image, sample.boxes * torch.tensor([sx, sy, sx, sy]), sample.labels, (sx, sy))


def flip(sample: Sample) -> Sample:
    """Mirrored left to right."""
    boxes = sample.boxes[:, [2, 1, 0, 3]]
    boxes[:, 0::2] = sample.image.shape[-1] - boxes[:, 0::2]
    return replace(sample, image=sample.image.flip(-1), boxes=boxes)


def without_degenerate(sample: Sample) -> Sample:
    """The sample without boxes of zero width or height and without their labels."""
    good = (sample.boxes[:, 2:] > sample.boxes[:, :2]).all(1)
    if good.all():
        return sample
    return replace(sample, boxes=sample.boxes[good], labels=sample.labels[good])


def paste(sample: Sample, size: tuple[int, int], corner: tuple[int, int], canvas: Tensor) -> Sample:
    """The sample resized to `size` on a copy of the canvas, its upper left corner at `corner`.

    size: height, width; corner: y, x, negative where it sticks out; canvas (3, H, W) uint8. Boxes are cut at the
    border. A box narrower than 1 px goes: encoding takes no smaller one.
    """
    height, width = canvas.shape[-2:]
    resized = scaled(sample, F.resize(sample.image, list(size), antialias=True))
    (top, left), (bottom, right) = corner, (corner[0] + size[0], corner[1] + size[1])
    image = canvas.clone()
    seen = resized.image[:, max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    image[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = seen
    boxes = resized.boxes + torch.tensor([left, top, left, top])
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
    kept = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    return replace(resized, image=image, boxes=boxes[kept], labels=sample.labels[kept])


def distort(image: Tensor, hue: float, saturation: float, exposure: float) -> Tensor:
    """(3, H, W) uint8 with its hue shifted, saturation and value multiplied, as in hue, saturation, value.

    hue in [-.5, .5] of the colour circle. A pixel of value v, its largest channel, and saturation s has channels
    v (1 - s t); so neither factor needs the hue.
    """
    shifted = F.adjust_hue(image, hue) if hue else image
    pixels = shifted.float()
    value = pixels.amax(0, keepdim=True)
    changed = (value - (value - pixels) * saturation) * exposure
    return changed.round_().clamp_(0, 255).to(torch.uint8)


class Transform:
    """The recipe's resizing and, in training, its augmentation.

    Order: IoU crop (of the original), resize or random placement, photometric distortion, distortion of hue,
    saturation and exposure, flip. With `multi_scale` the short side is drawn anew for each image, unless the
    caller gives it, and the long side's limit is scaled with it: a square stays a square.

    Source of placement and distortion: darknet's data.c (load_data_detection), which trains YOLOv2. What it does
    not cover of its square is grey there, here the mean colour, as is the padding of batches.
    """

    def __init__(self, augment: Augment, train: bool) -> None:
        self.augment, self.train = augment, train
        self.rule = Rule(*augment.image_size)
        self.scales = augment.multi_scale if train else None
        self.crop = augment.crop if train else 0.0
        self.photometric = augment.photometric if train else 0.0
        self.flip = augment.flip if train else 0.0
        self.random_canvas = train and augment.random_canvas
        self.colours = train and (augment.hue > 0 or augment.saturation > 1 or augment.exposure > 1)
        self._distort = v2.RandomPhotometricDistort()
        self._crop = v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])
        self._mean = torch.tensor(augment.mean).mul(255).round().to(torch.uint8)[:, None, None]

    @property
    def fixed_size(self) -> Rule | None:
        """The rule by which every image is resized; None when the original is needed each time."""
        return None if self.scales or self.crop or self.random_canvas else self.rule

    def __call__(self, sample: Sample, seed: int, short: int | None = None) -> Sample:
        """An original, or where `fixed_size` is set an already resized, sample -> what the detector sees.

        short: the short side of `multi_scale`, where it is drawn for more than one image.
        """
        if self.fixed_size is not None and not (self.photometric or self.colours or self.flip):
            return without_degenerate(sample)
        with seeded(seed):
            if self.fixed_size is None:
                sample = self._resized(self._cropped(sample), short)
            if self.photometric and torch.rand(()) < self.photometric:
                sample = replace(sample, image=self._distort(sample.image))
            if self.colours:
                sample = replace(sample, image=self._coloured(sample.image))
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

    def _resized(self, sample: Sample, short: int | None) -> Sample:
        rule = self.rule
        if self.scales:
            short = short or self.scales[int(torch.randint(len(self.scales), ()))]
            rule = Rule(short, round(rule.long * short / rule.short))
        if self.random_canvas:
            return self._placed(sample, rule)
        return scaled(sample, resize_image(sample.image, rule))

    def _placed(self, sample: Sample, rule: Rule) -> Sample:
        """Somewhere on the rule's canvas, in another aspect and size."""
        height, width = sample.image.shape[-2:]
        jitter, (least, greatest) = self.augment.jitter, self.augment.scale
        canvas = (rule.short, rule.short) if rule.short == rule.long else rule.size(height, width)
        tall, wide = (side * _uniform(1 - jitter, 1 + jitter) for side in (height, width))
        factor = _uniform(least, greatest)
        size = tuple(max(1, round(side * factor)) for side in rule.size(tall, wide))
        corner = tuple(round(_uniform(0, room - side)) for room, side in zip(canvas, size, strict=True))
        empty = self._mean.to(sample.image.device).expand(3, *canvas)
        return paste(sample, (size[0], size[1]), (corner[0], corner[1]), empty)

    def _coloured(self, image: Tensor) -> Tensor:
        augment = self.augment
        hue = _uniform(-augment.hue, augment.hue)
        return distort(image, hue, _factor(augment.saturation), _factor(augment.exposure))


def _uniform(low: float, high: float) -> float:
    return low + float(torch.rand(())) * (high - low)


def _factor(greatest: float) -> float:
    """Uniform in [1, greatest], or, as often, the inverse of such a number."""
    factor = _uniform(1, greatest)
    return factor if torch.rand(()) < 0.5 else 1 / factor
