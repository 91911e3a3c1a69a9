"""Detections against the plain definition: all scores, sorted, then greedily suppressed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from detsearch_cli.detectors._postprocess import Selection, select
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import Dense

SIZES = [(8, 10), (4, 5), (2, 3)]
CLASSES = 4


def predictions(*, centerness: bool, layout: torch.memory_format = torch.channels_last) -> Dense:
    random = torch.Generator().manual_seed(0)
    priors = Anchors(scales=1)(SIZES, (3, 5))
    number = len(priors.boxes)
    maps = tuple(
        (torch.randn(2, 3 * CLASSES, *size, generator=random) * 2 - 1).contiguous(memory_format=layout)
        for size in SIZES
    )
    boxes = priors.boxes + torch.randn(2, number, 4, generator=random)
    central = torch.randn(2, number, generator=random) if centerness else None
    return Dense(maps, boxes, torch.zeros(2, number, 4), priors, central)


def by_definition(dense: Dense, image: int, size: Tensor, test: Selection) -> list[tuple[float, int]]:
    """(score, class) of the detections, best first."""
    classes, start = dense.logits[image].sigmoid(), 0
    scores = (
        classes if dense.centerness is None else (classes * dense.centerness[image].sigmoid()[:, None]).sqrt()
    )
    pairs: list[tuple[float, int, int]] = []
    for count in dense.priors.counts:
        own = [
            (float(scores[a, c]), a, c)
            for a in range(start, start + count)
            for c in range(CLASSES)
            if classes[a, c] > test.score_threshold
        ]
        pairs += sorted(own, reverse=True)[: test.pre_nms_top_k]
        start += count
    kept: list[tuple[float, Tensor, int]] = []
    height, width = size.tolist()
    for score, a, c in sorted(pairs, reverse=True):
        box = dense.boxes[image, a].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        if not (box[2:] > box[:2]).all():
            continue
        if all(
            label != c or box_iou(box[None], other[None]).item() <= test.nms_iou for _, other, label in kept
        ):
            kept.append((score, box, c))
    return [(score, label) for score, _, label in kept[: test.max_detections]]


@pytest.mark.parametrize("centerness", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("top_k", [7, 60, 10_000])
def test_detections_are_those_of_the_definition(centerness: bool, threshold: float, top_k: int) -> None:
    dense = predictions(centerness=centerness)
    sizes = torch.tensor([[64, 80], [50, 70]])
    test = Selection(score_threshold=threshold, pre_nms_top_k=top_k, nms_iou=0.5, max_detections=40)
    for image, found in enumerate(select(dense, sizes, test)):
        expected = by_definition(dense, image, sizes[image], test)
        assert found.labels.tolist() == [label for _, label in expected]
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _ in expected]))


@pytest.mark.parametrize("centerness", [False, True])
def test_the_layout_of_the_scores_does_not_matter(centerness: bool) -> None:
    test = Selection(score_threshold=0.05, pre_nms_top_k=1000, nms_iou=0.5, max_detections=100)
    sizes = torch.tensor([[64, 80], [50, 70]])
    dense = predictions(centerness=centerness)
    planes = predictions(centerness=centerness, layout=torch.contiguous_format)
    joined = replace(dense, maps=(dense.logits,))
    for others in (planes, joined):
        for a, b in zip(select(dense, sizes, test), select(others, sizes, test), strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.scores, b.scores) and torch.equal(a.labels, b.labels)


def test_rows_and_logits_follow_the_priors() -> None:
    dense = predictions(centerness=False)
    rows = torch.cat([x.flatten(1, -2) for x in dense.rows()], 1)
    assert torch.equal(rows, dense.logits) and rows.shape == (2, len(dense.priors.boxes), CLASSES)
    prior = 0
    for level, (height, width) in zip(dense.maps, SIZES, strict=True):
        for y, x, shape in torch.cartesian_prod(*map(torch.arange, (height, width, 3))).tolist():
            own = level[:, shape * CLASSES : (shape + 1) * CLASSES, y, x]
            assert torch.equal(dense.logits[:, prior], own)
            prior += 1
