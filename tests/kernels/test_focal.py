"""The compiled focal loss against torchvision's and autograd on the PyTorch one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detsearch_kernels import loader, use
from detsearch_kernels.focal import focal_sum, reference
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

SIZES = ((7, 9), (4, 5), (1, 3), (1, 1))
LAYOUTS = [torch.contiguous_format, torch.channels_last]
POWERS = [2.0, 1.5, 0.0]


@pytest.fixture(autouse=True)
def _compiled() -> Iterator[None]:
    if not loader.ready(torch.device("cpu")):
        pytest.skip("no compiler here")
    use("required")
    yield
    use("auto")


def heads(
    layout: torch.memory_format = torch.channels_last,
    images: int = 2,
    shapes: int = 3,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], list[Tensor]]:
    """What a head writes, (B, S x C, H, W) a level, and views of it in the order of priors."""
    random = torch.Generator().manual_seed(0)
    maps = [
        (torch.randn(images, shapes * classes, *size, generator=random, dtype=torch.float64) * 3 - 2)
        .to(dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for size in SIZES
    ]
    return maps, [x.permute(0, 2, 3, 1).unflatten(-1, (shapes, classes)) for x in maps]


def assignment(rows: list[Tensor], truths: int = 6) -> tuple[Tensor, Tensor]:
    """matched with every sixth prior positive and every ninth ignored, labels."""
    random = torch.Generator().manual_seed(1)
    images, classes = rows[0].shape[0], rows[0].shape[-1]
    matched = torch.full((images, sum(x.flatten(1, -2).shape[1] for x in rows)), -1)
    if truths:
        matched[:, ::6] = torch.randint(0, truths, matched[:, ::6].shape, generator=random)
    matched[:, ::9] = -2
    return matched, torch.randint(0, classes, (truths,), generator=random)


def by_torchvision(rows: list[Tensor], matched: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    logits = torch.cat([x.flatten(1, -2) for x in rows], 1)
    wanted = torch.zeros_like(logits)
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    wanted[image, prior, labels[matched[image, prior]]] = 1
    return sigmoid_focal_loss(logits, wanted, alpha, gamma)[matched != -2].sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gamma", POWERS)
@pytest.mark.parametrize("shapes", [1, 3])
def test_sum_and_gradient_equal_torchvision(layout: torch.memory_format, gamma: float, shapes: int) -> None:
    maps, rows = heads(layout, shapes=shapes)
    matched, labels = assignment(rows)
    ours = focal_sum(rows, matched, labels, alpha=0.3, gamma=gamma)
    theirs = by_torchvision(rows, matched, labels, 0.3, gamma)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, maps), torch.autograd.grad(theirs, maps), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gamma", POWERS)
def test_gradcheck(layout: torch.memory_format, gamma: float) -> None:
    maps, rows = heads(layout, dtype=torch.float64)
    matched, labels = assignment(rows)

    def total(*given: Tensor) -> Tensor:
        views = [x.permute(0, 2, 3, 1).unflatten(-1, (3, 5)) for x in given]
        return focal_sum(views, matched, labels, alpha=0.3, gamma=gamma)

    assert torch.autograd.gradcheck(total, maps)
    torch.testing.assert_close(total(*maps), reference(rows, matched, labels, 0.3, gamma))


def test_rows_of_all_levels_in_one_tensor_give_the_same() -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    whole = torch.cat([x.flatten(1, -2) for x in rows], 1)
    ours = focal_sum([whole], matched, labels, alpha=0.25, gamma=2)
    torch.testing.assert_close(ours, focal_sum(rows, matched, labels, alpha=0.25, gamma=2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_lies_in_memory_as_the_logits_do(layout: torch.memory_format) -> None:
    maps, rows = heads(layout)
    total = focal_sum(rows, *assignment(rows), alpha=0.25, gamma=2)
    for gradient, given in zip(torch.autograd.grad(total, maps), maps, strict=True):
        assert gradient.is_contiguous(memory_format=layout) and gradient.shape == given.shape


def test_other_memory_layouts_work() -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    odd = [torch.stack((x.detach(), x.detach()), -1)[..., 0].requires_grad_() for x in rows]
    assert not odd[0].is_contiguous()
    ours, theirs = (focal_sum(x, matched, labels, alpha=0.25, gamma=2) for x in (odd, rows))
    torch.testing.assert_close(ours, theirs)
    gradients = zip(torch.autograd.grad(ours, odd), torch.autograd.grad(theirs, rows), strict=True)
    assert all(torch.equal(a, b) for a, b in gradients)


def test_extreme_logits_have_a_finite_loss_and_the_gradient_of_the_pytorch_operator() -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    leaves = [(x.detach() * scale).requires_grad_() for x, scale in zip(rows, (1e4, 30, 90, 1), strict=True)]
    ours = focal_sum(leaves, matched, labels, alpha=0.25, gamma=2)
    theirs = reference(leaves, matched, labels, 0.25, 2)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_a_logit_that_is_not_a_number_shows_in_the_loss() -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    rows[1].data[0, 0, 0, 1, 0] = torch.nan
    assert focal_sum(rows, matched, labels, alpha=0.25, gamma=2).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    maps, rows = heads(dtype=dtype)
    matched, labels = assignment(rows)
    ours = focal_sum(rows, matched, labels, alpha=0.25, gamma=2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours, focal_sum([x.float() for x in rows], matched, labels, alpha=0.25, gamma=2)
    )
    assert all(x.dtype == dtype for x in torch.autograd.grad(ours, maps))


@pytest.mark.parametrize(("images", "truths"), [(0, 0), (1, 0), (3, 1), (2, 1000)])
def test_any_number_of_images_and_ground_truths(images: int, truths: int) -> None:
    maps, rows = heads(images=images)
    matched, labels = assignment(rows, truths)
    ours = focal_sum(rows, matched, labels, alpha=0.25, gamma=2)
    torch.testing.assert_close(ours, by_torchvision(rows, matched, labels, 0.25, 2))
    assert all(x.shape == y.shape for x, y in zip(torch.autograd.grad(ours, maps), maps, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_threads_give_the_bits_that_one_gives(layout: torch.memory_format) -> None:
    maps = [torch.randn(2, 720, 40, 50).contiguous(memory_format=layout).requires_grad_() for _ in range(2)]
    rows = [x.permute(0, 2, 3, 1).unflatten(-1, (9, 80)) for x in maps]
    matched, labels = assignment(rows)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            total = focal_sum(rows, matched, labels, alpha=0.25, gamma=2)
            found.append((total.detach(), *torch.autograd.grad(total, maps)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_kernels_the_result_is_the_same() -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    ours = focal_sum(rows, matched, labels, alpha=0.25, gamma=2)
    use("off")
    torch.testing.assert_close(focal_sum(rows, matched, labels, alpha=0.25, gamma=2), ours)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"logits": []}, ValueError, "at least one level"),
        ({"logits": [torch.zeros(1, 4)]}, ValueError, r"must be \(B, A, C\) or .* got \(1, 4\)"),
        ({"logits": [torch.zeros(1, 4, 2), torch.zeros(1, 4, 3)]}, ValueError, "share images and classes"),
        ({"logits": [torch.zeros(1, 4, 2, dtype=torch.int64)]}, TypeError, "floating-point dtype, got torch.int64"),
        ({"matched": torch.zeros(1, 5, dtype=torch.int64)}, ValueError, r"must be \(1, 4\), got \(1, 5\)"),
        ({"matched": torch.zeros(1, 4)}, TypeError, "matched must be int64"),
        ({"labels": torch.zeros(1)}, TypeError, "labels must be int64"),
        ({"labels": torch.zeros(1, 1, dtype=torch.int64)}, ValueError, r"labels must be \(G,\)"),
        ({"labels": torch.tensor([2])}, RuntimeError, "below the 2 classes, got 2"),
        ({"matched": torch.tensor([[0, 1, -1, -1]])}, RuntimeError, "below the 1 ground truths, got 1"),
        ({"matched": torch.tensor([[0, -3, -1, -1]])}, RuntimeError, "must be -2, -1 or .* got -3"),
        ({"alpha": 1.5}, ValueError, r"alpha must lie in \[0, 1\]"),
        ({"gamma": -1.0}, ValueError, "gamma be at least 0"),
    ],
)  # fmt: skip
def test_input_that_does_not_fit_is_named(
    change: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    given: dict[str, Any] = {
        "logits": [torch.zeros(1, 4, 2)],
        "matched": torch.tensor([[0, -1, -2, -1]]),
        "labels": torch.tensor([1]),
        "alpha": 0.25,
        "gamma": 2.0,
    }
    with pytest.raises(error, match=sentence):
        focal_sum(**{**given, **change})


def test_a_second_gradient_is_refused() -> None:
    maps, rows = heads()
    total = focal_sum(rows, *assignment(rows), alpha=0.25, gamma=2)
    (first, *_) = torch.autograd.grad(total, maps, create_graph=True)
    with pytest.raises(NotImplementedError, match="first gradient only"):
        first.sum().backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_knows_the_operators(layout: torch.memory_format) -> None:
    _, rows = heads(layout)
    matched, labels = assignment(rows)
    operators = torch.ops.detsearch
    torch.library.opcheck(operators.focal_sum.default, (rows, matched, labels, 0.25, 2.0))
    plain = [x.detach() for x in rows]
    torch.library.opcheck(
        operators.focal_gradient.default, (torch.tensor(1.0), plain, matched, labels, 0.25, 2.0)
    )
