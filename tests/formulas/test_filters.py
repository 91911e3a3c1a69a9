"""Known losses pass every filter; wrong ones are rejected, each for its own reason and with a counterexample."""

from __future__ import annotations

import subprocess
import sys
from random import Random

import numpy as np
import pytest

from detsearch_cli.formulas.drawing import mutate, random_formula
from detsearch_cli.formulas.filters import STAGES, check, examine, run
from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.graph import evaluate
from detsearch_cli.formulas.grids import grid
from detsearch_cli.formulas.language import LANGUAGES, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.library import initial, names, resolve
from detsearch_cli.formulas.properties import Reason, Stage
from detsearch_cli.formulas.reading import parse
from detsearch_cli.formulas.verdicts import culprit

by_language = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
BCE = "-(y*log(sigmoid(x)) + (1 - y)*log(1 - sigmoid(x)))"


@by_language
def test_every_loss_of_the_library_passes_every_filter(language: Language) -> None:
    losses = [resolve(name, language) for name in names(language)]
    filtered = run(losses, language, stages=(*STAGES, Stage.SIMULATION))
    assert list(filtered.kept) == list(range(len(losses))), [
        str(filtered.verdict(k)) for k in range(len(losses))
    ]
    for loss in losses:
        assert all(verdict.passed for verdict in examine(loss, language))


def test_losses_of_one_stage_pass_with_columns_too() -> None:
    assert all(v.passed for v in check([resolve(name, TWO_STAGE) for name in names(ONE_STAGE)], TWO_STAGE))


WRONG: list[tuple[Language, str, Reason]] = [
    (ONE_STAGE, "log(x)", Reason.NOT_FINITE),
    (ONE_STAGE, "y*sqrt(-x) + (1 - y)*softplus(x)", Reason.NOT_FINITE),
    (ONE_STAGE, "softplus((1 - 2*y)*x) + 0*sqrt(x*x)", Reason.GRADIENT_NOT_FINITE),
    (ONE_STAGE, "exp(-x*(2*y - 1))", Reason.EXPLODES),
    (ONE_STAGE, f"{BCE}/(w*w)", Reason.EXPLODES),
    (ONE_STAGE, "(1 - 2*y)/x", Reason.EXPLODES),
    (ONE_STAGE, "x*x*x*x*(1 - 2*y)", Reason.EXPLODES),
    (ONE_STAGE, "w*(2 - y)", Reason.CONSTANT),
    (ONE_STAGE, "-y*log(sigmoid(x))", Reason.CONSTANT),
    (ONE_STAGE, "-(1 - y)*log(1 - sigmoid(x))", Reason.CONSTANT),
    (ONE_STAGE, f"-{BCE}", Reason.WRONG_SIGN),
    (ONE_STAGE, "softplus(-x)", Reason.WRONG_SIGN),
    (ONE_STAGE, "softplus(x*(2*y - 1))", Reason.WRONG_SIGN),
    (ONE_STAGE, "(x - 2*y)*(x - 2*y)", Reason.TURNS),
    (ONE_STAGE, f"{BCE} + sin(x)", Reason.TURNS),
    (ONE_STAGE, "y*softplus(-x) + (1 - y)*softplus(-x)*x", Reason.TURNS),
    (ONE_STAGE, f"{BCE} + 3*(1 - w)*softplus(x + 2)", Reason.TURNS_EARLY),
    (ONE_STAGE, f"{BCE}*(w - .5)", Reason.TURNS_EARLY),
    (ONE_STAGE, "softplus((1 - 2*y)*x) + y/(4*x + 3)/99*(x + 20)", Reason.JUMPS),
    (ONE_STAGE, "y*(1 - sigmoid(x)) + (1 - y)*sigmoid(x)", Reason.FLAT),
    (ONE_STAGE, "y*(1 - alf(x)) + (1 - y)*alf(x)", Reason.FLAT),
    (ONE_STAGE, "y*softplus(-x - 8) + (1 - y)*softplus(x)", Reason.FLAT),
    (ONE_STAGE, "y*softplus(-x) + (1 - y)*relu(x - 3)", Reason.FLAT),
    (ONE_STAGE, "x*(1 - 2*y)", Reason.NO_REST),
    (ONE_STAGE, "y*softplus(-x) + (1 - y)*x", Reason.NO_REST),
    (TWO_STAGE, "-dot(sqrt(softmax(x) - 1), y)", Reason.NOT_FINITE),
    (TWO_STAGE, "-dot(y/(1 - w), log(softmax(x)))", Reason.EXPLODES),
    (TWO_STAGE, "-dot(y, log(softmax(y)))", Reason.CONSTANT),
    (TWO_STAGE, "-dot(y, log(sigmoid(x)))", Reason.CONSTANT),
    (TWO_STAGE, "dot(y, log(softmax(x)))", Reason.WRONG_SIGN),
    (TWO_STAGE, "-dot(w, log(softmax(x)))", Reason.TURNS),
    (TWO_STAGE, "-dot((w - 1/2)*y, log(softmax(x)))", Reason.TURNS_EARLY),
    (TWO_STAGE, "-dot(y, softmax(x))", Reason.FLAT),
    (TWO_STAGE, "dot(y - 1, log(1 - softmax(x)))", Reason.FLAT),
    (TWO_STAGE, "-dot(y, x)", Reason.NO_REST),
    (REGRESSION, "-log(u - e)", Reason.NOT_FINITE),
    (REGRESSION, "1 - sqrt(i/u)", Reason.GRADIENT_NOT_FINITE),
    (REGRESSION, "u/i", Reason.EXPLODES),
    (REGRESSION, "e - i", Reason.EXPLODES),
    (REGRESSION, "exp(u - i)", Reason.EXPLODES),
    (REGRESSION, "1 + u*0", Reason.CONSTANT),
    (REGRESSION, "i/u", Reason.WRONG_SIGN),
    (REGRESSION, "1 - i/u + sin((e - u)/(5*u))", Reason.FALLS),  # consistent only for squares
    (REGRESSION, "1 - i/u + sin(e)", Reason.FALLS),
    (REGRESSION, "1 - i/u - (e - u)/e", Reason.FALLS),
    (REGRESSION, "2 - (i + 3)/u - log(e)/10", Reason.FALLS),
    (REGRESSION, "tanh(u - i)", Reason.FLAT),  # only for small boxes
    (REGRESSION, "(e - u)/e", Reason.FLAT),
    (REGRESSION, "relu(1/2 - i/u)", Reason.FLAT),
]


