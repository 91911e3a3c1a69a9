"""The recipe as data: its sections, its slots, and how a slot becomes the part that it names.

Nothing here knows a detector, so detectors, slots and data import this module; recipe.py, above them all, lays
fragments over each other and checks a recipe against its detector.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from detsearch_cli import parts
from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import shown
from detsearch_cli.option import MOST_IMAGES, MOST_JOBS, MOST_STEPS
from detsearch_cli.parts import Channels, Checked, Count, Pixels, Seed, Steps

_Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(Checked):
    model_config = ConfigDict(validate_default=True)


SLOT_PACKAGES = {
    "priors": "slots.priors",
    "assign": "slots.assigners",
    "loss": "slots.losses",
    "region_loss": "slots.losses",
}
"""Where the parts of each slot are found. The detector is a slot too, but recipe.py alone looks for it."""


class Slot(Checked):
    """A named part and its options: `{name: dynamic, alpha: 1.5}`, or just its name."""

    model_config = ConfigDict(extra="allow")
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Backbone(_Section):
    """Which features the detector sees."""

    name: str = Field(
        "resnet50",
        description="tiny, mobilenetv1_025, shufflenetv2_050, darknet19, or timm: resnet50, swin_tiny, ...",
    )
    weights: Path | None = Field(
        None, description="safetensors, weights-only state dict, or `pretrained`; None: from scratch"
    )
    frozen_stages: int = Field(0, ge=0, le=5, description="stem and first stages that do not train")
    frozen_bn: bool = Field(False, description="batch norm keeps its loaded statistics and scale")


class Init(_Section):
    """The trained detector that a training starts from: its file, and the digest of its content."""

    file: Path
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Neck(_Section):
    """Feature pyramid."""

    channels: Channels = Field(256, description="of every pyramid level and of the towers")
    levels: tuple[int, int] = Field(
        (3, 7),
        description="first and last pyramid level; level i has stride 2^i; faster_rcnn has [2, 6]",
    )

    @field_validator("levels")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= value[0] <= value[1] <= 7:
            raise ValueError(f"levels must be first <= last, both in 2..7, got {value}")
        return value

    @property
    def num_levels(self) -> int:
        return self.levels[1] - self.levels[0] + 1


class Head(_Section):
    """Classification and regression towers, shared by all levels."""

    convs: int = Field(4, ge=0, le=8, description="3 x 3 convolutions in each tower")


class Data(_Section):
    """What is trained on, what candidates are scored on, what only the final evaluation sees."""

    source: str = Field("shapes", description="folder, or a name such as shapes:images=200,size=160 or voc")
    train: str = Field("train", description="what is trained on; train+val joins two")
    val: str = Field("val", description="what every epoch, and every candidate of a search, is scored on")
    val_fraction: float | None = Field(
        None, gt=0, lt=1, description="hold out this part of `train` as `val` instead of the set's own split"
    )
    subset: float | Annotated[int, Field(le=MOST_STEPS)] | None = Field(
        None, gt=0, description="train on this many images (int) or this part (float)"
    )
    split_seed: Seed = Field(0, description="which images are held out, and which a subset takes")
    strict: bool = Field(False, description="refuse data with defects instead of handling and counting them")

    @field_validator("subset")
    @classmethod
    def _part_or_number(cls, value: float | int | None) -> float | int | None:
        if isinstance(value, float) and value > 1:
            raise ValueError("subset is a whole number of images, or a part of them of at most 1")
        return value


_Spread = Annotated[float, Field(ge=1e-4, le=1)]
"""Of a colour. Those of pictures in 0..255 would be taken here without a word, and hide every object."""
_MOST_GROWN = 8.0
"""Times its size that an image is placed at; the part outside of the canvas is cut off, but resized before."""


class Augment(_Section):
    """Image size and training-time augmentation."""

    image_size: tuple[Pixels, Pixels] = Field(
        (800, 1333), description="short side, limit of the long side, in pixels"
    )
    multi_scale: tuple[Pixels, ...] | None = Field(
        None, min_length=1, description="short sides drawn from in training"
    )
    multi_scale_every: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="steps that share one drawn side; None: each image draws its own",
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    photometric: float = Field(0.0, ge=0, le=1, description="probability of photometric distortion")
    crop: float = Field(0.0, ge=0, le=1, description="probability of a random IoU crop")
    jitter: float = Field(
        0.0, ge=0, lt=1, description="largest change of width and height, as parts, when placed at random"
    )
    scale: tuple[float, float] = Field(
        (1.0, 1.0), description="least and greatest size when placed at random; 1 fits the image in"
    )
    hue: float = Field(0.0, ge=0, le=0.5, description="largest shift of hue, as a part of the colour circle")
    saturation: float = Field(1.0, ge=1, description="largest factor of saturation, or of its inverse")
    exposure: float = Field(1.0, ge=1, description="largest factor of brightness, or of its inverse")
    mean: tuple[_Fraction, _Fraction, _Fraction] = Field(
        (0.485, 0.456, 0.406), description="mean of RGB in 0..1"
    )
    std: tuple[_Spread, _Spread, _Spread] = Field(
        (0.229, 0.224, 0.225), description="standard deviation of RGB in 0..1"
    )

    @property
    def largest_side(self) -> int:
        """Longest side a training image can have, px."""
        short, long = self.image_size
        # the limit of the long side grows in proportion to the short side that is drawn
        return max(short, long, *(round(side * long / short) for side in self.multi_scale or ()))

    @field_validator("image_size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("image_size")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"image_size is the short side, then the limit of the long side, got {value}")
        return value

    @field_validator("scale")
    @classmethod
    def _range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= _MOST_GROWN:
            raise ValueError(
                f"scale must be least <= greatest, both above 0 and at most {_MOST_GROWN:g}, got {value}"
            )
        return value

    @model_validator(mode="after")
    def _drawn_from(self) -> Augment:
        if self.multi_scale_every is not None and self.multi_scale is None:
            raise ValueError(
                f"multi_scale_every {self.multi_scale_every} needs sides to draw from; set multi_scale as well"
            )
        return self

    @property
    def random_canvas(self) -> bool:
        """Whether images are put onto a canvas at a random position and size."""
        return self.jitter > 0 or self.scale != (1.0, 1.0)


class Optim(_Section):
    """Optimiser, as in the paper by default (HPS-Det, section 4.1)."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd or adamw")
    lr: float = Field(0.01, gt=0, description="for the whole batch; it is not rescaled")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(1e-4, ge=0, description="of weights; biases, norms and scales do not decay")
    batch_size: int = Field(
        16, ge=1, le=MOST_IMAGES, description="images a step, over all devices and accumulated micro-batches"
    )
    accumulate: int = Field(1, ge=1, le=MOST_IMAGES, description="micro-batches a step")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the averaged weights; None: no averaging"
    )
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _bits(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value  # YAML reads a bare 32 as a number

    @model_validator(mode="after")
    def _divides(self) -> Optim:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        return self


class Schedule(_Section):
    """Length and learning-rate schedule."""

    epochs: int = Field(12, ge=1, le=MOST_STEPS, description="passes over the training images")
    name: Literal["step", "cosine", "constant"] = Field("step", description="step, cosine or constant")
    milestones: tuple[_Fraction, ...] = Field(
        (8 / 12, 11 / 12), description="parts of the epochs after which lr drops"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor of lr at a milestone")
    warmup_steps: Steps = Field(500, description="linear warm-up, at most a tenth of all steps")
    warmup_factor: float = Field(1 / 3, gt=0, le=1, description="of lr at the first step")
    eval_every: Steps = Field(1, description="epochs between evaluations; 0: only after the last")


class Test(_Section):
    """How detections are selected. None: the detector's own, as its paper has it."""

    score_threshold: float | None = Field(None, ge=0, lt=1, description="detections below are dropped")
    pre_nms_top_k: Count = Field(1000, description="per pyramid level")
    nms_iou: float | None = Field(
        None, gt=0, le=1, description="overlap above which the weaker of a class is dropped"
    )
    max_detections: Count | None = Field(None, description="per image")


DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
"""torch knows more (mps, xla, meta, cpu:5), on which a part of this program fails."""


class Runtime(_Section):
    """Where and how fast it runs. Not part of the recipe's identity: none of it names a trial."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:1")
    devices: int = Field(1, ge=1, le=MOST_JOBS, description="GPUs (or CPU processes) on each node")
    num_nodes: int = Field(1, ge=1, le=MOST_IMAGES, description="machines, started by torchrun or Slurm")
    workers: int = Field(
        0, ge=0, le=MOST_JOBS, description="data loading processes; 0: in the training process"
    )
    cache: Literal["off", "ram", "device"] = Field(
        "off", description="where decoded images stay: off, ram, device"
    )
    channels_last: bool = Field(True, description="memory layout; faster on most hardware")
    kernels: Literal["auto", "required", "off"] = Field(
        "auto", description="compiled operators: where they can be had, or else stop, or never"
    )
    tensorboard: bool = Field(False, description="write TensorBoard events into the run folder")

    @field_validator("device")
    @classmethod
    def _known(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError("it is auto, cpu, cuda or cuda:N")
        return value

    @field_validator("cache", "kernels", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false


class Recipe(_Section):
    """Everything a training run needs."""

    detector: Slot = Field(
        Slot(name="fcos"),
        description="retinanet, fcos, atss, yolov2, faster_rcnn, ssd or deformable_detr, and its options",
    )
    backbone: Backbone = Backbone()  # type: ignore[call-arg]
    neck: Neck = Neck()  # type: ignore[call-arg]
    head: Head = Head()  # type: ignore[call-arg]
    data: Data = Data()  # type: ignore[call-arg]
    augment: Augment = Augment()  # type: ignore[call-arg]
    optim: Optim = Optim()  # type: ignore[call-arg]
    schedule: Schedule = Schedule()  # type: ignore[call-arg]
    test: Test = Test()  # type: ignore[call-arg]
    runtime: Runtime = Runtime()  # type: ignore[call-arg]
    priors: Slot | None = Field(None, description="None: the detector's own")
    assign: Slot | None = Field(None, description="None: the detector's own")
    loss: Slot | None = Field(None, description="None: the detector's own")
    region_loss: Slot | None = Field(
        None, description="of a second stage's regions (faster_rcnn); None: the detector's own"
    )
    init: Init | None = Field(
        None, description="run, weights file or torchvision checkpoint that the whole detector starts from"
    )
    seed: Seed = Field(0, description="weights, order of the images, augmentation")

    @field_validator("backbone", mode="before")
    @classmethod
    def _backbone_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _without_no_init(self, dump: Any) -> dict[str, Any]:
        whole: dict[str, Any] = dump(self)
        # recipes from before these keys keep their hash
        for key in ("init", "region_loss"):
            if whole.get(key, ...) is None:
                del whole[key]
        return whole

    def identity(self) -> dict[str, Any]:
        """The recipe without `runtime`, as plain data: what decides the result."""
        return self.model_dump(mode="json", exclude={"runtime"})

    def hash(self) -> str:
        """Canonical name of the recipe, 16 hex digits: equal recipes, however written, have one hash."""
        text = json.dumps(self.identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def slot_of(name: str, part: parts.Part) -> Slot:
    """The slot that builds `part`, every option spelled out: a default written or left out gives the same hash."""
    return Slot(name=name, **part.model_dump(mode="json"))


def build_part(package: str, slot: Slot, key: str) -> Any:
    """The slot's working object, its options validated. Raises RecipeError naming the key."""
    cls = find_part(package, slot, parts.Part, key)
    try:
        return cls.model_validate(slot.options)
    except ValidationError as error:
        raise explain(error, (key,)) from error


def find_part(package: str, slot: Slot, base: type[Any], key: str) -> type[Any]:
    """The class that a slot names, a subclass of `base`. Raises RecipeError naming the key."""
    try:
        return parts.find(package, slot.name, base)
    except RecipeError as error:
        named = RecipeError(f"{key}: {error}")
        named.key = (key, "name")  # type: ignore[attr-defined]
        raise named from error


def explain(error: ValidationError, prefix: tuple[str, ...]) -> RecipeError:
    """The first of pydantic's complaints in one sentence that names the key; `prefix` is where the key is nested."""
    first = error.errors()[0]
    key = prefix + tuple(str(p) for p in first["loc"])
    name = ".".join(key) or "recipe"
    if first["type"] == "extra_forbidden":
        message = (
            f"{name} is no key of a recipe; see `detsearch train --help` and docs/recipe.md for the keys"
        )
    elif first["type"] == "missing":
        message = f"{name} is missing"
    else:
        said = first["msg"].removeprefix("Value error, ")
        message = f"{name}: {said[0].lower()}{said[1:]}, got {shown(first['input'])}"
    explained = RecipeError(message)
    explained.key = key  # type: ignore[attr-defined]
    return explained
