"""The operators of the parameterized AP loss on a GPU give what they give on the CPU: on one, and emulated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detsearch_kernels import loader
from torch import Tensor

from tests.kernels import emulated
from tests.kernels.test_ap_loss import SEARCHED
from tests.kernels.test_ap_loss_levels import LAYOUTS, assigned, head

KNOTS = SEARCHED.knots, SEARCHED.steps
Gpu = Callable[..., list[Tensor]]


def all_four(
    operators: Any, levels: list[Tensor], positives: Tensor, quality: Tensor, ignored: Tensor
) -> list[Tensor]:
    """totals, loss, gradients by qualities and by the scores of every level."""
    own, place = operators.ap_loss_own(levels, positives)
    bins, at, owner, totals = operators.ap_loss_bins(levels, own, ignored, *KNOTS)
    loss, slopes, by_score, by_quality = operators.ap_loss_answer(
        totals, at, owner, own, quality.double(), *KNOTS, True
    )
    dtype = levels[0].dtype
    gradients = operators.ap_loss_gradient(bins, slopes.to(dtype), place, by_score.to(dtype))
    return [own, place, totals, loss, by_quality, *gradients]


@pytest.fixture(scope="module", params=["emulated", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    """All four by the CUDA operators of tensors on the CPU: where a GPU is it moves them there and back."""
    if loader.load("cpu").library is None:
        pytest.skip("no compiled kernels")
    if request.param == "emulated":
        emulated.load("ap_loss")
        return lambda *given: all_four(torch.ops.detsearch_emulated, *given)
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    assert loader.load("cuda").library is not None

    def on_cuda(levels: list[Tensor], *others: Tensor) -> list[Tensor]:
        found = all_four(torch.ops.detsearch, [x.cuda() for x in levels], *(x.cuda() for x in others))
        return [x.cpu() for x in found]

    return on_cuda


def assert_same(gpu: Gpu, levels: list[Tensor], *others: Tensor) -> None:
    given = [x.detach() for x in levels], *(x.detach() for x in others)
    tolerance = 1e-6 if levels[0].dtype == torch.float32 else 1e-9
    for ours, theirs in zip(gpu(*given), all_four(torch.ops.detsearch, *given), strict=True):
        scale = max(1.0, float(theirs.abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("kind", ["normal", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("positives, ignored", [(1, 0), (40, 30)])
def test_all_four_operators_are_the_cpu_s(
    gpu: Gpu, layout: str, kind: str, dtype: torch.dtype, positives: int, ignored: int
) -> None:
    _, levels = head(layout, 3, dtype=dtype, kind=kind)
    assert_same(gpu, levels, *assigned(levels, 3, positives, ignored))


def test_many_positives_do_not_fit_shared_memory(gpu: Gpu) -> None:
    _, levels = head("mixed", 4, images=12)
    # 600 x 9 thresholds of 20 bytes are more than the 64 KiB of the emulated GPU
    assert_same(gpu, levels, *assigned(levels, 4, 600, 50))


def test_infinite_scores_are_the_cpu_s(gpu: Gpu) -> None:
    _, levels = head("channels_last", 5)
    levels = [level.detach().clone() for level in levels]
    positives, quality, ignored = assigned(levels, 5, 12, 20)
    taken = {*(positives // 3).tolist()}
    rows = levels[0].view(3, -1, 3) if levels[0].is_contiguous() else levels[0].flatten(1, 3)
    for row in (r for r in range(30) if r not in taken):
        rows[0, row] = torch.tensor([math.inf, -math.inf, 1e30], dtype=rows.dtype)
    levels[0] = rows.reshape(levels[0].shape)
    assert_same(gpu, levels, positives, quality, ignored)


def test_what_cannot_be_used_makes_the_loss_nan(gpu: Gpu) -> None:
    _, levels = head("contiguous", 6)
    given = [x.detach() for x in levels]
    positives, quality, ignored = (x.detach() for x in assigned(levels, 6, 5, 3))
    broken = [x.clone() for x in given]
    broken[2][1, 0, 0, 0, 0] = math.nan
    far = [x.clone() for x in given]
    far[0][:] = 1e13
    for wrong in (
        (broken, positives, quality, ignored),
        (far, torch.arange(5), quality, ignored),
        (given, positives + 10**6, quality, ignored),
        (given, -1 - positives, quality, ignored),
        (given, positives, quality * math.nan, ignored),
        (given, positives, quality, ignored + 10**6),
        (given, positives, quality, -1 - ignored),
    ):
        own, place, _, loss, by_quality, *gradients = gpu(*wrong)
        assert loss.isnan() and by_quality.isnan().all() and all(x.isnan().all() for x in gradients)
        assert len(own) == len(place) == 5


@pytest.mark.parametrize("images, positives", [(0, 0), (2, 0)])
def test_batches_without_images_or_positives(gpu: Gpu, images: int, positives: int) -> None:
    _, levels = head("channels_last", images=images)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss, *others = gpu([x.detach() for x in levels], nothing, torch.zeros(0), nothing)[3:]
    assert loss == 0 and not any(x.any() for x in others)
