"""A formula from outside is read or refused in one sentence; what is printed reads back to the same graph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from detsearch_cli.errors import FormulaError
from detsearch_cli.formulas.formula import MAX_NODES, Formula
from detsearch_cli.formulas.graph import Graph
from detsearch_cli.formulas.language import LANGUAGES, ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.library import names, resolve
from detsearch_cli.formulas.reading import parse

from .strategies import formulas, steady


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_printed_text_reads_back_to_the_same_graph(language: Language) -> None:
    @settings(steady, max_examples=300)
    @given(formulas(language))
    def holds(formula: Formula) -> None:
        back = parse(formula.text, language)
        graph = Graph([formula, back], language)
        assert graph.roots[0] == graph.roots[1]
        assert back.text == formula.text

    holds()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("-x*y", ("*", "neg", "x", "y")),
        ("-(x*y)", ("neg", "*", "x", "y")),
        ("x - y - w", ("-", "-", "x", "y", "w")),
        ("x - (y - w)", ("-", "x", "-", "y", "w")),
        ("x/y*w", ("*", "/", "x", "y", "w")),
        ("+.5e1 * log( x )\n", ("*", 5.0, "log", "x")),
    ],
)
def test_reading_follows_the_precedence_of_arithmetic(text: str, tokens: tuple) -> None:
    assert parse(text, ONE_STAGE).tokens == tokens


HOSTILE = {
    "__import__('os').system('true')": "'__import__' at character 1",
    "x.real": "'.' at character 2",
    "x + y.__class__": "'.' at character 6",
    "lambda: x": "'lambda' at character 1",
    "print(x)": "'print' at character 1",
    "sigmoid(x)(y)": "at character 1",
    "x(y)": "at character 1",
    "x if y else w": "'if' at character 3",
    "[x for x in y]": "'[' at character 1",
    "x := 2": "':' at character 3",
    "x ** 9999999999": "'**' at character 3",
    "log(x=y)": "'=' at character 6",
    "log(*x)": "at character 5",
    "log(x, y)": "takes 1 operand, 2",
    "sigmoid": "write sigmoid(...)",
    "(x, y)": "at character 1",
    "'x'": "at character 1",
    "x\0": "U+0000",
    "х + 1": "CYRILLIC SMALL LETTER HA at character 1",
    "y*ｘ": "FULLWIDTH LATIN SMALL LETTER X at character 3",
    "x × y": "MULTIPLICATION SIGN at character 3",
    "x − y": "MINUS SIGN at character 3",
    "x + ": "cannot be read",
    "(x": "cannot be read",
    "x y": "cannot be read",
    "": "empty",
    "  ": "empty",
    "1e999": "infinite in double precision",
    "9" * 400: "infinite in double precision",
    "1j*x": "'j' at character 2",
    "x+" * 10**6 + "x": "at most 4000 characters",
    "(" * 10**5 + "x" + ")" * 10**5: "at most 4000 characters",
    "(" * 1900 + "x" + ")" * 1900: "brackets may be open 64 deep",
    "-" * 3000 + "x": f"at most {MAX_NODES}",
    "-" * 200 + "x": "operators may stand 64 above each other",
    "x+" * 1500 + "x": f"at most {MAX_NODES}",
    "softmax(x)": "belongs to two-stage formulas",
    "i/u": "belongs to regression formulas",
}


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:16].encode("ascii", "replace").decode())
def test_a_hostile_formula_is_refused_in_one_sentence_that_points_at_the_place(text: str) -> None:
    with pytest.raises(FormulaError) as refused:
        parse(text, ONE_STAGE)
    said = str(refused.value)
    assert HOSTILE[text] in said
    assert "\n" not in said and len(said) < 400


def test_regression_has_the_smaller_set_of_operators() -> None:
    assert parse("tanh(i/u)", REGRESSION)
    for name in ("erf", "gd", "alf", "erfc", "softmax"):
        with pytest.raises(FormulaError, match=f"'{name}' at character 1"):
            parse(f"{name}(i)", REGRESSION)


def test_an_unknown_name_of_a_loss_lists_those_that_are_known() -> None:
    with pytest.raises(FormulaError, match=r"named one-stage losses are bce, focal, fli, cse_b"):
        resolve("focl", ONE_STAGE)
    assert names(REGRESSION) == ("iou", "ln_iou", "giou", "cse_a", "cse_b")


def test_commuting_operands_have_one_text() -> None:
    assert parse("y*log(x) + w", ONE_STAGE).text == parse("w + log(x)*y", ONE_STAGE).text == "log(x)*y + w"


def test_latex_needs_no_brackets_where_a_fraction_holds_its_operands() -> None:
    assert resolve("giou", REGRESSION).latex() == r"1 - \frac{i}{u} + \frac{e - u}{e}"
    assert (
        parse("-dot(y, x)*2", TWO_STAGE).latex()
        == r"\left(-\operatorname{dot}\left(y, x\right)\right) \cdot 2"
    )
    assert parse("exp(-x)/1e-7", ONE_STAGE).latex() == r"\frac{e^{-x}}{1 \cdot 10^{-7}}"


def test_the_graph_of_cross_entropy_is_figure_1a() -> None:
    dag = parse("-dot(y, log(softmax(x)))", TWO_STAGE).dag()
    assert sorted(dag.labels) == ["dot", "log", "neg", "softmax", "x", "y"]
    named = {(dag.labels[a], dag.labels[b]) for a, b in dag.edges}
    assert named == {("x", "softmax"), ("softmax", "log"), ("log", "dot"), ("y", "dot"), ("dot", "neg")}
    assert dag.labels[-1] == "neg"


def test_the_graph_of_a_formula_shares_what_occurs_twice() -> None:
    dag = parse("(x + y)*(y + x)", ONE_STAGE).dag()
    assert dag.labels == ("x", "y", "+", "*") or dag.labels == ("y", "x", "+", "*")
    assert dag.edges[-2:] == ((2, 3), (2, 3))


def test_language_and_reading_need_no_numpy() -> None:
    import subprocess
    import sys

    code = "import sys, detsearch_cli.formulas.library as l; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
