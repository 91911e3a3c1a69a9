"""boxes.py against torchvision, and on degenerate input."""

from __future__ import annotations

import torch
import torchvision.ops as tv
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from detsearch_cli import boxes


def random_boxes(count: int, seed: int = 0, size: float = 200) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator) * size / 2), 1)


def test_iou_of_boxes_that_broadcast_equals_torchvision() -> None:
    a, b = random_boxes(30, 1), random_boxes(50, 2)
    torch.testing.assert_close(boxes.iou(a[:, None], b), tv.box_iou(a, b))


def test_degenerate_boxes_overlap_nothing_and_keep_gradients_finite() -> None:
    empty = torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 3], [1, 1, 8, 1]])
    assert boxes.iou(empty[:, None], torch.cat((empty, random_boxes(5)))).eq(0).all()
    predicted = empty.clone().requires_grad_()
    boxes.iou(predicted, empty).sum().backward()
    assert predicted.grad is not None and predicted.grad.isfinite().all()
    assert boxes.encode_deltas(random_boxes(3), empty).isfinite().all()


def test_deltas_equal_torchvision_box_coder_and_round_trip() -> None:
    anchors, gt = random_boxes(40, 1), random_boxes(40, 2)
    coder = BoxCoder(boxes.DELTA_WEIGHTS)
    deltas = boxes.encode_deltas(anchors, gt)
    torch.testing.assert_close(deltas, coder.encode_single(gt, anchors), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes.decode_deltas(anchors, deltas), gt, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(
        boxes.decode_deltas(anchors, deltas * 9),
        coder.decode_single(deltas * 9, anchors),
        rtol=1e-4,
        atol=1e-2,
    )


def test_distances_round_trip() -> None:
    gt = random_boxes(20)
    points = boxes.centers(gt) + 3
    distances = boxes.encode_distances(points, gt)
    torch.testing.assert_close(boxes.decode_distances(points, distances[None])[0], gt)


def test_centerness_is_one_in_the_middle_and_zero_outside() -> None:
    gt = torch.tensor([[0.0, 0, 10, 20]]).repeat(4, 1)
    points = torch.tensor([[5.0, 10], [2.5, 10], [0, 10], [-3, 10]])
    torch.testing.assert_close(boxes.centerness(points, gt), torch.tensor([1.0, (2.5 / 7.5) ** 0.5, 0, 0]))


def test_clip_uses_each_images_own_size() -> None:
    wide = torch.tensor([[[-5.0, -5, 500, 500]], [[-5.0, -5, 500, 500]]])
    clipped = boxes.clip(wide, torch.tensor([[30, 40], [70, 60]]))
    assert clipped.tolist() == [[[0, 0, 40, 30]], [[0, 0, 60, 70]]]
