"""Formulas a second through the filters of loss formulas, stage by stage, against sympy on a sample of the same formulas.

    python benchmarks/formula_filters.py                    # 2 minutes
    python benchmarks/formula_filters.py --random 1000000   # how rare a loss is among random formulas: 3 minutes more

A generation is 10,000 mutants (1 to 3 mutations) of the loss that a search begins with: FLI, CEI, GIoU. All times are
processor time of one core, the median of `--repeats` runs over populations of their own; other programs change them
less than the clock's time, but share the cache. The table has microseconds a formula of the whole population.

sympy answers what stages 2 and 4 ask of one-stage formulas: is the loss decreasing for a positive and increasing for a
negative, what is the limit of its gradient at the right end, and what is its simplified form. A formula is given up
after `--limit` seconds, so its time is a lower bound. Formulas that are no numbers on the grid are not shown to it.

Exits 1 below 25,000 formulas a second for classification or 15,000 for regression, with a generation of 10 s or more, or
less than 5,000 times sympy's speed.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from random import Random
from typing import Any

from detsearch_cli.formulas.drawing import mutate, random_formula
from detsearch_cli.formulas.filters import Filtered, run
from detsearch_cli.formulas.formula import Formula
from detsearch_cli.formulas.language import ARITY, LANGUAGES, ONE_STAGE, Language
from detsearch_cli.formulas.library import initial
from detsearch_cli.formulas.properties import Stage

LEAST = {"one-stage": 25_000, "two-stage": 25_000, "regression": 15_000}
LONGEST_GENERATION = 10.0
LEAST_RATIO = 5_000
STEPS = {
    "interning": (),
    "evaluation": (),
    Stage.VALIDITY: (Stage.VALIDITY,),
    Stage.MONOTONICITY: (Stage.MONOTONICITY,),
    Stage.DISTANCE: (Stage.DISTANCE,),
    "gradients": (),
    Stage.DUPLICATE: (Stage.DUPLICATE,),
}


def mutants(language: Language, count: int, seed: int) -> list[Formula]:
    """Each 1 to 3 mutations from the initial loss."""
    rng, begin, made = Random(seed), initial(language), []
    for _ in range(count):
        formula = begin
        for _ in range(rng.randint(1, 3)):
            formula = mutate(formula, rng, language)
        made.append(formula)
    return made


def measure(language: Language, args: argparse.Namespace) -> tuple[float, float]:
    """Prints one language's table; (formulas a second through stages 1 to 4, seconds of a generation with the fifth)."""
    run(mutants(language, 500, 10**6), language)  # imports and the grid are paid once
    runs: list[Filtered] = []
    making: list[float] = []
    for seed in range(args.repeats):
        begun = time.process_time()
        population = mutants(language, args.population, seed)
        making.append(time.process_time() - begun)
        runs.append(run(population, language, stages=(*Stage,)))
    count, last = args.population, runs[-1]
    print(f"\n{language.name}: {count} mutants of {initial(language).text}, {last.distinct} distinct graphs")
    print(f"{'stage':>30}{'us a formula':>14}{'removed':>9}{'left':>8}")
    print(f"{'making them':>30}{1e6 * statistics.median(making) / count:>14.1f}{'':>9}{count:>8}")
    left, removed, total = count, last.removed(), 0.0
    for name, counted in STEPS.items():
        if name not in last.seconds:
            continue
        seconds = statistics.median(one.seconds[name] for one in runs)
        total += seconds
        gone = sum(removed[stage] for stage in counted)
        left -= gone
        print(f"{name:>30}{1e6 * seconds / count:>14.1f}{gone or '':>9}{left:>8}")
    whole = statistics.median(sum(one.seconds.values()) - one.seconds[Stage.SIMULATION] for one in runs)
    simulated = statistics.median(one.seconds[Stage.SIMULATION] for one in runs)
    print(f"{'stages 1 to 4':>30}{1e6 * whole / count:>14.1f}{'':>9}{'':>8}{count / whole:>12,.0f} a second")
    gone = removed[Stage.SIMULATION]
    print(f"{Stage.SIMULATION:>30}{1e6 * simulated / count:>14.1f}{gone or '':>9}{left - gone:>8}")
    generation = statistics.median(making) + whole + simulated
    print(f"{'a generation':>30}{generation:>12.2f} s")
    return count / whole, generation


