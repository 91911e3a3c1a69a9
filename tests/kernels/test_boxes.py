"""The box operators against torchvision, against boxes drawn on a grid, and against the PyTorch operators."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torchvision.ops as tv
from detsearch_kernels import _boxes_reference as reference
from detsearch_kernels import loader
from detsearch_kernels.boxes import aligned_iou, aligned_overlap, pairwise_iou, pairwise_overlap, per_image
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detsearch_cli import boxes as cli_boxes

MEASURES = reference.MEASURES
PAIRWISE = {
    "iou": tv.box_iou,
    "giou": tv.generalized_box_iou,
    "diou": tv.distance_box_iou,
    "ciou": tv.complete_box_iou,
}
LOSSES = {
    "giou": tv.generalized_box_iou_loss,
    "diou": tv.distance_box_iou_loss,
    "ciou": tv.complete_box_iou_loss,
}
# empty, inverted, a line, a point twice, the same box, touching, nested, far away
ODD = [
    [5.0, 5.0, 5.0, 5.0],
    [9.0, 9.0, 3.0, 3.0],
    [2.0, 4.0, 2.0, 9.0],
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 10.0, 10.0],
    [0.0, 0.0, 10.0, 10.0],
    [10.0, 0.0, 20.0, 10.0],
    [4.0, 4.0, 5.0, 6.0],
    [1e5, 1e5, 1e5 + 3, 1e5 + 2],
]


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the compiled operator and with plain PyTorch."""
    loader.use("auto" if request.param == "compiled" else "off")
    if request.param == "compiled":
        need_compiled()
    yield request.param
    loader.use("auto")


def need_compiled() -> None:
    if not loader.ready(torch.device("cpu")):
        pytest.skip(f"no compiled kernels: {loader.info()[0].reason}")


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=random, dtype=torch.float64) * 300
    sides = torch.rand(*shape, 2, generator=random, dtype=torch.float64) * 150 + 1
    return torch.cat((corner, corner + sides), -1).to(dtype)


