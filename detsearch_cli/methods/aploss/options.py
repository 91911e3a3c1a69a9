"""The options of `detsearch aploss`: which of the paper's spaces is searched."""

from __future__ import annotations

from dataclasses import dataclass

from detsearch_cli.option import option


@dataclass(frozen=True)
class Options:
    """Tao et al. 2022, Tables 3 to 6."""

    segments: int = option(5, "Linear pieces of each curve.", min=2, max=32)
    shared: bool = option(False, "One curve for all five functions.")
    no_scale: bool = option(False, "Leave the scale of the gradient into the boxes at 1.")
    localisation: str = option("giou", "Localisation score: giou, iou or l1.")
