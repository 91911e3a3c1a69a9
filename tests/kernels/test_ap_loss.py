"""The parameterized AP loss against Eq. 6 written out, and against autograd on its matrix form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from detsearch_kernels import loader
from detsearch_kernels.ap_loss import Curves, parameterized_ap_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

IDENTITY = Curves.identity()
SQUARE = Curves([[(x / 4, (x / 4) ** 2) for x in range(5)]] * 5)
# searched by the paper for RetinaNet; different numbers of points
SEARCHED = Curves(
    [
        [(0, 0), (0.4914, 0.1499), (0.5492, 0.1664), (0.6259, 0.3051), (0.7945, 0.6195), (1, 1)],
        [(0, 0), (0.4182, 0.0277), (0.4948, 0.2187), (0.6882, 0.2624), (0.802, 0.6688), (1, 1)],
        [(0, 0), (0.1279, 0.3696), (0.6983, 0.6709), (1, 1)],
        [(0, 0), (0.413, 0.0798), (0.4356, 0.3571), (0.5361, 0.7063), (0.8097, 0.9083), (1, 1)],
        [(0, 0), (1, 1)],
    ]
)
# AP Loss (Chen et al. 2019) with its window of 0.5, and a function that jumps almost
STEEP = Curves(
    [
        [(0, 0), (1, 1)],
        [(0, 0), (0.25, 0), (0.75, 1), (1, 1)],
        [(0, 0), (1e-6, 1), (1, 1)],
        [(0, 0), (0.25, 0), (0.75, 1), (1, 1)],
        [(0, 0), (0.5, 0), (0.501, 1), (1, 1)],
    ]
)


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the compiled operator and with plain PyTorch."""
    loader.use("auto" if request.param == "compiled" else "off")
    if request.param == "compiled" and not loader.ready(torch.device("cpu")):
        pytest.skip(f"no compiled kernels: {loader.info()[0].reason}")
    yield request.param
    loader.use("auto")


def f(curve: tuple, x: float) -> float:
    """Eq. 7, point by point."""
    x = min(max(x, 0.0), 1.0)
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x < x1:
            return y0 + (y1 - y0) / (x1 - x0) * (x - x0)
    return 1.0


def written_out(scores: list, positives: list, quality: list, curves: Curves) -> float:
    """Eq. 6 in loops."""
    one, two, three, four, five = curves.points
    known = dict(zip(positives, quality, strict=True))
    total = 0.0
    for i, u in known.items():
        above, rank = 0.0, 1.0
        for j, s in enumerate(scores):
            if j != i:
                x = (s - scores[i] + 1) / 2
                above += f(two, x) * (1 - f(three, known.get(j, 0.0)))
                rank += f(four, x)
        total += f(one, u) - above / rank * f(five, u)
    return -total / len(positives)


def piecewise(x: Tensor, points: tuple) -> Tensor:
    """f with the gradient of the segment right of a knot, and none from the last knot on."""
    knots = torch.tensor(points, dtype=x.dtype)
    passed = (x.detach()[..., None] >= knots[:, 0]).sum(-1)
    slope = torch.zeros(len(knots) + 1, dtype=x.dtype)
    slope[1:-1] = (knots[1:, 1] - knots[:-1, 1]) / (knots[1:, 0] - knots[:-1, 0])
    left = (passed - 1).clamp(min=0)
    return knots[left, 1] + slope[passed] * (x - knots[left, 0])


def matrix_form(scores: Tensor, positives: Tensor, quality: Tensor, curves: Curves, through: bool) -> Tensor:
    """Eq. 6 with the positives x predictions matrix, float64."""
    one, two, three, four, five = curves.points
    scores, quality = scores.double(), quality.double()
    number = len(positives)
    own = torch.zeros(number, len(scores), dtype=torch.bool)
    own[torch.arange(number), positives] = True
    x = (scores[None, :] - scores[positives][:, None] + 1) / 2
    weight = torch.ones_like(scores).index_put((positives,), 1 - piecewise(quality, three))
    above = (piecewise(x, two) * weight).masked_fill(own, 0).sum(1)
    rank = 1 + piecewise(x, four).masked_fill(own, 0).sum(1)
    ratio = above / (rank if through else rank.detach())
    return -(piecewise(quality, one) - ratio * piecewise(quality, five)).sum() / number


