"""Known losses by name, written as in their papers; the weight alpha of a focal loss stays outside of the formula.

Source: Liu et al. 2021, Section 3.1 (CEI, FLI) and Section 4.1 (CSE-Autoloss-A and -B); Lin et al. 2017 (focal,
gamma 2); Yu et al. 2016 (-ln IoU); Rezatofighi et al. 2019 (GIoU). FLI has the power 1, as the paper writes it.
"""

from __future__ import annotations

from detsearch_cli.errors import FormulaError
from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.language import ONE_STAGE, REGRESSION, TWO_STAGE, Language
from detsearch_cli.formulas.reading import parse

_S = "sigmoid(x)"
CLASSIFICATION: dict[str, tuple[Language, str]] = {
    "ce": (TWO_STAGE, "-dot(y, log(softmax(x)))"),
    "cei": (TWO_STAGE, "-dot(w*y, log(softmax(x)))"),
    "cse_a": (TWO_STAGE, "-dot((1 + sin(w))*y, log(softmax(x)))"),
    "bce": (ONE_STAGE, f"-(y*log({_S}) + (1 - y)*log(1 - {_S}))"),
    "focal": (
        ONE_STAGE,
        f"-(y*(1 - {_S})*(1 - {_S})*log({_S}) + (1 - y)*{_S}*{_S}*log(1 - {_S}))",
    ),
    "fli": (ONE_STAGE, f"-w*(y*(1 - {_S})*log({_S}) + (1 - y)*{_S}*log(1 - {_S}))"),
    "cse_b": (
        ONE_STAGE,
        f"-(w*y*(1 + erf(sigmoid(1 - y)))*log({_S}) + (gd(x) - w*y)*({_S} - w*y)*log(1 - {_S}))",
    ),
}
BOXES: dict[str, tuple[Language, str]] = {
    "iou": (REGRESSION, "1 - i/u"),
    "ln_iou": (REGRESSION, "-log(i/u)"),
    "giou": (REGRESSION, "1 - i/u + (e - u)/e"),
    "cse_a": (REGRESSION, "(1 - i/u) + (1 - (i + 2)/e)"),
    "cse_b": (
        REGRESSION,
        "(3*e*u + 12*e + 3*i + 3*u + 18)/(-3*e*u + i*u + u*u - 15*e + 5*i + 5*u)",
    ),
}
INITIAL = {ONE_STAGE.name: "fli", TWO_STAGE.name: "cei", REGRESSION.name: "giou"}
"""What a search begins from (Section 3.1)."""


def names(language: Language) -> tuple[str, ...]:
    """Losses that are written in this language. Two stages have those of one stage too, without being listed."""
    library = CLASSIFICATION if language.branch == "cls" else BOXES
    return tuple(name for name, (home, _) in library.items() if home == language)


def resolve(said: str, language: Language) -> Formula:
    """The formula of a name of the library, or of a text. Raises FormulaError where it is neither in this language."""
    library = CLASSIFICATION if language.branch == "cls" else BOXES
    if said in library:
        return parse(library[said][1], language)
    try:
        return parse(said, language)
    except FormulaError as odd:
        if said.isidentifier() and said not in language.words:
            listed = ", ".join(names(language))
            raise FormulaError(f"{odd}; named {language.name} losses are {listed}") from None
        raise


def initial(language: Language) -> Formula:
    """The loss that a search of this language begins from: FLI, CEI or GIoU."""
    return resolve(INITIAL[language.name], language)