def share_of_random(language: Language, count: int) -> None:
    """Prints how many random formulas of depth 2 to 5 pass stages 1 to 3."""
    rng, passed, seen, seconds, first = Random(0), 0, 0, 0.0, ""
    while seen < count:
        population = [
            random_formula(rng, language, rng.randint(2, 5)) for _ in range(min(10_000, count - seen))
        ]
        begun = time.process_time()
        filtered = run(population, language, stages=(Stage.MONOTONICITY, Stage.DISTANCE))
        seconds += time.process_time() - begun
        passed, seen = passed + len(filtered.kept), seen + len(population)
        first = first or next((population[index].text for index in filtered.kept), "")
    shown = f"{passed} of {seen:,}" + (f", one in {seen / passed:,.0f}; the first: {first}" if passed else "")
    print(f"{language.name:>12}: {shown} ({seen / seconds:,.0f} a second)")


class TooLong(Exception):
    """sympy has used its time for a formula."""


def in_sympy(formula: Formula, x: Any, target: int) -> Any:
    """The formula at y = target, w = 1 as sympy's expression; exact numbers, without the small constants of division."""
    import sympy as sp

    leaves = {"x": x, "y": sp.Integer(target), "w": sp.Integer(1)}
    operators = {
        "neg": lambda a: -a,
        "exp": sp.exp,
        "log": sp.log,
        "abs": sp.Abs,
        "sqrt": sp.sqrt,
        "softplus": lambda a: sp.log(1 + sp.exp(a)),
        "sigmoid": lambda a: 1 / (1 + sp.exp(-a)),
        "gd": lambda a: (4 / sp.pi * sp.atan(sp.tanh(sp.pi * a / 8)) + 1) / 2,
        "alf": lambda a: (a / 2 / sp.sqrt(1 + a**2 / 4) + 1) / 2,
        "erf": lambda a: (sp.erf(sp.sqrt(sp.pi) * a / 4) + 1) / 2,
        "erfc": lambda a: (1 - sp.erf(sp.sqrt(sp.pi) * a / 4)) / 2,
        "tanh": sp.tanh,
        "relu": lambda a: sp.Max(a, 0),
        "sin": sp.sin,
        "cos": sp.cos,
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a / b,
    }
    stack: list[Any] = []
    for token in reversed(formula.tokens):
        if isinstance(token, str) and token in ARITY:
            stack.append(operators[token](*(stack.pop() for _ in range(ARITY[token]))))
        else:
            stack.append(leaves[token] if isinstance(token, str) else sp.Integer(int(token)))
    return stack[0]


def asked(formula: Formula) -> None:
    """Stages 2 and 4 in sympy's words."""
    import sympy as sp

    x = sp.Symbol("x", real=True)
    for target, monotone, end in ((1, sp.is_decreasing, sp.oo), (0, sp.is_increasing, -sp.oo)):
        loss = in_sympy(formula, x, target)
        monotone(loss, sp.S.Reals, x)
        sp.limit(sp.diff(loss, x), x, end)
        sp.simplify(loss)


def measure_sympy(args: argparse.Namespace) -> float:
    """Prints and returns formulas a second of sympy's processor time, on one-stage formulas that are valid."""
    population = mutants(ONE_STAGE, 20 * args.sample, 10**6)
    filtered = run(population, ONE_STAGE)
    sample = [f for k, f in enumerate(population) if filtered.verdict(k).stage is not Stage.VALIDITY][
        : args.sample
    ]

    def stop(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGPROF, stop)  # counts processor time, not the clock's
    asked(initial(ONE_STAGE))
    late = failed = 0
    begun = time.process_time()
    for formula in sample:
        try:
            signal.setitimer(signal.ITIMER_PROF, args.limit)
            asked(formula)
        except TooLong:
            late += 1
        except Exception:  # sympy raises many kinds where it finds no answer
            failed += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - begun
    print(
        f"\nsympy, {len(sample)} valid one-stage formulas: {len(sample) / seconds:.2f} a second; {late} took more than "
        f"{args.limit:g} s, {failed} ended with an error"
    )
    return len(sample) / seconds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--population", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--random", type=int, default=100_000, help="random formulas of each language")
    parser.add_argument("--sample", type=int, default=30, help="formulas shown to sympy")
    parser.add_argument("--limit", type=float, default=3.0, help="seconds of sympy for a formula")
    args = parser.parse_args()
    speeds, slowest = {}, 0.0
    for language in LANGUAGES:
        speeds[language.name], generation = measure(language, args)
        slowest = max(slowest, generation)
    print("\nrandom formulas of depth 2 to 5 that pass stages 1 to 3")
    for language in LANGUAGES:
        share_of_random(language, args.random)
    ratio = speeds[ONE_STAGE.name] / measure_sympy(args)
    print(f"ratio {ratio:,.0f}; machine load {os.getloadavg()[0]:.1f}")
    slow = [name for name, least in LEAST.items() if speeds[name] < least]
    return int(bool(slow) or slowest >= LONGEST_GENERATION or ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