def close_pairs(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Half of the pairs overlap well, the others are random."""
    a, b = random_boxes(count, seed=seed, dtype=dtype), random_boxes(count, seed=seed + 1, dtype=dtype)
    random = torch.Generator().manual_seed(seed)
    near = a[::2]
    b[::2] = near + torch.randn(near.shape, generator=random).to(dtype) * 0.1 * (
        near[:, 2:] - near[:, :2]
    ).amin(1, keepdim=True)
    return a, b


@pytest.mark.parametrize("measure", MEASURES)
def test_all_pairs_are_torchvisions(way: str, measure: str) -> None:
    gt, priors = random_boxes(7), random_boxes(1700, seed=1)
    expected = PAIRWISE[measure](gt, priors)
    torch.testing.assert_close(pairwise_iou(gt, priors, measure), expected, rtol=1e-5, atol=2e-6)
    ours = pairwise_iou(gt.double(), priors.double(), measure)
    near = 1e-7 if measure == "ciou" else 1e-9  # torchvision adds 1e-7 to some denominators
    torch.testing.assert_close(ours, PAIRWISE[measure](gt.double(), priors.double()), rtol=near, atol=near)


@pytest.mark.parametrize("measure", list(LOSSES))
def test_paired_loss_and_its_gradient_are_torchvisions(way: str, measure: str) -> None:
    a, b = (boxes.requires_grad_() for boxes in close_pairs(1100, dtype=torch.float64))
    weight = torch.linspace(-1, 2, 1100, dtype=torch.float64)
    ours = 1 - aligned_iou(a, b, measure, eps=1e-7)
    theirs = LOSSES[measure](a, b)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), (a, b)),
        torch.autograd.grad((theirs * weight).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-9)


def test_iou_is_that_of_the_assigners_on_odd_boxes_too(way: str) -> None:
    a, b = close_pairs(900)
    a[:9], b[:9] = torch.tensor(ODD), torch.tensor(ODD).flip(0)
    a[9:18] = b[9:18] = torch.tensor(ODD)
    near = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(aligned_iou(a, b, "iou"), cli_boxes.iou(a, b), **near)
    torch.testing.assert_close(pairwise_iou(a[:30], b), cli_boxes.iou(a[:30, None], b), **near)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(-3, 12)] * 4), min_size=2, max_size=6))
def test_areas_are_those_counted_on_a_grid(corners: list[tuple[int, int, int, int]]) -> None:
    need_compiled()
    boxes = torch.tensor(corners, dtype=torch.float32)
    found = pairwise_overlap(boxes, boxes)
    for i, first in enumerate(corners):
        for j, second in enumerate(corners):
            a, b = cells(first), cells(second)
            assert found.intersection[i, j] == len(a & b)
            assert found.union[i, j] == len(a | b)
            assert found.value[i, j] == pytest.approx(len(a & b) / max(1, len(a | b)))
            hull = (
                max(0, max(first[2], second[2]) - min(first[0], second[0])),
                max(0, max(first[3], second[3]) - min(first[1], second[1])),
            )
            assert found.enclosing[i, j] == hull[0] * hull[1]


def cells(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("measure", MEASURES)
def test_odd_boxes_give_finite_values_and_gradients_as_pytorch_does(measure: str, dtype: torch.dtype) -> None:
    need_compiled()
    index, odd = MEASURES.index(measure), torch.tensor(ODD, dtype=dtype)
    a, b = (
        boxes.reshape(-1, 4).clone().requires_grad_() for boxes in torch.broadcast_tensors(odd[:, None], odd)
    )
    for eps in (0.0, 1e-7):
        ours, plain = aligned_overlap(a, b, measure, eps=eps), reference.compare(a, b, index, eps)
        weights = [torch.linspace(0.5 + k, 2, len(a), dtype=dtype) for k in range(4)]
        grads = [
            torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights, strict=True)), (a, b))
            for outs in (ours, plain)
        ]
        for mine, other in [*zip(ours, plain, strict=True), *zip(*grads, strict=True)]:
            assert mine.isfinite().all()
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_a_box_without_area_overlaps_nothing(way: str) -> None:
    odd = torch.tensor(ODD)
    overlap = pairwise_iou(odd[:4], odd)
    assert overlap.eq(0).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_nan_stays_visible(way: str, measure: str) -> None:
    a, b = random_boxes(40), random_boxes(40, seed=1)
    for column in range(4):
        a[column * 2, column] = b[column * 2 + 20, column] = math.nan
    paired, pairs = aligned_overlap(a, b, measure), pairwise_overlap(a, b, measure)
    bad_a, bad_b = a.isnan().any(1), b.isnan().any(1)
    for found in (paired.value, paired.union):
        assert found.isnan().equal(bad_a | bad_b)
    for found in (pairs.value, pairs.union):
        assert found.isnan().equal(bad_a[:, None] | bad_b)


@pytest.mark.parametrize("measure", ["iou", "giou", "diou"])
def test_gradient_is_that_of_finite_differences(measure: str) -> None:
    need_compiled()
    a, b = (boxes.requires_grad_() for boxes in close_pairs(12, seed=3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: aligned_iou(a, b, measure), (a, b))
    assert torch.autograd.gradcheck(lambda a, b: tuple(aligned_overlap(a, b, measure, eps=1e-3)), (a, b))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_boxes_are_computed_in_float32(way: str, measure: str, dtype: torch.dtype) -> None:
    a, b = (boxes.to(dtype) for boxes in close_pairs(700))
    assert pairwise_iou(a[:9], b, measure).equal(pairwise_iou(a[:9].float(), b.float(), measure))
    half, full = a.clone().requires_grad_(), a.float().requires_grad_()
    value, expected = aligned_iou(half, b, measure), aligned_iou(full, b.float(), measure)
    assert value.dtype == torch.float32
    assert value.equal(expected)
    value.sum().backward()
    expected.sum().backward()
    assert half.grad is not None and full.grad is not None
    torch.testing.assert_close(half.grad, full.grad.to(dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_priors_of_each_image_meet_its_own_ground_truths(way: str, measure: str) -> None:
    counts = [0, 3, 1, 0, 5]
    splits = torch.tensor([0, *counts]).cumsum(0)
    gt, priors = random_boxes(sum(counts)), random_boxes(len(counts), 1100, seed=1)
    ragged = pairwise_overlap(gt, priors, measure, splits=splits)
    for parts, k in zip(zip(*(per_image(x, splits) for x in ragged), strict=True), range(5), strict=True):
        alone = pairwise_overlap(gt[splits[k] : splits[k + 1]], priors[k], measure)
        for part, expected in zip(parts, alone, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=0 if way == "compiled" else 1e-6)


def test_images_share_priors_without_padding(way: str) -> None:
    splits = torch.tensor([0, 2, 2, 7])
    gt, priors = random_boxes(7), random_boxes(600, seed=1)
    together = pairwise_iou(gt, priors, "giou")
    parts = per_image(together, splits)
    assert [tuple(part.shape) for part in parts] == [(2, 600), (0, 600), (5, 600)]
    assert parts[2].data_ptr() == together[2:].data_ptr()


def test_out_is_written_and_returned(way: str) -> None:
    gt, priors = random_boxes(5), random_boxes(900, seed=1)
    out = torch.full((5, 900), 7.0)
    assert pairwise_iou(gt, priors, "diou", out=out) is out
    assert out.equal(pairwise_iou(gt, priors, "diou"))


@pytest.mark.parametrize("gts, priors", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_nothing_in_gives_nothing_out(way: str, gts: int, priors: int) -> None:
    assert pairwise_iou(torch.zeros(gts, 4), torch.zeros(priors, 4)).shape == (gts, priors)
    none = torch.zeros(0, 4, requires_grad=True)
    aligned_iou(none, none).sum().backward()
    assert none.grad is not None and none.grad.shape == (0, 4)


def test_non_contiguous_boxes_work(way: str) -> None:
    gt, priors = random_boxes(8), random_boxes(1000, seed=1)
    turned = priors.T.contiguous().T
    assert pairwise_iou(gt[::2], turned[::3], "ciou").equal(
        pairwise_iou(gt[::2].clone(), priors[::3].clone(), "ciou")
    )
    a = turned[:500].detach().requires_grad_()
    grid = aligned_iou(a.reshape(20, 25, 4), priors[500:].reshape(20, 25, 4))
    flat = aligned_iou(a, priors[500:])
    assert grid.shape == (20, 25)
    assert torch.autograd.grad(grid.T.sum(), a)[0].equal(torch.autograd.grad(flat.sum(), a)[0])


def test_compiled_gradient_is_half_and_half_where_boxes_are_equal() -> None:
    need_compiled()
    a = random_boxes(50).requires_grad_()
    b = a.detach().clone().requires_grad_()
    for measure in MEASURES:
        grads = torch.autograd.grad(aligned_iou(a, b, measure).sum(), (a, b))
        plain = torch.autograd.grad(reference.compare(a, b, MEASURES.index(measure), 0.0)[0].sum(), (a, b))
        for mine, other in zip(grads, plain, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_only_wanted_gradients_are_computed(way: str) -> None:
    a, b = close_pairs(30)
    b.requires_grad_()
    aligned_overlap(a, b, "giou").union.sum().backward()
    assert a.grad is None and b.grad is not None and b.grad.isfinite().all()


def test_a_million_boxes_and_threads_change_nothing() -> None:
    need_compiled()
    gt, priors = random_boxes(3), random_boxes(1_000_000, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pairwise_iou(gt, priors, "giou")
        torch.set_num_threads(3)
        together = pairwise_iou(gt, priors, "giou")
    finally:
        torch.set_num_threads(threads)
    assert together.equal(alone)
    torch.testing.assert_close(aligned_iou(priors, gt[:1].expand_as(priors)), alone[0])


def test_operators_declare_themselves_to_pytorch_correctly() -> None:
    need_compiled()
    ops = torch.ops.detsearch
    a, b = (boxes.requires_grad_() for boxes in close_pairs(6))
    gt, images, splits = random_boxes(3), random_boxes(2, 5, seed=1), torch.tensor([0, 1, 3])
    check = torch.library.opcheck
    check(ops.box_pairwise.default, (gt, images[0], None, 0, 0.0))
    check(ops.box_pairwise.default, (gt[:0], images[0], None, 3, 0.0))
    check(ops.box_pairwise_out.default, (gt, images, splits, 1, 0.0, torch.empty(3, 5)))
    check(ops.box_pairwise_areas.default, (gt, images, splits, 2, 0.0))
    for measure in range(4):
        check(ops.box_aligned.default, (a, b, measure, 1e-7))
        check(ops.box_aligned_areas.default, (a, b.detach(), measure, 0.0))
    ones = torch.ones(6)
    check(
        ops.box_aligned_backward.default,
        (a.detach(), b.detach(), ones, None, ones, None, 1, 0.0, True, False),
    )


def test_a_second_derivative_is_refused() -> None:
    need_compiled()
    a, b = close_pairs(4)
    a.requires_grad_()
    (first,) = torch.autograd.grad((aligned_iou(a, b) ** 2).sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="no gradient"):
        torch.autograd.grad(first.sum(), a)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda a, p: pairwise_iou(a.int(), p.int()), TypeError, "float32, float64.*torch.int32"),
        (lambda a, p: pairwise_iou(a, p.double()), TypeError, "torch.float64"),
        (lambda a, p: pairwise_iou(a[:, :3], p), ValueError, r"\(G, 4\), got \(2, 3\)"),
        (lambda a, p: pairwise_iou(a, p[None]), ValueError, r"without splits must be \(A, 4\)"),
        (lambda a, p: pairwise_iou(a, p, "eiou"), ValueError, "'eiou'"),  # type: ignore[arg-type]
        (lambda a, p: pairwise_iou(a, p, splits=torch.tensor([0, 2])), ValueError, r"with splits.*\(5, 4\)"),
        (lambda a, p: pairwise_iou(a, p[None], splits=torch.tensor([0, 3])), ValueError, "0 to the 2"),
        (lambda a, p: pairwise_iou(a, p[None], splits=torch.tensor([0, 1, 2])), ValueError, "2 splits"),
        (lambda a, p: pairwise_iou(a, p[None], splits=torch.tensor([0.0, 2.0])), TypeError, "int64"),
        (lambda a, p: pairwise_iou(a, p, out=torch.empty(2, 4)), ValueError, r"\(2, 5\).*got \(2, 4\)"),
        (lambda a, p: pairwise_iou(a, p, out=torch.empty(5, 2).T), ValueError, "not contiguous"),
        (lambda a, p: pairwise_iou(a.clone().requires_grad_(), p), ValueError, "no gradient"),
        (lambda a, p: aligned_iou(a, p), ValueError, r"\(2, 4\) and \(5, 4\)"),
        (lambda a, p: aligned_iou(a, a.half()), TypeError, "float16"),
        (lambda a, p: aligned_iou(a, a.to("meta")), ValueError, "cpu and meta"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(call, error: type[Exception], message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message) as caught:
        call(random_boxes(2), random_boxes(5, seed=1))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measure", MEASURES)
def test_the_gpu_gives_what_the_cpu_gives(measure: str, dtype: torch.dtype) -> None:
    odd = torch.tensor(ODD[:8], dtype=torch.float64)
    a, b = (torch.cat((boxes, odd)).to(dtype) for boxes in close_pairs(3000, dtype=torch.float64))
    b[-len(odd) :] = b[-len(odd) :].flip(0)
    splits = torch.tensor([0, 4, 4, 40])
    images = b[:900].reshape(3, 300, 4)
    near = {"rtol": 0.0, "atol": 1e-12 if dtype == torch.float64 else 0.0}
    for mine, other in zip(
        pairwise_overlap(a[:40].cuda(), images.cuda(), measure, splits=splits.cuda()),
        pairwise_overlap(a[:40], images, measure, splits=splits),
        strict=True,
    ):
        torch.testing.assert_close(mine.cpu(), other, **near)
    out = torch.empty(40, len(b), device="cuda", dtype=pairwise_iou(a[:1], b[:1]).dtype)
    pairwise_iou(a[:40].cuda(), b.cuda(), measure, out=out)
    torch.testing.assert_close(out.cpu(), pairwise_iou(a[:40], b, measure), **near)
    sides = [boxes.clone().requires_grad_() for boxes in (a, b)]
    aligned_iou(*(side.cuda() for side in sides), measure).sum().backward()
    expected = [boxes.clone().requires_grad_() for boxes in (a, b)]
    aligned_iou(*expected, measure).sum().backward()
    for side, other in zip(sides, expected, strict=True):
        torch.testing.assert_close(side.grad, other.grad, **near)
