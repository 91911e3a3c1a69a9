"""The parameterized AP loss over a head's levels, without ignored priors, and over processes, against its matrix form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detsearch_kernels import loader
from detsearch_kernels._ap_loss_reference import Curve
from detsearch_kernels.ap_loss import Curves, parameterized_ap_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_ap_loss import SEARCHED, SQUARE, matrix_form

SIZES = ((10, 9), (3, 4), (1, 1))
SHAPES, CLASSES = 2, 3
LAYOUTS = ("contiguous", "channels_last", "mixed", "one tensor", "strided")


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test with the compiled operators and with plain PyTorch."""
    loader.use("required" if request.param == "compiled" else "off")
    if request.param == "compiled" and loader.load("cpu").library is None:
        pytest.skip("no compiled kernels")
    yield request.param
    loader.use("auto")


def head(
    layout: str, seed: int = 0, images: int = 3, dtype: torch.dtype = torch.float64, kind: str = "normal"
) -> tuple[list[Tensor], list[Tensor]]:
    """What a head wrote, the leaves, and its levels in the order of priors; 1,854 scores of 3 images."""
    random = torch.Generator().manual_seed(seed)
    leaves, levels = [], []
    for number, (height, width) in enumerate(SIZES):
        values = torch.randn(
            images, SHAPES * CLASSES, height, width, generator=random, dtype=torch.float64
        ).to(dtype)
        values = (values * 8).round() / 8 if kind == "tied" else values
        if layout in ("channels_last", "mixed") and (layout, number) != ("mixed", 0):
            values = values.contiguous(memory_format=torch.channels_last)
        if layout == "strided":  # every second element of a larger tensor: has to be copied
            values = torch.stack([values, values], -1)[..., 0]
            assert not values.is_contiguous()
        leaves.append(values.requires_grad_())
        levels.append(values.permute(0, 2, 3, 1).unflatten(-1, (SHAPES, CLASSES)))
    if layout == "one tensor":
        levels = [torch.cat([level.flatten(1, 3) for level in levels], 1)]
    return leaves, levels


def assigned(levels: list[Tensor], seed: int, positives: int, ignored: int) -> tuple[Tensor, Tensor, Tensor]:
    """positives (P,), their quality (P,) to be differentiated, and ignored rows (I,)."""
    random = torch.Generator().manual_seed(seed + 100)
    rows = sum(level[..., 0].numel() for level in levels)
    order = torch.randperm(rows, generator=random)
    label = torch.randint(0, CLASSES, (positives,), generator=random)
    quality = torch.rand(positives, generator=random, dtype=torch.float64).to(levels[0].dtype)
    return order[:positives] * CLASSES + label, quality.requires_grad_(), order[positives:][:ignored]


def joined(levels: list[Tensor]) -> Tensor:
    """(B x A x C,), in the order that the positives index."""
    return torch.cat([level.flatten(1, -2) for level in levels], 1).flatten()


def expected(
    levels: list[Tensor], positives: Tensor, quality: Tensor, ignored: Tensor, curves: Curves, through: bool
) -> Tensor:
    """Eq. 6 as a matrix over the scores that are left."""
    scores = joined(levels)
    kept = torch.ones(len(scores) // CLASSES, dtype=torch.bool)
    kept[ignored] = False
    kept = kept.repeat_interleave(CLASSES)
    number = kept.cumsum(0) - 1
    return matrix_form(scores[kept], number[positives], quality, curves, through)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["normal", "tied"])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("ignored", [0, 60])
