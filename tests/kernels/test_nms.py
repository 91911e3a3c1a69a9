"""The compiled non-maximum suppression against torchvision's, class by class, and against its definition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detsearch_kernels import loader, use
from detsearch_kernels.nms import nms
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as nms_of_one_class


@pytest.fixture(autouse=True)
def _compiled() -> Iterator[None]:
    if not loader.ready(torch.device("cpu")):
        pytest.skip("no compiler here")
    use("required")
    yield
    use("auto")


def detections(count: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * 100
    boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2, generator=random) * 60), 1)
    return boxes, torch.rand(count, generator=random), torch.randint(classes, (count,), generator=random)


def class_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, most_iou: float) -> Tensor:
    kept = [
        own[nms_of_one_class(boxes[own], scores[own], most_iou)]
        for own in ((labels == c).nonzero()[:, 0] for c in labels.unique())
    ]
    found = torch.cat([labels[:0], *kept]).sort().values
    return found[scores[found].argsort(descending=True, stable=True)]


@pytest.mark.parametrize("count", [0, 1, 50, 1500])
@pytest.mark.parametrize("most_iou", [0.0, 0.3, 0.6, 1.0])
def test_the_same_boxes_stay_as_by_torchvision_for_each_class(count: int, most_iou: float) -> None:
    given = detections(count)
    expected = class_by_class(*given, most_iou)
    for limit in (0, 1, 20, count + 1):
        assert torch.equal(nms(*given, most_iou=most_iou, limit=limit), expected[:limit])


def test_what_stays_overlaps_nothing_better_of_its_class_and_what_goes_does() -> None:
    boxes, scores, labels = detections(300)
    kept = nms(boxes, scores, labels, most_iou=0.4, limit=300)
    overlap = box_iou(boxes, boxes) * (labels[:, None] == labels)
    better = scores > scores[:, None]
    stays = torch.zeros(300, dtype=torch.bool)
    stays[kept] = True
    assert torch.equal(stays, ~((overlap > 0.4) & better & stays).any(1))


def test_of_equal_scores_the_first_box_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
    labels = torch.tensor([1, 0, 1, 0, 2])
    assert nms(boxes, torch.full((5,), 0.5), labels, most_iou=0.5, limit=9).tolist() == [0, 1, 4]


def test_boxes_without_area_overlap_nothing() -> None:
    boxes = torch.tensor([[3.0, 3, 3, 3]]).repeat(3, 1)
    kept = nms(boxes, torch.tensor([0.1, 0.3, 0.2]), torch.zeros(3, dtype=torch.int64), most_iou=0.5, limit=9)
    assert kept.tolist() == [1, 2, 0]


def test_tensors_that_are_not_contiguous_work() -> None:
    boxes, scores, labels = detections(200)
    odd = torch.stack((boxes, boxes), -1)[..., 0]
    assert torch.equal(
        nms(odd, scores, labels, most_iou=0.5, limit=50), nms(boxes, scores, labels, most_iou=0.5, limit=50)
    )


def test_without_kernels_the_result_is_the_same() -> None:
    given = detections(400)
    ours = nms(*given, most_iou=0.5, limit=100)
    use("off")
    assert torch.equal(nms(*given, most_iou=0.5, limit=100), ours)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"boxes": torch.zeros(2, 5)}, ValueError, r"boxes must be \(N, 4\)"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels \(N,\)"),
        ({"boxes": torch.zeros(2, 4, dtype=torch.float64)}, TypeError, "must be float32"),
        ({"labels": torch.zeros(2)}, TypeError, "labels int64, got"),
        ({"limit": -1}, ValueError, "limit must be at least 0, got -1"),
        ({"scores": torch.tensor([0.5, torch.nan])}, RuntimeError, "no score may be NaN, got one at 1"),
    ],
)
def test_input_that_does_not_fit_is_named(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    given: dict[str, Any] = {
        "boxes": torch.zeros(2, 4),
        "scores": torch.zeros(2),
        "labels": torch.zeros(2, dtype=torch.int64),
        "most_iou": 0.5,
        "limit": 9,
    }
    with pytest.raises(error, match=sentence):
        nms(**{**given, **change})


def test_torch_knows_the_operator() -> None:
    torch.library.opcheck(torch.ops.detsearch.nms.default, (*detections(50), 0.5, 20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_keeps_the_same_boxes() -> None:
    given = detections(400)
    there = nms(*(x.cuda() for x in given), most_iou=0.5, limit=100)
    assert torch.equal(there.cpu(), nms(*given, most_iou=0.5, limit=100))