def problem(
    predictions: int, positives: int, seed: int, dtype: torch.dtype, kind: str = "normal"
) -> tuple[Tensor, ...]:
    """scores, positives and quality, the first and last to be differentiated."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(predictions, generator=rng, dtype=dtype)
    index = torch.randperm(predictions, generator=rng)[:positives]
    quality = torch.rand(positives, generator=rng, dtype=dtype)
    if kind == "grid":  # many ties, and many differences exactly on a knot of SQUARE
        scores, quality = (scores * 8).round() / 8, (quality * 4).round() / 4
    elif kind == "equal":
        scores.fill_(-4.6)
    elif kind == "start":  # as a detector begins: all scores close to one another
        scores.mul_(0.01).sub_(4.6)
    elif kind == "far":  # one positive spreads the thresholds
        scores[index[0]] = 1000
    return scores.requires_grad_(), index, quality.requires_grad_()


def solve(loss: object, scores: Tensor, index: Tensor, quality: Tensor, *more: object) -> tuple[Tensor, ...]:
    """Value and gradients, float64."""
    value = loss(scores, index, quality, *more)  # type: ignore[operator]
    by_scores, by_quality = torch.autograd.grad(value, (scores, quality))
    return value.detach().double(), by_scores.double(), by_quality.double()


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        scale = max(float(theirs.abs().max()), 1e-3) if theirs.numel() else 1.0
        assert float((mine - theirs).abs().max()) <= tolerance * scale if theirs.numel() else True


@pytest.mark.parametrize(
    "curves", [IDENTITY, SQUARE, SEARCHED, STEEP], ids=["identity", "square", "searched", "steep"]
)
def test_the_value_is_equation_6(way: str, curves: Curves) -> None:
    for seed, (predictions, positives) in enumerate([(1, 1), (2, 2), (9, 1), (40, 11), (60, 60)]):
        scores, index, quality = problem(predictions, positives, seed, torch.float64)
        expected = written_out(scores.tolist(), index.tolist(), quality.tolist(), curves)
        loss = parameterized_ap_loss(scores.detach(), index, quality.detach(), curves)
        assert float(loss) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal", "start", "far"])
@pytest.mark.parametrize("through", [False, True])
def test_gradients_are_autograds_on_the_matrix(
    way: str, dtype: torch.dtype, tolerance: float, kind: str, through: bool
) -> None:
    for seed, (predictions, positives) in enumerate([(3, 1), (300, 20), (2000, 130)]):
        inputs = problem(predictions, positives, seed, dtype, kind)
        # decimal knots of a difference are not met exactly, so ties are tried with binary ones
        for curves in (SQUARE, IDENTITY) if kind == "grid" else (SEARCHED, SQUARE):
            expected = solve(matrix_form, *inputs, curves, through)
            assert_close(solve(parameterized_ap_loss, *inputs, curves, through), expected, tolerance)


@pytest.mark.parametrize(
    "difference, slope",
    [(-1.25, 0), (-1.0, 0.25), (-0.75, 0.25), (-0.5, 0.75), (0.25, 1.25), (0.5, 1.75), (1.0, 0), (1.5, 0)],
)
def test_a_difference_on_a_knot_has_the_slope_of_the_segment_right_of_it(
    way: str, difference: float, slope: float
) -> None:
    # f(.; 2) has slopes 1/4, 3/4, 5/4, 7/4 between differences -1, -1/2, 0, 1/2 and 1
    linear = [(0, 0), (1, 1)]
    curves = Curves([linear, SQUARE.points[1], linear, linear, linear])
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor([0.5 + difference, 0.5], dtype=dtype, requires_grad=True)
        quality = torch.ones(1, dtype=dtype)
        loss = parameterized_ap_loss(scores, torch.tensor([1]), quality, curves)
        rank = 1 + min(max((difference + 1) / 2, 0), 1)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert gradient.tolist() == pytest.approx([slope / 2 / rank, -slope / 2 / rank])


def test_a_score_next_to_a_threshold_falls_on_its_own_side(way: str) -> None:
    positive = torch.tensor(0.1)  # 0.1 + 1 is no float32
    above = positive.double() + 1
    nearest = above.float()
    near = [nearest.nextafter(torch.tensor(x)) for x in (-9.0, 9.0)]
    for score in (near[0], nearest, near[1]):
        scores = torch.stack([score, positive]).requires_grad_()
        loss = parameterized_ap_loss(scores, torch.tensor([1]), torch.ones(1), IDENTITY)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert bool(gradient[0] == 0) == bool(score.double() >= above)


def test_quality_on_a_knot_has_the_slope_of_the_segment_right_of_it(way: str) -> None:
    quality = torch.tensor([0.0, 0.25, 1.0, -0.1, 1.1], dtype=torch.float64, requires_grad=True)
    scores = torch.arange(5, dtype=torch.float64) * 10
    loss = parameterized_ap_loss(
        scores, torch.arange(5), quality, Curves([SQUARE.points[0]] + [[(0, 0), (1, 1)]] * 4)
    )
    (gradient,) = torch.autograd.grad(loss, quality)
    assert gradient.tolist()[2:] == [0, 0, 0]
    # the best-ranked quality of 0 is above all others: only f(u; 1) moves the highest row
    top = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    loss = parameterized_ap_loss(scores[:1], torch.tensor([0]), top, SQUARE)
    assert torch.autograd.grad(loss, top)[0].tolist() == pytest.approx([-0.75])


@given(data=st.data(), predictions=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_permuting_predictions_permutes_gradients(data: st.DataObject, predictions: int, seed: int) -> None:
    loader.use(data.draw(st.sampled_from(["auto", "off"])))
    kind = data.draw(st.sampled_from(["normal", "grid"]))
    positives = data.draw(st.integers(1, predictions))
    scores, index, quality = problem(predictions, positives, seed, torch.float64, kind)
    order = torch.tensor(data.draw(st.permutations(range(predictions))))
    rows = torch.tensor(data.draw(st.permutations(range(positives))))
    place = order.argsort()
    value, by_scores, by_quality = solve(parameterized_ap_loss, scores, index, quality, SEARCHED, True)
    moved = (
        scores.detach()[order].requires_grad_(),
        place[index][rows],
        quality.detach()[rows].requires_grad_(),
    )
    found = solve(parameterized_ap_loss, *moved, SEARCHED, True)
    loader.use("auto")
    assert_close(found, (value, by_scores[order], by_quality[rows]), 1e-12)


def test_plain_and_compiled_agree_to_the_last_digits() -> None:
    if not loader.ready(torch.device("cpu")):
        pytest.skip("no compiled kernels")
    for kind in ("normal", "grid", "start", "far"):
        inputs = problem(50_000, 300, 3, torch.float32, kind)
        compiled = solve(parameterized_ap_loss, *inputs, SEARCHED, True)
        loader.use("off")
        plain = solve(parameterized_ap_loss, *inputs, SEARCHED, True)
        loader.use("auto")
        assert_close(compiled, plain, 1e-6)


def test_a_million_predictions_agree_with_the_matrix_in_float64(way: str) -> None:
    scores, index, quality = problem(1_000_000, 3, 0, torch.float32)
    expected = solve(matrix_form, scores, index, quality, SEARCHED, False)
    assert_close(solve(parameterized_ap_loss, scores, index, quality, SEARCHED, False), expected, 1e-6)


def test_so_many_thresholds_that_a_bin_no_longer_fits_two_bytes() -> None:
    if not loader.ready(torch.device("cpu")):
        pytest.skip("no compiled kernels")
    inputs = problem(40_000, 7000, 0, torch.float64)
    assert 7000 * SEARCHED.steps > 65_536
    compiled = solve(parameterized_ap_loss, *inputs, SEARCHED, True)
    loader.use("off")
    plain = solve(parameterized_ap_loss, *inputs, SEARCHED, True)
    loader.use("auto")
    assert_close(compiled, plain, 1e-11)
    # 20 of the rows against the matrix, which says what the loss adds up from
    few = inputs[1][:20]
    scores, quality = inputs[0], inputs[2][:20].detach().requires_grad_()
    assert_close(
        solve(parameterized_ap_loss, scores, few, quality, SEARCHED, True),
        solve(matrix_form, scores, few, quality, SEARCHED, True),
        1e-9,
    )


def test_several_threads_give_the_same_loss() -> None:
    inputs = problem(300_000, 100, 1, torch.float64)
    alone = solve(parameterized_ap_loss, *inputs, SEARCHED)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    together = solve(parameterized_ap_loss, *inputs, SEARCHED)
    torch.set_num_threads(threads)
    assert_close(together, alone, 1e-11)


def test_gradcheck(way: str) -> None:
    scores, index, quality = problem(30, 6, 5, torch.float64)
    assert torch.autograd.gradcheck(
        lambda s, u: parameterized_ap_loss(s, index, u, SEARCHED, True),
        (scores, quality),
        eps=1e-7,
        atol=1e-6,
    )


@pytest.mark.parametrize("predictions, positives", [(50, 4), (5, 0)])
def test_opcheck(predictions: int, positives: int) -> None:
    if not loader.ready(torch.device("cpu")):
        pytest.skip("no compiled kernels")
    scores, index, quality = (x.detach() for x in problem(predictions, positives, 0, torch.float32))
    levels = [scores[:2, None][None], scores[2:, None][None]]
    ops, knots = torch.ops.detsearch, (SEARCHED.knots, SEARCHED.steps)
    own, place = ops.ap_loss_own(levels, index)
    ignored = torch.tensor([i for i in (1, 3) if i not in index])
    bins, *rest = ops.ap_loss_bins(levels, own, ignored, *knots)
    at, owner, totals = rest
    answer = totals, at, owner, own, quality.double(), *knots, True
    _, slopes, by_score, _ = ops.ap_loss_answer(*answer)
    torch.library.opcheck(ops.ap_loss_own.default, (levels, index))
    torch.library.opcheck(ops.ap_loss_bins.default, (levels, own, ignored, *knots))
    torch.library.opcheck(ops.ap_loss_answer.default, answer)
    torch.library.opcheck(ops.ap_loss_gradient.default, (bins, slopes.float(), place, by_score.float()))


@pytest.mark.parametrize("predictions", [0, 7])
def test_without_positives_the_loss_is_0_and_so_are_its_gradients(way: str, predictions: int) -> None:
    inputs = problem(predictions, 0, 0, torch.float32)
    value, by_scores, by_quality = solve(parameterized_ap_loss, *inputs, SEARCHED)
    assert value == 0
    assert by_scores.tolist() == [0] * predictions
    assert by_quality.shape == (0,)


def test_infinite_scores_of_negatives_count_or_do_not(way: str) -> None:
    scores = torch.tensor([0.0, math.inf, -math.inf], requires_grad=True)
    quality = torch.ones(1, requires_grad=True)
    value, by_scores, _ = solve(parameterized_ap_loss, scores, torch.tensor([0]), quality, IDENTITY)
    assert value == pytest.approx(-(1 - 1 / 2))
    assert by_scores.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(way: str, dtype: torch.dtype) -> None:
    inputs = problem(500, 20, 0, dtype)
    found = solve(parameterized_ap_loss, *inputs, SEARCHED)
    wide = [
        inputs[0].detach().float().requires_grad_(),
        inputs[1],
        inputs[2].detach().float().requires_grad_(),
    ]
    assert_close(found, solve(parameterized_ap_loss, *wide, SEARCHED), 1e-2)
    assert parameterized_ap_loss(*inputs, SEARCHED).dtype == torch.float32


def test_tensors_need_not_be_contiguous(way: str) -> None:
    scores, index, quality = problem(400, 20, 0, torch.float32)
    expected = solve(parameterized_ap_loss, scores, index, quality, SEARCHED)
    spread = [
        torch.stack([x.detach(), x.detach()], 1)[:, 0].requires_grad_(x.requires_grad)
        for x in (scores, index, quality)
    ]
    assert not spread[0].is_contiguous()
    assert_close(solve(parameterized_ap_loss, *spread, SEARCHED), expected, 0)


def test_a_loss_scaled_by_the_caller_scales_its_gradients(way: str) -> None:
    scores, index, quality = problem(100, 5, 0, torch.float64)
    once = solve(parameterized_ap_loss, scores, index, quality, SEARCHED)
    thrice = solve(lambda *inputs: 3 * parameterized_ap_loss(*inputs), scores, index, quality, SEARCHED)
    assert_close(thrice, tuple(3 * x for x in once), 1e-14)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"scores": torch.zeros(4, 2)}, ValueError, r"scores are \(N,\).*\(4, 2\)"),
        ({"scores": torch.zeros(4, dtype=torch.int64)}, TypeError, "floating-point dtype, got torch.int64"),
        ({"quality": torch.ones(1, dtype=torch.int64)}, TypeError, "floating point, got torch.int64"),
        ({"positives": torch.tensor([1], dtype=torch.int32)}, TypeError, "int64 .* got torch.int32"),
        ({"quality": torch.zeros(2)}, ValueError, r"got \(1,\), \(2,\) and \(0,\)"),
        (
            {"scores": torch.tensor([0, 1, math.nan, 1])},
            ValueError,
            "no score may be NaN, got 1 of 4, .* at 2",
        ),
        ({"quality": torch.tensor([math.nan])}, ValueError, "no quality may be NaN"),
        ({"positives": torch.tensor([4])}, ValueError, "index 4 scores, got 4"),
        ({"positives": torch.tensor([-1])}, ValueError, "index 4 scores, got -1"),
        (
            {"positives": torch.tensor([1, 1]), "quality": torch.ones(2)},
            ValueError,
            "distinct, got 1 2 times",
        ),
        ({"scores": torch.tensor([0, math.inf, 0, 0])}, ValueError, "within 1e\\+12 of 0, got inf"),
        ({"scores": torch.empty(4, device="meta")}, ValueError, "one device, got meta"),
        ({"scores": torch.zeros(0)}, ValueError, "index 0 scores, got 1"),
        ({"scores": []}, ValueError, "at least one level"),
        ({"ignored": torch.tensor([2], dtype=torch.int32)}, TypeError, "ignored are int64"),
        ({"ignored": torch.tensor([4])}, ValueError, "ignored index 4 rows, got 4"),
        ({"ignored": torch.tensor([0, 1])}, ValueError, "a positive is not ignored, got row 1"),
    ],
)
def test_bad_input_is_named(way: str, change: dict, error: type, words: str) -> None:
    inputs = {"scores": torch.zeros(4), "positives": torch.tensor([1]), "quality": torch.ones(1)} | change
    with pytest.raises(error, match=words):
        parameterized_ap_loss(**inputs, curves=IDENTITY)


@pytest.mark.parametrize(
    "second, words",
    [
        ([(0, 0), (0.5, 0.7)], r"must lead from \(0, 0\) to \(1, 1\), got \(0.0, 0.0\) to \(0.5, 0.7\)"),
        ([(0, 0), (0.5, 0.7), (0.5, 0.8), (1, 1)], r"function 2 .* got \(0.5, 0.7\) before \(0.5, 0.8\)"),
        ([(0, 0), (0.5, 0.7), (0.6, 0.6), (1, 1)], r"function 2 .* no decreasing y"),
        ([(0, 0), (math.nan, 0.5), (1, 1)], "increasing x"),
        ([(0, 0)], "2 to 33 points"),
        ([(k / 40, k / 40) for k in range(41)], "2 to 33 points"),
    ],
)
def test_functions_that_break_the_papers_constraints_are_named(second: list, words: str) -> None:
    linear = [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match=words):
        Curves([linear, second, linear, linear, linear])


def test_there_are_five_functions() -> None:
    with pytest.raises(ValueError, match="5 functions, got 4"):
        Curves([[(0, 0), (1, 1)]] * 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
# not closer in float64: a sum over equal scores, in no fixed order on a GPU, loses digits when the threshold is taken off
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-9)])
@pytest.mark.parametrize("kind", ["normal", "grid", "equal", "start", "far"])
def test_the_gpu_agrees_with_the_cpu(dtype: torch.dtype, tolerance: float, kind: str) -> None:
    for predictions, positives in [(7, 0), (1, 1), (1000, 37), (300_000, 500), (100_000, 3000)]:
        scores, index, quality = problem(predictions, max(positives, 1), 2, dtype, kind)
        index, quality = index[:positives], quality.detach()[:positives].requires_grad_()
        expected = solve(parameterized_ap_loss, scores, index, quality, SEARCHED, True)
        there = [x.detach().cuda().requires_grad_(x.requires_grad) for x in (scores, index, quality)]
        for mode in ("required", "off"):
            loader.use(mode)
            found = tuple(x.cpu() for x in solve(parameterized_ap_loss, *there, SEARCHED, True))
            assert_close(found, expected, tolerance)
    loader.use("auto")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_bad_values_make_the_loss_nan() -> None:
    quality = torch.ones(1, device="cuda")
    for scores, index in [([0.0, math.nan], 0), ([0.0, math.inf], 1), ([0.0, 1.0], 2), ([0.0, 1.0], -1)]:
        inputs = torch.tensor(scores, device="cuda"), torch.tensor([index], device="cuda"), quality
        assert parameterized_ap_loss(*inputs, IDENTITY).isnan()
