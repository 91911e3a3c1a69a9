"""A fixed list of widths and heights in pixels at every cell: k-means, learned or published anchors."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from detsearch_cli.option import MOST_SHAPES
from detsearch_cli.slots.priors import _lists
from detsearch_cli.slots.priors.base import PriorGrid


class Shapes(PriorGrid):
    """Source of the named lists: Zhong et al. 2020 (anchor box optimization), section 4.2.1, and darknet.

    `uniform` and `identical` are multiples of a level's stride; everything else is in pixels of the training
    image and the same on all levels unless there is one list a level.
    """

    shapes: _lists.Choice = Field(
        default="uniform",
        description="[[w, h], ...] in px, one such list a level, or uniform, identical, yolov2-voc, yolov2-coco",
    )
    count: int = Field(default=5, ge=1, le=MOST_SHAPES, description="shapes of `identical`")

    @property
    def per_cell(self) -> int:
        return _lists.count_of(self.shapes, self.count)

    def check(self, levels: tuple[int, int]) -> None:
        if not isinstance(self.shapes, str):
            _lists.check_levels("priors.shapes", self.shapes, levels)

    def cell_boxes(self, stride: int) -> list[tuple[float, float]]:
        if isinstance(self.shapes, str):
            return _lists.named(self.shapes, stride, self.count)
        return list(self.shapes[0])

    def level_boxes(self, levels: tuple[int, int]) -> list[list[tuple[float, float]]]:
        self.check(levels)
        # one list serves all levels, in px as it stands; a name is scaled by each level's stride
        if isinstance(self.shapes, str) or len(self.shapes) == 1:
            return super().level_boxes(levels)
        return [list(shapes) for shapes in self.shapes]

    def fragment(self) -> dict[str, Any]:
        """These priors as a part of a recipe: one list where the levels have but one."""
        if isinstance(self.shapes, str):
            return {"priors": self.model_dump(mode="json") | {"name": "shapes"}}
        lists = [[list(shape) for shape in level] for level in self.shapes]
        own = {"shapes": lists[0] if len(lists) == 1 else lists}
        return {"priors": {"name": "shapes", **self.model_dump(include={"offset", "spread"}), **own}}
