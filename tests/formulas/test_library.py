"""The losses of the library equal implementations that know nothing of formulas, to 1e-6 in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detsearch_cli.formulas.graph import evaluate
from detsearch_cli.formulas.grids import areas, grid
from detsearch_cli.formulas.language import LANGUAGES, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.library import names, resolve


def fli(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    p = x.sigmoid()
    return w * torch.where(y > 0.5, -(1 - p) * F.logsigmoid(x), -p * F.logsigmoid(-x))


def cse_b(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    gd = (2 / math.pi * (2 * torch.atan((math.pi * x / 8).tanh())) + 1) / 2
    erf = (torch.erf(math.sqrt(math.pi) / 4 * torch.sigmoid(1 - y)) + 1) / 2
    q = w * y
    return -(q * (1 + erf) * F.logsigmoid(x) + (gd - q) * (x.sigmoid() - q) * F.logsigmoid(-x))


ONE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "bce": lambda x, y, w: F.binary_cross_entropy_with_logits(x, y, reduction="none"),
    "focal": lambda x, y, w: sigmoid_focal_loss(x, y, alpha=-1, gamma=2, reduction="none"),
    "fli": fli,
    "cse_b": cse_b,
}


def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y.argmax(-1), reduction="none")


def own(w: Tensor, y: Tensor) -> Tensor:
    return (w * y).sum(-1)


TWO: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": lambda x, y, w: cross_entropy(x, y),
    "cei": lambda x, y, w: own(w, y) * cross_entropy(x, y),
    "cse_a": lambda x, y, w: (1 + own(w, y).sin()) * cross_entropy(x, y),
}


@pytest.mark.parametrize("language", (ONE_STAGE, TWO_STAGE), ids=lambda language: language.name)
def test_classification_equals_independent_losses(language: Language) -> None:
    expected = TWO if language.columns else ONE
    assert set(expected) == set(names(language))
    places = grid(language)
    for name, loss in expected.items():
        x, y, w = (torch.tensor(places.inputs[key]) for key in "xyw")
        x.requires_grad_()
        value = loss(x, y, w)
        slope = torch.autograd.grad(value.sum(), x)[0] * torch.tensor(places.directions["x"])
        slope = slope.sum(-1) if language.columns else slope
        values, slopes = evaluate([resolve(name, language)], language, places.inputs, places.directions)
        told = value.detach().numpy() < 30  # beyond, the 1e-20 under the logarithm is what counts
        assert told.sum() > 90
        np.testing.assert_allclose(values[0][told], value.detach()[told], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(slopes[0][told], slope[told], rtol=1e-6, atol=1e-6)


def box_losses(i: Tensor, u: Tensor, e: Tensor) -> dict[str, Tensor]:
    return {
        "iou": 1 - i / u,
        "ln_iou": -(i.log() - u.log()),
        "giou": 2 - i / u - u / e,
        "cse_a": 2 - i / u - i / e - 2 / e,
        "cse_b": 3 * (e * u + 4 * e + i + u + 6) / (u * (i + u - 3 * e) + 5 * (i + u - 3 * e)),
    }


def test_regression_equals_independent_losses_in_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    low, side = rng.uniform(0, 60, (2, 200, 2)), rng.uniform(20, 90, (2, 200, 2))
    boxes = np.concatenate([low, low + side], -1)
    inputs = {
        name: torch.tensor(value, requires_grad=True) for name, value in areas(boxes[0], boxes[1]).items()
    }
    meets = inputs["i"].detach() > 0
    giou = generalized_box_iou_loss(torch.tensor(boxes[0]), torch.tensor(boxes[1]), eps=0)
    values = {name: value.detach().numpy() for name, value in inputs.items()}
    for name, expected in box_losses(**inputs).items():
        formula = resolve(name, REGRESSION)
        if name == "giou":
            np.testing.assert_allclose(expected.detach(), giou, atol=1e-9)
        for along in "iue":
            slope = torch.autograd.grad(expected.sum(), inputs[along], retain_graph=True, allow_unused=True)[
                0
            ]
            slope = torch.zeros_like(meets, dtype=torch.float64) if slope is None else slope
            found = evaluate([formula], REGRESSION, values, {along: np.ones(200)})
            np.testing.assert_allclose(found[0][0][meets], expected.detach()[meets], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found[1][0][meets], slope[meets], rtol=1e-6, atol=1e-9)


def test_every_name_belongs_to_one_language() -> None:
    assert [len(names(language)) for language in LANGUAGES] == [4, 3, 5]
    assert resolve("cse_b", ONE_STAGE).text != resolve("cse_b", REGRESSION).text
