"""Defaults of the dynamic assigner, without torch or pydantic: command lines and searches show them in their help."""

from __future__ import annotations

ALPHA = 1.5
"""Weight of the IoU loss against the focal loss. HPS-Det names none; this is that of OTA (Ge et al. 2021), the closest
published assigner by lowest loss."""
MIN_IOU = 0.1
"""IoU above which an anchor is a candidate. Source: HPS-Det, Algorithm 2. ATSS's anchors of 8 strides offer none to objects
below 2.5 strides then, which a lower value serves."""
PAPER_EDGES: dict[int, tuple[float, ...]] = {1: (), 3: (0.5, 2.0), 5: (0.25, 0.5, 2.0, 4.0)}
"""Edges of Table 5's 1, 3 and 5 aspect-ratio bins; bin j is (edge[j-1], edge[j]]. The ratio is height / width."""