def test_there_are_at_least_forty_wrong_losses_and_every_reason_is_among_them() -> None:
    assert len(WRONG) >= 40
    assert {reason for _, _, reason in WRONG} == set(Reason) - {Reason.DUPLICATE, Reason.DOES_NOT_LEARN}


@pytest.mark.parametrize(("language", "text", "reason"), WRONG, ids=[f"{w[0].name} {w[1]}" for w in WRONG])
def test_a_wrong_loss_is_rejected_for_its_reason(language: Language, text: str, reason: Reason) -> None:
    formula = parse(text, language)
    verdict = check([formula], language)[0]
    assert verdict.reason is reason, str(verdict)
    assert next(v.reason for v in examine(formula, language) if not v.passed) is reason
    for point in verdict.points:  # the counterexample is the formula's own value
        inputs = {name: np.array([value]) for name, value in point.inputs.items()}
        assert evaluate([formula], language, inputs)[0][0, 0] == pytest.approx(point.value, nan_ok=True)
    assert str(verdict).startswith(reason.value)
    assert "\n" not in str(verdict)


def test_a_loss_that_is_consistent_for_squares_fails_on_a_long_target() -> None:
    formula = parse("1 - i/u + sin((e - u)/(5*u))", REGRESSION)
    places = grid(REGRESSION)
    values, _ = evaluate([formula], REGRESSION, places.inputs)
    falling = {s.name for s in places.sweeps if (np.diff(values[0, s.rows]) < 0).any()}
    assert falling
    for name in falling:
        width, height = name.split(" target of ")[1].split(" ")[0:3:2]
        assert width != height


