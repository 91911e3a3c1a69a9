"""parameterized_ap_loss, forward and backward, against Eq. 6's positives x predictions matrix in PyTorch.

    python benchmarks/_kernels_ap_loss.py

The matrix form is the paper's released loss: the differences of every positive to every prediction, clamped, then
two piecewise linear functions of the matrix by `bucketize` and indexing, autograd for the rest. It runs a few
positives at a time, so that the matrix fits; the loss is a sum over positives, and so is the time: where they take
minutes, a few rows are timed and multiplied. Scores are as at the end of training (`trained`: negatives 3 below the
positives, deviation 1.5), at its start (`start`: all within 0.05), or standard normal. The functions are those the
paper found for RetinaNet. Memory is what forward and backward add to the process, the gradient included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _kernels import Row, compare, peak_bytes, peak_of, show
from detsearch_kernels import loader
from detsearch_kernels.ap_loss import Curves, parameterized_ap_loss
from torch import Tensor

SEARCHED = Curves(
    [
        [(0, 0), (0.4914, 0.1499), (0.5492, 0.1664), (0.6259, 0.3051), (0.7945, 0.6195), (1, 1)],
        [(0, 0), (0.4182, 0.0277), (0.4948, 0.2187), (0.6882, 0.2624), (0.802, 0.6688), (1, 1)],
        [(0, 0), (0.1279, 0.3696), (0.3056, 0.4708), (0.5198, 0.529), (0.6983, 0.6709), (1, 1)],
        [(0, 0), (0.413, 0.0798), (0.4356, 0.3571), (0.5361, 0.7063), (0.8097, 0.9083), (1, 1)],
        [(0, 0), (0.0931, 0.0289), (0.3607, 0.5585), (0.4823, 0.7131), (0.6291, 0.8162), (1, 1)],
    ]
)
# predictions, positives, rows of the matrix that are timed, gates of the compiled and the plain operator
SIZES = [(10_000, 50, 50, 30, None), (100_000, 500, 10, 1500, 300), (4_000_000, 500, 1, 5000, 300)]
MATRIX_CELLS = 4_000_000  # at a time


def problem(predictions: int, positives: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """scores (N,) and quality (P,), to be differentiated, and the positives between them."""
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(predictions, generator=random)
    index = torch.randperm(predictions, generator=random)[:positives]
    if kind == "trained":
        scores = scores * 1.5 - 3
        scores[index] += 3
    elif kind == "start":
        scores = scores * 0.01 - 4.6
    quality = torch.rand(positives, generator=random)
    return scores.requires_grad_(), index, quality.requires_grad_()


def piecewise(x: Tensor, curve: tuple[tuple[float, float], ...]) -> Tensor:
    """f of Eq. 7 in PyTorch."""
    knots, values = torch.tensor(curve, dtype=x.dtype).T.contiguous()
    slope = values.diff() / knots.diff()
    segment = torch.bucketize(x.detach(), knots[1:-1], right=True)
    return values[segment] + slope[segment] * (x - knots[segment])


def matrix_form(scores: Tensor, index: Tensor, quality: Tensor, rows: int) -> Tensor:
    """Gradient by the scores, of the first `rows` positives' terms."""
    one, two, three, four, five = SEARCHED.points
    gradient = torch.zeros_like(scores)
    step = max(1, MATRIX_CELLS // len(scores))
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        x = (scores[None] - scores[index[part]][:, None]).clamp(-1, 1) / 2 + 0.5
        own = torch.zeros_like(x, dtype=torch.bool)
        own[torch.arange(len(x)), index[part]] = True
        weight = torch.ones_like(scores).index_put((index,), 1 - piecewise(quality, three))
        above = (piecewise(x, two) * weight).masked_fill(own, 0).sum(1)
        with torch.no_grad():
            rank = 1 + piecewise(x, four).masked_fill(own, 0).sum(1)
        terms = piecewise(quality[part], one) - above / rank * piecewise(quality[part], five)
        gradient += torch.autograd.grad(-terms.sum() / len(index), (scores, quality))[0]
    return gradient


def forward_and_backward(
    mode: loader.Mode, scores: Tensor, index: Tensor, quality: Tensor
) -> Callable[[], Tensor]:
    """The operator under test: `required` compiled, `off` in plain PyTorch."""

    def run() -> Tensor:
        loader.use(mode)
        loss = parameterized_ap_loss(scores, index, quality, SEARCHED)
        return torch.autograd.grad(loss, (scores, quality))[0]

    return run


def agree(predictions: int, positives: int) -> None:
    """Both ways give the matrix form's gradient, or the benchmark compares unlike things.

    In float64: in float32 the matrix puts differences next to a knot on its wrong side.
    """
    inputs = problem(predictions, positives, "trained")
    scores, index, quality = inputs
    expected = matrix_form(scores.double(), index, quality.double(), positives)
    for mode in ("required", "off"):
        error = (forward_and_backward(mode, *inputs)() - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, f"gradients differ by {error:.1e} of the largest"


def timed(name: str, mode: loader.Mode, size: tuple, kind: str, gate: float | None) -> Row:
    """The matrix's time is that of `rows` positives times positives / rows."""
    predictions, positives, rows = size[:3]
    inputs = problem(predictions, positives, kind)
    ours = forward_and_backward(mode, *inputs)
    sizes = f"{predictions:,} x {positives} {kind}"
    against = "matrix" if rows == positives else f"matrix ({rows} of {positives} rows timed)"
    rounds = 5 if predictions < 10**6 else 3
    row = compare(name, sizes, against, lambda: matrix_form(*inputs, rows), ours, rounds=rounds, gate=gate)
    times = positives / rows
    return replace(
        row, theirs_ms=row.theirs_ms * times, ratio=row.ratio * times, processor=row.processor * times
    )


def rows() -> Iterator[Row]:
    """Lines of the table."""
    agree(10_000, 50)
    for *size, gate, plain_gate in SIZES:
        for kind in ("trained", "start", "normal"):
            yield timed("parameterized_ap_loss", "required", tuple(size), kind, gate)
        yield timed("the same, plain PyTorch", "off", tuple(size), "trained", plain_gate)
    loader.use("auto")


def bytes_a_score() -> Iterator[str]:
    """Lines on memory, each measured in a process of its own that gives freed blocks back at once."""
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for predictions, positives, *_ in SIZES[1:]:
        for mode in ("required", "off"):
            used = peak_bytes(Path(__file__), "--peak", mode, str(predictions), str(positives))
            name = "compiled" if mode == "required" else "plain PyTorch"
            yield f"peak extra memory, {predictions:,} x {positives}, {name}: {used / predictions:.1f} B a score, gate 8"


def main(arguments: list[str]) -> None:
    """Print the table, or the bytes of one peak."""
    torch.set_num_threads(1)
    if arguments[:1] == ["--peak"]:
        mode, predictions, positives = arguments[1], int(arguments[2]), int(arguments[3])
        call = forward_and_backward(mode, *problem(predictions, positives, "trained"))  # type: ignore[arg-type]
        print(peak_of(call))
        return
    show(list(rows()))
    print("\n".join(bytes_a_score()))


if __name__ == "__main__":
    main(sys.argv[1:])
