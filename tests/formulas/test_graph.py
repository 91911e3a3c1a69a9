"""A population in one graph equals each formula by itself in PyTorch, values and derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detsearch_cli.formulas import graph as module
from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.graph import Graph, evaluate
from detsearch_cli.formulas.language import ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.library import names, resolve
from detsearch_cli.formulas.reading import parse

from .strategies import formulas, in_torch, steady

SMALL = st.sampled_from([1.0, 2.0, 3.0, 0.25])


def inputs_of(language: Language) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if language.branch == "reg":
        return {name: rng.uniform(0.5, 4, 9) for name in language.inputs}
    shape = (9, 4) if language.columns else (9,)
    return {"x": rng.normal(0, 2, shape), "y": rng.uniform(0, 1, shape), "w": rng.uniform(0.2, 1, shape)}


def reference(
    formula: Formula, language: Language, inputs: dict[str, np.ndarray], directions: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative along the directions of each row, by autograd."""
    tensors = {name: torch.tensor(v, requires_grad=name in directions) for name, v in inputs.items()}
    rows = len(next(iter(inputs.values())))
    value = in_torch(formula, tensors)
    value = value.sum(-1) if value.ndim == 2 else value
    value = value.expand(rows)
    moving = [tensors[name] for name in directions]
    slope = torch.zeros(rows, dtype=torch.float64)
    if value.requires_grad:
        gradients = torch.autograd.grad(value.sum(), moving, allow_unused=True)
        for name, gradient in zip(directions, gradients, strict=True):
            if gradient is not None:
                along = gradient * torch.tensor(directions[name])
                slope = slope + (along.sum(-1) if along.ndim == 2 else along)
    return value.detach().numpy(), slope.numpy()


@pytest.mark.parametrize("language", (ONE_STAGE, TWO_STAGE, REGRESSION), ids=lambda language: language.name)
def test_values_and_derivatives_equal_autograd(language: Language) -> None:
    inputs = inputs_of(language)
    moving = ("x",) if language.branch == "cls" else language.inputs
    rng = np.random.default_rng(1)
    directions = {name: rng.normal(size=inputs[name].shape) for name in moving}

    @settings(steady, max_examples=60)
    @given(st.lists(formulas(language, 8, SMALL), min_size=1, max_size=6))
    def holds(population: list[Formula]) -> None:
        values, slopes = evaluate(population, language, inputs, directions)
        assert slopes is not None
        for formula, value, slope in zip(population, values, slopes, strict=True):
            expected = reference(formula, language, inputs, directions)
            usual = np.isfinite(expected[0]) & np.isfinite(expected[1]) & (np.abs(expected[0]) < 1e12)
            np.testing.assert_allclose(value[usual], expected[0][usual], rtol=1e-7, atol=1e-9)
            usual &= np.abs(expected[1]) < 1e12
            if "sqrt" in formula.words:
                # forward mode meets 0/0 at the root of what rests at 0; autograd masks it behind a relu
                usual &= np.isfinite(slope)
            np.testing.assert_allclose(slope[usual], expected[1][usual], rtol=1e-6, atol=1e-9)

    holds()


@pytest.mark.parametrize("name", [*ONE_STAGE.unary, "softmax"])
def test_each_curve_and_its_slope_equal_autograd(name: str) -> None:
    language = TWO_STAGE if name == "softmax" else ONE_STAGE
    inputs = inputs_of(language)
    directions = {"x": np.ones_like(inputs["x"])}
    formula = Formula((name, "+", "x", "*", 3.0, "x"))
    expected = reference(formula, language, inputs, directions)
    values, slopes = evaluate([formula], language, inputs, directions)
    np.testing.assert_allclose(values[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(slopes[0], expected[1], rtol=1e-9, atol=1e-14)


def test_a_subexpression_of_a_thousand_formulas_exists_once() -> None:
    population = [parse(f"log(sigmoid(x))*{k}", ONE_STAGE) for k in range(1000)]
    assert len(Graph(population, ONE_STAGE)) == 3 + 1000 + 1000  # x, sigmoid, log; constants; products


def test_order_of_commuting_operands_makes_no_new_node() -> None:
    graph = Graph([parse("x*y + w", ONE_STAGE), parse("w + y*x", ONE_STAGE)], ONE_STAGE)
    assert graph.roots[0] == graph.roots[1]
    assert len(graph) == 5
    other = Graph([parse("x - y", ONE_STAGE), parse("y - x", ONE_STAGE)], ONE_STAGE)
    assert other.roots[0] != other.roots[1]


@pytest.mark.parametrize("language", (ONE_STAGE, TWO_STAGE), ids=lambda language: language.name)
def test_blocks_of_rows_change_nothing(language: Language, monkeypatch: pytest.MonkeyPatch) -> None:
    population = [resolve(name, language) for name in names(language)] + [parse("y*2", language)]
    inputs = inputs_of(language)
    directions = {"x": np.ones_like(inputs["x"])}
    whole = Graph(population, language).evaluate(inputs, directions)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(module, "_LEAST_ROWS", 4)
    pieces = Graph(population, language).evaluate(inputs, directions)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


def test_formulas_with_inputs_of_their_own_equal_each_by_itself() -> None:
    population = [resolve(name, REGRESSION) for name in names(REGRESSION)]
    rng = np.random.default_rng(2)
    inputs = {name: rng.uniform(1, 9, (len(population), 7)) for name in "iue"}
    directions = {name: rng.normal(size=(len(population), 7)) for name in "iue"}
    values, slopes = Graph(population, REGRESSION, own_inputs=True).evaluate(inputs, directions)
    for k, formula in enumerate(population):
        own = {name: value[k] for name, value in inputs.items()}
        along = {name: value[k] for name, value in directions.items()}
        alone = evaluate([formula], REGRESSION, own, along)
        np.testing.assert_allclose(values[k], alone[0][0], rtol=1e-12)
        np.testing.assert_allclose(slopes[k], alone[1][0], rtol=1e-12)


def test_a_value_that_is_no_number_stays_without_a_warning() -> None:
    with np.errstate(all="raise"):
        values, _ = evaluate([parse("log(-1 + x*0)", ONE_STAGE)], ONE_STAGE, {"x": np.zeros(2)})
    assert np.isnan(values).all()
