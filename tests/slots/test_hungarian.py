"""The assigner `hungarian` against every possible assignment, and its loss against torchvision's terms."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torchvision.ops as tv
from torch import Tensor

from detsearch_cli.slots.assigners.hungarian import Hungarian
from detsearch_cli.slots.losses.focal_l1_giou import FocalL1GIoU
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Targets
from tests.slots import _reference as slow

PRIORS = Points()([(2, 3)], (5, 5))
"""Six, in an image of 64 x 96 px."""
SIDES = torch.tensor([96.0, 64, 96, 64])


def targets(counts: list[int], seed: int = 0) -> Targets:
    return slow.random_targets(counts, seed, width=96, height=64)


def costs(dense: Dense, image: int, boxes: Tensor, labels: Tensor) -> Tensor:
    """(A, G), from the paper's text: what training would minimise for each pair. float64."""
    p = dense.logits[image].double().sigmoid()[:, labels]
    focal = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
    predicted = dense.boxes[image].double()
    parts = [tv.box_convert(b / SIDES.double(), "xyxy", "cxcywh") for b in (predicted, boxes.double())]
    giou = tv.generalized_box_iou(predicted, boxes.double())
    return 2 * focal + 5 * torch.cdist(*parts, p=1) - 2 * giou


@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_costs_is_the_least_of_all_assignments(seed: int) -> None:
    truth = targets([3, 0, 5, 1], seed)
    dense = slow.dense_of(PRIORS, 4, seed=seed)
    matched = Hungarian()(dense, truth).matched
    for image, (start, boxes) in enumerate(slow.per_image(truth)):
        count = len(boxes)
        cost = costs(dense, image, boxes, truth.labels[start : start + count])
        found = {int(gt) - start: prior for prior, gt in enumerate(matched[image]) if gt >= 0}
        assert sorted(found) == list(range(count))
        total = sum(float(cost[prior, gt]) for gt, prior in found.items())
        every = (
            sum(float(cost[p, g]) for g, p in enumerate(chosen)) for chosen in permutations(range(6), count)
        )
        assert total == pytest.approx(min(every), abs=1e-5)


def test_of_more_objects_than_priors_every_prior_has_one() -> None:
    matched = Hungarian()(slow.dense_of(PRIORS, 1), targets([9])).matched
    assert matched.min() >= 0 and len(matched.unique()) == 6


def test_weights_of_the_costs_decide_what_counts() -> None:
    dense, truth = slow.dense_of(PRIORS, 1), targets([1])
    label = int(truth.labels[0])
    by_class = Hungarian(l1_weight=0, giou_weight=0)(dense, truth).matched
    assert by_class[0].argmax() == dense.logits[0, :, label].argmax()
    by_overlap = Hungarian(class_weight=0, l1_weight=0)(dense, truth).matched
    assert by_overlap[0].argmax() == tv.generalized_box_iou(dense.boxes[0], truth.boxes)[:, 0].argmax()


def test_what_is_not_finite_gets_no_prior_and_stops_nothing() -> None:
    truth, dense = targets([3]), slow.dense_of(PRIORS, 1)
    truth.boxes[1, 2] = torch.inf
    matched = Hungarian()(dense, truth).matched
    assert sorted(matched[matched >= 0].tolist()) == [0, 2]
    dense.boxes[0, :4] = torch.nan
    matched = Hungarian()(dense, truth).matched
    assert sorted(matched[0, 4:].tolist()) == [0, 2]  # to those that are numbers


def test_the_loss_is_its_three_terms_over_the_positives() -> None:
    truth, dense = targets([3, 0, 2]), slow.dense_of(PRIORS, 3)
    assignment = Hungarian()(dense, truth)
    found = FocalL1GIoU()(dense, assignment, truth)
    image, prior = assignment.positive.nonzero(as_tuple=True)
    gt = assignment.matched[image, prior]
    wanted = torch.zeros_like(dense.logits)
    wanted[image, prior, truth.labels[gt]] = 1
    focal = tv.sigmoid_focal_loss(dense.logits, wanted, 0.25, 2.0, reduction="sum")
    predicted, boxes = dense.boxes[image, prior], truth.boxes[gt]
    parts = [tv.box_convert(b / SIDES, "xyxy", "cxcywh") for b in (predicted, boxes)]
    torch.testing.assert_close(found["classification"], 2 * focal / 5)
    torch.testing.assert_close(found["l1"], 5 * (parts[0] - parts[1]).abs().sum() / 5)
    torch.testing.assert_close(found["giou"], 2 * tv.generalized_box_iou_loss(predicted, boxes).sum() / 5)
    doubled = FocalL1GIoU(class_weight=4, l1_weight=10, giou_weight=4)(dense, assignment, truth)
    for name, value in found.items():
        torch.testing.assert_close(doubled[name], 2 * value)
