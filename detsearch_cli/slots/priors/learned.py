"""Widths and heights that learn themselves while the detector trains, from any initial list.

What learns is in detectors/_learning.py; here are the switches and the schedules of the three techniques that
help it, each on its own so that Table 6 can be rerun.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from detsearch_cli.errors import RecipeError
from detsearch_cli.option import MOST_SHAPES
from detsearch_cli.parts import Steps
from detsearch_cli.slots.priors import _lists
from detsearch_cli.slots.priors.base import PriorGrid
from detsearch_cli.slots.priors.shapes import Shapes
from detsearch_cli.structures import TrainingStep

COOLING = 10
"""The temperature falls with this power of what is left of the warm-up. The paper anneals lambda "linearly" and the
temperature, from 2 to 0, in a way it does not name. Distances of 1 - IoU are below 1, so at temperatures above some .2
the shapes share every box alike and gather at one point. A linear fall would spend nine tenths of the warm-up above .2;
a network that has meanwhile learnt to predict every size from one shape then leaves the shapes gathered. With this
power it is a fifth of the warm-up."""
CLUSTERING = 30.0
"""lambda at the start. The paper's is 1. But the localisation loss sums what clustering averages, and it holds a shape
as soon as the network predicts sizes from that shape. In a training of a thousand steps, the sides learned from different
starts differed by half with lambda 1, by 7% with 30."""


class Learned(PriorGrid):
    """Source: Zhong et al. 2020 (anchor box optimization), section 3.2.

    Both warm-ups end after `warmup_steps` as in the paper, but at most after `warmup_fraction` of the training:
    the paper's 1500 steps are a twentieth of its training on VOC, and would be more than the whole of a short
    one. Two fifths are what shapes need to come to rest in a thousand steps. The paper gives the shapes no learning
    rate of their own; detectors/_learning.py says which one they have here, and why. For a long training as in the
    paper: `clustering_weight: 1`, `lr_factor: 1`.
    """

    init: _lists.OptionalChoice = Field(
        default=None,
        description="initial shapes: as `shapes` takes them; null: those of the detector's own priors",
    )
    count: int = Field(default=5, ge=1, le=MOST_SHAPES, description="shapes of `identical`")
    soft: bool = Field(default=True, description="soft assignment warm-up (Eq. 10)")
    clustering: bool = Field(default=True, description="online clustering warm-up (Eq. 11)")
    bn: bool = Field(
        default=True, description="batch norm without shift on the predicted widths and heights (3.2.3)"
    )
    distance: Literal["iou", "log_l2"] = Field(
        default="iou", description="of the soft assignment: 1 - IoU, or L2 between log sizes"
    )
    warmup_steps: Steps = Field(default=1500, description="steps that both warm-ups last")
    warmup_fraction: float = Field(
        default=0.4, ge=0, le=1, description="largest part of the training that they last"
    )
    temperature: float = Field(default=2.0, gt=0, description="of the soft assignment, falls to 0")
    clustering_weight: float = Field(default=CLUSTERING, ge=0, description="lambda of Eq. 11, falls to 0")
    lr_factor: float | None = Field(
        default=None, gt=0, description="of the shapes' learning rate; null: more, the shorter the training"
    )

    def started(self, default: PriorGrid, levels: tuple[int, int]) -> Learned:
        """The same with `init` written out, one list a level, in px. Raises RecipeError where it does not fit."""
        grid = default if self.init is None else Shapes(shapes=self.init, count=self.count)
        if self.init is None and default.ranges(levels) is not None:
            raise RecipeError(
                "priors learned needs a detector that predicts boxes from anchors, this one predicts distances "
                "from points; use --detector retinanet, atss or another with anchors"
            )
        if not isinstance(self.init, str | None):
            _lists.check_levels("priors.init", self.init, levels)
        lists = tuple(tuple(shapes) for shapes in grid.level_boxes(levels))
        # model_copy validates nothing, and need not: the lists come from a grid that is valid
        return self.model_copy(update={"init": lists})

    @property
    def per_cell(self) -> int:
        if self.init is None:
            raise RecipeError("priors learned without init takes the shapes of a detector; name a detector")
        return _lists.count_of(self.init, self.count)

    def cell_boxes(self, stride: int) -> list[tuple[float, float]]:
        return self._grid().cell_boxes(stride)

    def level_boxes(self, levels: tuple[int, int]) -> list[list[tuple[float, float]]]:
        """Initial shapes in px."""
        return self._grid().level_boxes(levels)

    def _grid(self) -> Shapes:
        if self.init is None:
            raise RecipeError("priors learned without init takes the shapes of a detector; name a detector")
        return Shapes(shapes=self.init, count=self.count)

    # ------------------------------------------------------------------ schedules

    def remaining_warmup(self, step: TrainingStep) -> float:
        """1 at the first step, linear to 0 at the end of the warm-ups, 0 after it."""
        # the paper's length, unless the training is too short for it
        length = min(self.warmup_steps, self.warmup_fraction * step.total)
        return max(0.0, 1 - step.index / length) if length > 0 else 0.0

    def temperature_at(self, step: TrainingStep) -> float:
        """T of Eq. 10; 0 once the assignment is hard, or without the warm-up."""
        return self.temperature * self.remaining_warmup(step) ** COOLING if self.soft else 0.0

    def clustering_at(self, step: TrainingStep) -> float:
        """lambda of Eq. 11; 0 after the warm-up, or without it."""
        return self.clustering_weight * self.remaining_warmup(step) if self.clustering else 0.0
