"""focal_sum on a GPU gives what it gives on the CPU: on a GPU where one is, and its kernels emulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detsearch_kernels import loader
from torch import Tensor

from tests.kernels import emulated
from tests.kernels.test_focal import LAYOUTS, POWERS, assignment, heads

Both = Callable[[list[Tensor], Tensor, Tensor, float], tuple[Tensor, list[Tensor]]]


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Both:
    """Sum and gradient by the CUDA operators of tensors on the CPU: where a GPU is it moves them there and back."""
    if loader.load("cpu").library is None:
        pytest.skip("no compiled kernels")
    if request.param == "emulated":
        emulated.load("focal")
        return lambda *given: both(torch.ops.detsearch_emulated, *given)
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    assert loader.load("cuda").library is not None
    return _on_cuda


def _on_cuda(
    rows: list[Tensor], matched: Tensor, labels: Tensor, gamma: float
) -> tuple[Tensor, list[Tensor]]:
    there = [x.cuda() for x in rows]
    total, gradients = both(torch.ops.detsearch, there, matched.cuda(), labels.cuda(), gamma)
    return total.cpu(), [x.cpu() for x in gradients]


def both(
    operators: object, rows: list[Tensor], matched: Tensor, labels: Tensor, gamma: float
) -> tuple[Tensor, list[Tensor]]:
    given = ([x.detach() for x in rows], matched, labels, 0.3, gamma)
    factor = torch.tensor(0.7, dtype=rows[0].dtype, device=rows[0].device)
    return operators.focal_sum(*given), operators.focal_gradient(factor, *given)  # type: ignore[attr-defined]


def assert_same(gpu: Both, *given: list[Tensor] | Tensor | float) -> None:
    found, expected = gpu(*given), both(torch.ops.detsearch, *given)  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gamma", POWERS)
@pytest.mark.parametrize("shapes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum_and_gradient_are_the_cpu_s(
    gpu: Both, layout: torch.memory_format, gamma: float, shapes: int, dtype: torch.dtype
) -> None:
    _, rows = heads(layout, shapes=shapes, dtype=dtype)
    assert_same(gpu, rows, *assignment(rows), gamma)


@pytest.mark.parametrize(("images", "truths"), [(0, 0), (1, 0), (3, 1)])
def test_any_number_of_images_and_ground_truths(gpu: Both, images: int, truths: int) -> None:
    _, rows = heads(images=images)
    assert_same(gpu, rows, *assignment(rows, truths), 2.0)


def test_threads_that_take_several_logits_miss_none(gpu: Both) -> None:
    rows = [torch.randn(1, 100, 90, 1, 70) - 2]  # more than 2,048 blocks of 256
    assert_same(gpu, rows, *assignment(rows), 2.0)


def test_rows_and_labels_out_of_range_make_the_loss_nan(gpu: Both) -> None:
    _, rows = heads()
    matched, labels = assignment(rows)
    beyond = matched.clone()
    beyond[1, 5] = 6
    for given in ((beyond, labels), (matched, labels + 5)):
        assert gpu(rows, *given, 2.0)[0].isnan()
