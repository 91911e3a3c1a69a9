"""What every dense one-stage detector is: priors, what it trains with, and how detections are selected."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from detsearch_cli import schema
from detsearch_cli.detectors._learned_part import LearnedPart
from detsearch_cli.detectors._learning import LearnedShapes, SizeNorm
from detsearch_cli.detectors._postprocess import Selection, select
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.slots.losses.base import DetectionLoss
from detsearch_cli.slots.priors.base import PriorGrid
from detsearch_cli.slots.priors.learned import Learned
from detsearch_cli.structures import Assignment, Dense, Detections, Priors, Targets, TrainingStep

T = TypeVar("T", bound=Part)
N = TypeVar("N", int, float)
PRIOR_CACHE = 32
"""Image sizes whose priors are kept; multi-scale training sees about that many."""


@dataclass(frozen=True)
class ClassRows:
    """How the output rows of a layer belong to classes: groups x (before + classes x width + after) rows.

    groups: 1, or the priors of a cell. before, after: rows that belong to no class, background's or a box's. width:
    rows of a class.
    """

    groups: int = 1
    before: int = 0
    after: int = 0
    width: int = 1


class Detector(nn.Module, ABC):
    """Base of all detectors; one subclass a file. A recipe's slots replace the detector's own parts."""

    Options: ClassVar[type[Part]] = Part
    default_levels: ClassVar[tuple[int, int]] = (3, 7)
    """What `neck.levels` is where the recipe does not say."""
    default_nms_iou: ClassVar[float]
    default_score_threshold: ClassVar[float] = 0.05
    default_max_detections: ClassVar[int] = 100
    stages: ClassVar[int] = 1
    max_count: ClassVar[int]
    """Largest number of positives a ground truth that HPS-Det's search considers (section 4.2)."""

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        super().__init__()
        self.options = self.Options.model_validate(recipe.detector.options)
        self.num_classes = num_classes
        self.image_side = recipe.augment.image_size[0]  # for priors that are parts of the image
        self.levels = self.pyramid_levels(recipe)
        self.strides: tuple[int, ...] = tuple(2**level for level in range(self.levels[0], self.levels[1] + 1))
        self.step = TrainingStep(index=0, total=1, images=0)
        self.prior_grid: PriorGrid = part_of(recipe, "priors", PriorGrid) or self.default_priors()  # type: ignore[type-abstract]
        self.shapes: LearnedShapes | None = None  # resume.safetensors holds this name
        if isinstance(self.prior_grid, Learned):
            self.prior_grid = self.prior_grid.started(self.default_priors(), self.levels)
            # after `started`: only then is it known how many shapes there are, and where they begin
            self.shapes = LearnedShapes(self.prior_grid, self.levels, recipe.augment.largest_side)
        self.prior_grid.check(self.levels)
        self.assigner: Assigner = part_of(recipe, "assign", Assigner) or self.default_assigner()  # type: ignore[type-abstract]
        self.assigner.check(len(self.strides))
        self.loss: DetectionLoss = part_of(recipe, "loss", DetectionLoss) or self.default_loss()  # type: ignore[type-abstract]
        self._refuse_losses(recipe)
        self._priors: dict[tuple[object, ...], Priors] = {}

    def _refuse_losses(self, recipe: schema.Recipe) -> None:
        if self.loss.background_logit:
            raise RecipeError(
                f"loss: {recipe.loss and recipe.loss.name} wants a logit for background, which regions alone have; name it "
                "as region_loss of faster_rcnn"
            )
        if recipe.region_loss is not None and self.stages == 1:
            raise RecipeError(
                f"detector {recipe.detector.name} has one stage and no regions; give its loss as loss, not region_loss"
            )

    @classmethod
    def settled(cls, options: Part, loss: type[DetectionLoss] | None) -> Part:
        """The options with what they leave to the loss. loss: the recipe's, None for the detector's own."""
        return options

    @classmethod
    def loosened(cls, options: Mapping[str, Any], loss: type[DetectionLoss] | None) -> Mapping[str, Any]:
        """The options of a recipe with this loss, and open again what is as `settled` makes it: for another loss."""
        return options

    @classmethod
    def pyramid_levels(cls, recipe: schema.Recipe) -> tuple[int, int]:
        """First and last level it predicts on; level i has stride 2^i px."""
        return recipe.neck.levels

    @abstractmethod
    def default_priors(self) -> PriorGrid:
        """Priors when the recipe names none."""

    @abstractmethod
    def default_assigner(self) -> Assigner:
        """Assigner when the recipe names none."""

    @abstractmethod
    def default_loss(self) -> DetectionLoss:
        """Loss when the recipe names none."""

    @property
    def norms_sizes(self) -> bool:
        """Whether the head normalises the widths and heights it predicts."""
        return self.shapes is not None and self.shapes.options.bn

    @abstractmethod
    def forward(self, images: Tensor) -> Dense:
        """images (B, 3, H, W), sides multiples of 32 -> predictions at every prior, float32."""

    def class_layers(self) -> dict[str, ClassRows]:
        """The layers whose rows belong to classes, by their names in the state dict without ".weight" or ".bias".

        Weights of other classes are taken over row by row there (detectors/_starting.py).
        """
        return {}

    def before_step(self, step: TrainingStep) -> None:
        """Called before every training step."""
        self.step = step
        for loss in self.losses().values():
            loss.before_step(step)
        if self.shapes is not None:
            # the optimiser knows no bounds: a shape beyond one would need as many steps to come back
            self.shapes.bound()

    def losses(self) -> Mapping[str, DetectionLoss]:
        """Its losses by the key of the recipe that names them."""
        return {"loss": self.loss}

    def rate_of(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by. name: as `named_parameters` has it."""
        return 1.0

    def learned_parts(self) -> Sequence[LearnedPart]:
        """What is learned beside the network's weights; the engine optimises, logs and keeps it."""
        return () if self.shapes is None else (self.shapes,)

    def deployed(self) -> Detector:
        """The detector that is scored and kept: this one, or a copy without what only serves learning.

        In the copy the shapes are fixed and the norms of sizes are folded into their convolutions. A recipe with
        `priors: shapes` builds the same detector, so it costs nothing more. The outputs are those of eval mode, but
        for shapes rounded to .001 px.
        """
        if self.shapes is None:
            return self
        copied = copy.deepcopy(self)
        copied.prior_grid = self.shapes.fixed()
        copied.shapes = None
        copied._priors.clear()  # they were tiled from the initial shapes
        # a list: children are replaced while we walk
        for module in list(copied.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SizeNorm):
                    child.fold()
                    setattr(module, name, None)
        return copied

    def deployed_recipe(self, recipe: schema.Recipe) -> schema.Recipe:
        """The recipe that builds `deployed()`. recipe: the one this detector was built from."""
        if self.shapes is None:
            return recipe
        return recipe.model_copy(update={"priors": schema.slot_of("shapes", self.shapes.fixed())})

    def priors(self, sizes: list[tuple[int, int]], device: torch.device) -> Priors:
        """Priors of feature maps of these heights and widths; the last few sizes are kept.

        Where the shapes learn, the boxes carry the gradient to them.
        """
        key = (*sizes, device)
        if key not in self._priors:
            if len(self._priors) >= PRIOR_CACHE:
                self._priors.pop(next(iter(self._priors)))  # the oldest: dicts keep the order of insertion
            # priors made under inference_mode could never take part in training
            with torch.inference_mode(False):
                self._priors[key] = self.prior_grid(sizes, self.levels, device, self.strides)
        kept = self._priors[key]
        return kept if self.shapes is None else self.shapes.anchors_at(kept)

    def assign(self, dense: Dense, targets: Targets) -> Assignment:
        """Which prior is matched to which ground truth in this training step, without gradient."""
        # half precision would rank IoUs and losses by rounding
        with torch.no_grad(), torch.autocast(dense.device.type, enabled=False):
            assignment = self.assigner(dense.detached(), targets)
            if self.shapes is None:
                return assignment
            return self.shapes.soften(assignment, dense.priors, targets, self.step)

    def training_loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms to be summed. images (B, 3, H, W); targets in the images' pixels."""
        return self.dense_loss(self(images), targets)

    def dense_loss(self, dense: Dense, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms of the dense predictions: they are assigned, then compared with their ground truths.

        targets: as `dense_targets` gives them.
        """
        assignment = self.assign(dense, targets)
        with torch.autocast(dense.device.type, enabled=False):
            terms = self.assigned_loss(dense, assignment, targets)
            if self.shapes is None:
                return terms
            return terms | self.shapes.clustering_loss(assignment, dense.priors, targets, self.step)

    def assigned_loss(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms of the assigned predictions."""
        return self.loss(dense, assignment, targets)

    def stuck(self, terms: Mapping[str, float]) -> bool:
        """Whether these terms of a training step are where a loss has no slope."""
        return self.loss.stuck(terms)

    def dense_targets(self, targets: Targets) -> Targets:
        """The ground truths as the dense predictions tell them apart: by class, unless they only propose."""
        return targets

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor, test: schema.Test) -> list[Detections]:
        """Detections of every image, best first, in the images' pixels.

        sizes (B, 2): height and width before padding; boxes are clipped to it. Call it in eval mode;
        batch norm would otherwise use the batch's statistics.
        """
        return select(self(images), sizes, self.selection(test), self.loss.probabilities)

    def selection(self, test: schema.Test) -> Selection:
        """How detections are selected: the recipe's values, the detector's own where it leaves them open."""
        return Selection(
            score_threshold=_or(
                test.score_threshold, 0.0 if self.loss.ranks else self.default_score_threshold
            ),
            pre_nms_top_k=test.pre_nms_top_k,
            nms_iou=_or(test.nms_iou, self.default_nms_iou),
            max_detections=_or(test.max_detections, self.default_max_detections),
        )


def _or(value: N | None, own: N) -> N:
    return own if value is None else value


def part_of(recipe: schema.Recipe, key: str, base: type[T]) -> T | None:
    """The recipe's own part of that slot, None where it leaves the choice to the detector."""
    slot = getattr(recipe, key)
    if slot is None:
        return None
    part = schema.build_part(schema.SLOT_PACKAGES[key], slot, key)
    if not isinstance(part, base):
        raise RecipeError(
            f"{key}: {slot.name!r} is no {base.__name__}; see docs/recipe.md for what a slot holds"
        )
    return part