def test_levels_where_they_lie_give_the_matrix_form(
    way: str, layout: str, kind: str, through: bool, ignored: int
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        for seed, positives in enumerate((1, 40)):
            leaves, levels = head(layout, seed, dtype=dtype, kind=kind)
            given = (levels, *assigned(levels, seed, positives, ignored))
            # decimal knots of a difference are not met exactly, so ties are tried with binary ones
            curves = SQUARE if kind == "tied" else SEARCHED
            theirs = expected(*given, curves, through)
            ours = parameterized_ap_loss(*given[:3], curves, through, ignored=given[3])
            assert ours.item() == pytest.approx(theirs.item(), abs=tolerance)
            wanted = torch.autograd.grad(theirs, [*leaves, given[2]])
            found = torch.autograd.grad(ours, [*leaves, given[2]])
            for mine, other, leaf in zip(found, wanted, [*leaves, given[2]], strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=tolerance * max(1e-3, other.abs().max()))
                # the stride of a dimension of one element may be anything
                lies = [
                    (a, b) for a, b, n in zip(mine.stride(), leaf.stride(), leaf.shape, strict=True) if n > 1
                ]
                assert layout in ("strided", "one tensor") or all(a == b for a, b in lies)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ignored_scores_have_no_gradient_whatever_they_are(way: str, layout: str) -> None:
    leaves, levels = head(layout)
    positives, quality, ignored = assigned(levels, 0, 20, 50)
    found = []
    for value in (0.0, 1.5, -3.0, 1e6, math.inf, -math.inf):
        changed = [x.detach().clone() for x in levels]
        at = torch.arange(len(joined(changed))).view(len(changed[0]), -1, CLASSES)
        hit = torch.isin(at // CLASSES, ignored)
        for level, mine in zip(changed, hit.split([x[0, ..., 0].numel() for x in changed], 1), strict=True):
            level.masked_fill_(mine.view(level.shape), value)
            level.requires_grad_()
        loss = parameterized_ap_loss(changed, positives, quality, SEARCHED, ignored=ignored)
        gradient = joined(list(torch.autograd.grad(loss, changed)))
        assert not gradient[hit.flatten()].any() and gradient.any()
        found.append(torch.cat([loss.detach()[None], gradient]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-13)
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_without_positives_has_the_loss_0_and_no_slope(way: str, layout: str) -> None:
    leaves, levels = head(layout)
    loss = parameterized_ap_loss(levels, *assigned(levels, 0, 0, 5)[:2], SEARCHED, ignored=torch.tensor([3]))
    assert loss.item() == 0
    assert not any(x.any() for x in torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("images, classes, positives", [(0, 3, 0), (2, 0, 0)])
def test_levels_of_nothing_have_the_loss_0(way: str, images: int, classes: int, positives: int) -> None:
    levels = [torch.zeros(images, 4, 4, 1, classes, requires_grad=True)]
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = parameterized_ap_loss(levels, nothing, torch.zeros(0), SEARCHED)
    assert loss.item() == 0 and torch.autograd.grad(loss, levels)[0].shape == levels[0].shape


def test_a_nan_in_any_level_is_named(way: str) -> None:
    _, levels = head("contiguous")
    broken = [x.detach().clone() for x in levels]
    broken[1][2, 0, 1, 1, 2] = math.nan
    with pytest.raises(ValueError, match="no score may be NaN, got 1 of"):
        parameterized_ap_loss(broken, *assigned(levels, 0, 4, 0)[:2], SEARCHED)


def test_levels_are_split_among_threads_without_loss() -> None:
    random = torch.Generator().manual_seed(0)
    levels = [
        torch.randn(2, 60, 70, 3, 20, generator=random, dtype=torch.float64),
        torch.randn(2, 9, 11, 3, 20, generator=random, dtype=torch.float64),
    ]
    levels = [x.requires_grad_() for x in levels]
    positives = torch.randperm(2 * 4299 * 60, generator=random)[:50]
    quality = torch.rand(50, generator=random, dtype=torch.float64)
    threads, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        loss = parameterized_ap_loss(levels, positives, quality, SEARCHED)
        found.append([loss.detach(), *torch.autograd.grad(loss, levels)])
    torch.set_num_threads(threads)
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@st.composite
def curves(draw: st.DrawFn) -> Curves:
    """Five functions with up to 7 points, x increasing and y not decreasing."""
    made = []
    for _ in range(5):
        number = draw(st.integers(0, 5))
        inner = st.lists(
            st.floats(1e-3, 1 - 1e-3), min_size=number, max_size=number, unique_by=lambda x: round(x, 6)
        )
        x = sorted(draw(inner))
        y = sorted(draw(st.lists(st.floats(0, 1), min_size=number, max_size=number)))
        made.append([(0.0, 0.0), *zip(x, y, strict=True), (1.0, 1.0)])
    return Curves(made)


@given(functions=curves(), values=st.lists(st.floats(-2, 3), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_curve_lies_in_0_to_1_and_never_falls(functions: Curves, values: list[float]) -> None:
    at = torch.tensor(sorted(values), dtype=torch.float64)
    for points in functions.points:
        found = Curve(*torch.tensor(points, dtype=torch.float64).T.contiguous()).value(at)
        assert found.min() >= 0 and found.max() <= 1
        assert found.diff().min() >= -1e-15


@given(
    functions=curves(),
    seed=st.integers(0, 10**6),
    predictions=st.integers(1, 60),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    equal=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_loss_lies_between_minus_1_and_1_where_the_rank_counts_what_is_above(
    functions: Curves, seed: int, predictions: int, data: st.DataObject, dtype: torch.dtype, equal: bool
) -> None:
    # f(.; 4) below f(.; 2) counts fewer predictions than are wrong: then their part may be more than 1
    one, two, three, four, five = functions.points
    functions = Curves([one, two, three, two if equal else four, five])
    random = torch.Generator().manual_seed(seed)
    positives = data.draw(st.integers(1, predictions))
    scale = data.draw(st.sampled_from([0.0, 0.01, 1.0, 30.0]))
    scores = (torch.randn(predictions, generator=random) * scale).to(dtype)
    quality = (torch.rand(positives, generator=random) * 1.4 - 0.2).to(dtype)
    index = torch.randperm(predictions, generator=random)[:positives]
    loader.use(data.draw(st.sampled_from(["auto", "off"])))
    loss = parameterized_ap_loss(scores, index, quality, functions)
    loader.use("auto")
    assert -1 - 1e-6 <= loss.item() <= (1 if equal else predictions) + 1e-6


# ---------------------------------------------------------------------- several processes

# which images each of two processes has of the 5 of a batch, and how many positives these have
SPLITS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "uneven": ((2, 3), (25, 4)),
    "one without a positive": ((1, 4), (0, 30)),
    "the other without a positive": ((3, 2), (7, 0)),
    "none with a positive": ((2, 3), (0, 0)),
}


def shares(name: str, dtype: torch.dtype) -> list[tuple[list[Tensor], Tensor, Tensor, Tensor]]:
    """levels, positives, quality and ignored rows of each process."""
    images, positives = SPLITS[name]
    _, whole = head("mixed", 7, sum(images), dtype)
    parts = zip(*(level.detach().split(list(images)) for level in whole), strict=True)
    result = []
    for rank, levels in enumerate(parts):
        mine = [level.requires_grad_() for level in levels]
        result.append((mine, *assigned(mine, rank, positives[rank], 11)))
    return result


def process(rank: int, folder: str) -> None:
    """What each of two processes runs: value and gradients of its share, by name, dtype and way, in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[Any, list[Tensor]] = {}
    for mode in ("auto", "off"):
        loader.use(mode)  # type: ignore[arg-type]
        for name in SPLITS:
            for dtype in (torch.float32, torch.float64):
                levels, positives, quality, ignored = shares(name, dtype)[rank]
                loss = parameterized_ap_loss(
                    levels, positives, quality, SEARCHED, True, ignored=ignored, across=True
                )
                gradients = torch.autograd.grad(loss, [*levels, quality])
                found[mode, name, str(dtype)] = [loss.detach(), *gradients]
    loader.use("auto")
    found["alone"] = [parameterized_ap_loss(*shares("uneven", torch.float64)[rank][:3], SEARCHED).detach()]
    levels, positives, quality, _ = shares("uneven", torch.float64)[rank]
    if rank == 1:
        levels[0].data[0, 0, 0, 0, 0] = math.nan
    try:
        loss = parameterized_ap_loss(levels, positives, quality, SEARCHED, across=True)
    except ValueError:
        loss = torch.tensor(-math.inf)
    found["nan"] = [loss.detach()]
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, list[Tensor]]]:
    """What both processes found."""
    folder: Path = tmp_path_factory.mktemp("two")
    loader.ready(torch.device("cpu"))  # compiled once, not in each
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-9)])
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_two_processes_rank_as_one(
    two: list[dict[Any, list[Tensor]]], mode: str, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    parts = shares(name, dtype)
    whole = [
        torch.cat(levels).detach().requires_grad_() for levels in zip(*(x[0] for x in parts), strict=True)
    ]
    row, rows, positives, ignored = 0, [], [], []
    for levels, index, _, left_out in parts:
        rows.append(sum(level[..., 0].numel() for level in levels))
        positives.append(index + row * CLASSES)
        ignored.append(left_out + row)
        row += rows[-1]
    quality = torch.cat([x[2] for x in parts]).detach().requires_grad_()
    one = parameterized_ap_loss(
        whole, torch.cat(positives), quality, SEARCHED, True, ignored=torch.cat(ignored)
    )
    wanted = torch.autograd.grad(one, [*whole, quality])
    found = [x[mode, name, str(dtype)] for x in two]
    assert found[0][0] == found[1][0]
    assert found[0][0].item() == pytest.approx(one.item(), abs=tolerance)
    for ours, theirs in zip(zip(*(x[1:] for x in found), strict=True), wanted, strict=True):
        scale = max(1e-3, float(theirs.abs().max())) if theirs.numel() else 1.0
        torch.testing.assert_close(torch.cat(ours), theirs, rtol=0, atol=tolerance * scale)


def test_a_process_that_does_not_ask_for_it_ranks_alone(two: list[dict[Any, list[Tensor]]]) -> None:
    for rank, given_ in enumerate(shares("uneven", torch.float64)):
        assert two[rank]["alone"][0] == parameterized_ap_loss(*given_[:3], SEARCHED)


def test_a_nan_in_one_process_is_the_loss_of_both(two: list[dict[Any, list[Tensor]]]) -> None:
    assert two[0]["nan"][0].isnan() and two[1]["nan"][0] == -math.inf  # raised there
