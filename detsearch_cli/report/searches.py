"""Several searches in one picture: what each sampler has found after how many candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from detsearch_cli.report.canvas import canvas, style
from detsearch_cli.report.figures import COLOURS, Figure, to_png

_COLOURS = ("#0b7268", "#e6550d", "#3b5bb5", "#9b3fae", "#c2255c", "#8a5a00")


def best_so_far(searches: Mapping[str, Sequence[Sequence[float]]], baseline: float | None) -> Figure:
    """The highest AP after each candidate: of each sampler the mean over its searches, and a band from lowest to highest.

    searches: of each sampler its searches, as many values (fractions) each as candidates. baseline: the recipe as given.
    """
    from matplotlib.ticker import MaxNLocator

    with style():
        sheet = canvas(7.6, 4.2)
        ax = sheet.subplots()
        for number, (name, every) in enumerate(searches.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            columns = list(zip(*every, strict=True))
            at = range(1, len(columns) + 1)
            low, high = ([100 * pick(column) for column in columns] for pick in (min, max))
            if len(every) > 1:
                ax.fill_between(at, low, high, color=colour, alpha=0.15, lw=0, step="post")
            told = f"{name}, {len(every)} searches" if len(every) > 1 else name
            mean = [100 * fmean(column) for column in columns]
            ax.plot(at, mean, color=colour, lw=2, drawstyle="steps-post", label=told)
        if baseline is not None:
            ax.axhline(
                100 * baseline, color=COLOURS["baseline"], ls=(0, (5, 3)), lw=1.4, label="the recipe as given"
            )
        ax.set(xlabel="candidates", ylabel="highest AP so far")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(lw=0.6)
        sheet.legend(loc="outside right upper")
        said = "; ".join(
            f"{name} {100 * fmean(one[-1] for one in every):.1f} after {len(every[0])}"
            for name, every in searches.items()
        )
        caption = (
            "The highest AP on the held-out images after each candidate, one seed each: the mean over searches, and the "
            "band from the lowest to the highest of them. The highest of many scores is partly luck."
        )
        return Figure("Searches compared", caption, to_png(sheet), f"Highest AP so far: {said}.")