def test_cse_b_turns_upward_beyond_w_and_passes_nevertheless() -> None:
    formula = resolve("cse_b", ONE_STAGE)
    places = grid(ONE_STAGE)
    _, slopes = evaluate([formula], ONE_STAGE, places.inputs, places.directions)
    part = places.sweep("positive of w = 0.3")
    assert slopes is not None
    assert slopes[0, part.rows][-1] > 0.4
    assert check([formula], ONE_STAGE)[0].passed


def test_an_added_constant_is_no_new_loss_and_a_factor_is() -> None:
    texts = ["1 - i/u", "7 - i/u", "2*(1 - i/u)", "(u - i)/u", "1 - i/u + 0*e"]
    filtered = run([parse(text, REGRESSION) for text in texts], REGRESSION)
    assert list(filtered.kept) == [0, 2]
    assert filtered.verdict(3).culprit == "1 - i/u"
    texts = [
        BCE,
        f"{BCE} + 3",
        f"2*{BCE}",
        "softplus(x) - x*y",
        "1 + y*softplus(-x) + (1 - y)*softplus(x) + w",
    ]
    filtered = run([parse(text, ONE_STAGE) for text in texts], ONE_STAGE)
    assert list(filtered.kept) == [0, 2]


def test_functions_that_were_there_before_are_dropped() -> None:
    losses = [resolve(name, ONE_STAGE) for name in names(ONE_STAGE)]
    first = run(losses[:2], ONE_STAGE)
    seen = {key: losses[index].text for index, key in first.kept.items()}
    second = run(losses, ONE_STAGE, seen=seen)
    assert list(second.kept) == [2, 3]
    assert second.verdict(0).culprit == losses[0].text


def test_fingerprints_are_the_same_in_every_process() -> None:
    code = (
        "from detsearch_cli.formulas.filters import run; from detsearch_cli.formulas.library import *; "
        "print(run([initial(REGRESSION)], REGRESSION).kept[0])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert run([initial(REGRESSION)], REGRESSION).kept[0] == said


@by_language
def test_the_verdict_on_a_formula_does_not_depend_on_its_population(language: Language) -> None:
    rng = Random(0)
    population = [mutate(mutate(initial(language), rng, language), rng, language) for _ in range(300)]
    population += [random_formula(rng, language, rng.randint(2, 5)) for _ in range(100)]
    together = run(population, language, stages=(Stage.MONOTONICITY, Stage.DISTANCE))
    assert together.removed().total() + len(together.kept) == len(population)
    assert len(together.kept) > 5
    for index in range(0, len(population), 7):
        alone = run([population[index]], language)
        assert str(alone.verdict(0)) == str(together.verdict(index))


@by_language
def test_formulas_at_random_are_of_their_language_and_depth(language: Language) -> None:
    rng = Random(1)
    drawn = [random_formula(rng, language, 4) for _ in range(200)]
    assert max(formula.depth for formula in drawn) == 4
    changed = [mutate(formula, rng, language) for formula in drawn]
    for formula in (*drawn, *changed):
        assert parse(formula.text, language).text == formula.text
    assert sum(a == b for a, b in zip(drawn, changed, strict=True)) < 60


def test_what_is_no_number_is_traced_to_the_subexpression_that_made_it() -> None:
    formula = parse("y*sigmoid(x) + abs(log(x - 1))*w", ONE_STAGE)
    inputs = {"x": np.array([2.0, 0.5]), "y": np.ones(2), "w": np.ones(2)}
    found = culprit(formula, ONE_STAGE, inputs)
    assert found is not None and found.text == "log(x - 1)"
    assert culprit(formula, ONE_STAGE, {name: value[:1] for name, value in inputs.items()}) is None


def test_an_empty_population_has_no_survivors() -> None:
    assert run([], ONE_STAGE).kept == {}
    assert isinstance(initial(ONE_STAGE), Formula)


def test_a_high_power_of_iou_is_consistent_to_the_last_bit_of_overlap() -> None:
    assert check([parse("1 - i*i*i*i/(u*u*u*u)", REGRESSION)], REGRESSION)[0].passed
