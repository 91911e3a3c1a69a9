"""Charts of a search and of a run, as SVG text that takes its colours from the page around it.

The same input gives the same bytes: no dates, no global random state, ids derived from the figure's name.
Every chart exists at two widths, because text in a picture scaled down to a phone cannot be read.
"""

from __future__ import annotations

import io
import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from detsearch_cli.files import SIGNATURE
from detsearch_cli.lettering import families, legible, visible
from detsearch_cli.trials import (
    Leader,
    TrialLike,
    best_of,
    failed,
    gain_in_words,
    gains_of,
    known,
    leader_of,
    points,
    scored,
    stopped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Light palette. In the page each becomes `var(--name, #hex)`, so dark mode restyles charts without redrawing.
COLOURS = {
    "ink": "#1c2126",
    "muted": "#5d6772",
    "line": "#d6dade",
    "accent": "#0b7268",
    "baseline": "#8a5a00",
    "fail": "#b3261e",
    "dot": "#7fa9a5",
    "second": "#3b5bb5",
}
WIDE, NARROW = 10.2, 4.4  # inches; text of 10 then shows at about 12 CSS pixels on a desk and on a phone
MOST_BARS = 20


@dataclass(frozen=True)
class Figure:
    """A picture that a method adds to the page. png: encoded PNG; alt: what it shows, in words."""

    title: str
    caption: str
    png: bytes
    alt: str = ""


@dataclass(frozen=True)
class EpochPoint:
    """One epoch of a training: mean of each loss term, and AP (fraction) where it was evaluated."""

    epoch: int
    losses: Mapping[str, float]
    ap: float | None = None


def ap_per_trial(
    rows: Sequence[TrialLike],
    baseline: float | None,
    *,
    metric: str = "AP",
    width: float = WIDE,
    noise: float | None = None,
) -> str:
    """Score of every trial, best so far, baseline dashed, failed trials on the axis. Returns SVG text.

    Source: Tao et al. 2021 (HPS-Det), Figure 2. rows: values as fractions, drawn in points. noise: standard deviation of
    the baseline over seeds, drawn as a band around its mean. Where it is measured, what is expected of each candidate
    stands in the place of the best so far: a diamond with its 95% interval.
    """
    with _style():
        canvas, ax = _canvas(width, 3.9 if width > 5 else 3.3)
        expected = gains_of(rows)
        labels = _draw_scores(ax, rows, so_far=not expected)
        if baseline is not None and expected:
            labels.append(_draw_gains(ax, expected, baseline))
        if baseline is not None and noise is not None:
            band = 100 * (baseline - noise), 100 * (baseline + noise)
            ax.axhspan(*band, color=COLOURS["baseline"], alpha=0.13, lw=0, label="noise of one training")
        if baseline is not None and known(baseline):
            ax.axhline(100 * baseline, ls=(0, (5, 3)), lw=1.6, color=COLOURS["baseline"], label="baseline")
            labels.append((100 * baseline, COLOURS["baseline"]))
        broken = [r.number for r in rows if failed(r)]
        if broken:
            # a failed trial has no height, so its cross stands on the axis, whatever the scores are
            low, style = ax.get_xaxis_transform(), {"ms": 6, "mew": 1.6, "color": COLOURS["fail"]}
            ax.plot(broken, [0.03] * len(broken), "x", transform=low, label="failed", **style)
        _finish_trials(ax, [r.number for r in rows], metric, bool(labels), bool(broken))
        _label_right(ax, labels)
        _legend(ax, 5 if width > 5 else 2)
        return _svg(canvas, f"trials-{width:g}", _trials_alt(rows, baseline, metric))


def _draw_gains(ax: Axes, expected: Sequence[Leader[Any]], baseline: float) -> tuple[float, str]:
    """A diamond and an interval for each candidate. Returns the leader's label at the right."""
    colour = COLOURS["accent"]
    gains = [(candidate.trial.number, candidate.gain) for candidate in expected if candidate.gain is not None]
    at = [number for number, _ in gains]
    middle = [100 * (baseline + gain.expected) for _, gain in gains]
    for number, gain in gains:
        reach = [100 * (baseline + gain.low), 100 * (baseline + gain.high)]
        ax.plot([number, number], reach, lw=2.4, color=colour, alpha=0.35, solid_capstyle="round")
    ax.plot(at, middle, "D", ms=4.4, mew=0, color=colour, label="expected, 95%")
    return middle[0], colour


def _draw_scores(ax: Axes, rows: Sequence[TrialLike], so_far: bool) -> list[tuple[float, str]]:
    """Dots, the best so far, and hollow dots of stopped trials. Returns the labels at the right: value, colour."""
    done, labels = scored(rows), []
    small = 3.2 if len(rows) > 120 else 4.6
    if done:
        own = [r for r in done if r.candidate is None]
        for kind, colour, label in ((done, "dot", "trial"), (own if len(own) > 1 else [], "baseline", None)):
            # where further seeds are no candidates of their own, they stand above the first
            numbers = [r.number if so_far or r.again_of is None else r.again_of for r in kind]
            at = numbers, [100 * (r.value or 0.0) for r in kind]
            ax.plot(*at, "o", ms=small, color=COLOURS[colour], mew=0, label=label)
        best = best_of(done)
        if best is not None:
            ring = best.number, 100 * (best.value or 0.0)
            ax.plot(*ring, "o", ms=8.5, mfc="none", mec=COLOURS["accent"], mew=1.8)
        if so_far:
            best_so_far = list(itertools.accumulate((100 * (r.value or 0.0) for r in done), max))
            # a step, not a slope: nothing was known between two trials
            numbers = [r.number for r in done]
            ax.step(numbers, best_so_far, where="post", lw=2, color=COLOURS["accent"], label="best so far")
            labels.append((best_so_far[-1], COLOURS["accent"]))
    short = [(r.number, 100 * r.value) for r in rows if stopped(r) and known(r.value)]
    if short:
        # hollow: the score of a shorter training is not measured with the others
        style: dict[str, Any] = {"ms": small, "mfc": "none", "mec": COLOURS["muted"], "mew": 1.0}
        ax.plot(*zip(*short, strict=True), "o", label="stopped early", **style)
    return labels


def _finish_trials(ax: Axes, numbers: Sequence[int], metric: str, scaled: bool, broken: bool) -> None:
    low, high = min(numbers, default=0), max(numbers, default=1)
    ax.set_xlim(low - 0.03 * (high - low) - 0.5, high + 0.03 * (high - low) + 0.5)
    ax.set(xlabel="trial", ylabel=metric)
    _whole_numbers(ax)
    bottom, top = ax.get_ylim()
    room = 0.12 * (top - bottom) if broken else 0.0  # failed trials are marked below every score
    ax.set_yticks([tick for tick in ax.get_yticks() if tick >= 0] if scaled else [])  # no score is below 0
    ax.set_ylim(bottom - room, top)


def _trials_alt(rows: Sequence[TrialLike], baseline: float | None, metric: str) -> str:
    best, early = best_of(rows), sum(map(stopped, rows))
    text = f"{metric} per trial: {len(scored(rows))} scored, {sum(map(failed, rows))} failed"
    if early:
        text += f", {early} stopped early"
    if best is not None:
        text += f"; best {points(best.value)} at trial {best.number}"
    leader = leader_of(rows)
    if leader is not None and leader.gain is not None:
        text += f"; trial {leader.trial.number} leads, {gain_in_words(leader.gain)}"
    return text + (f"; baseline {points(baseline)}." if known(baseline) else ".")


def interval(
    difference: float,
    low: float,
    high: float,
    per_seed: Sequence[float] = (),
    *,
    side: str = "searched",
    width: float = WIDE,
) -> str:
    """A difference, its interval and each seed's difference against zero. Fractions; returns SVG text."""
    with _style():
        canvas, ax = _canvas(width, 1.4)
        ax.axvline(0, lw=1.4, ls=(0, (5, 3)), color=COLOURS["baseline"])
        ax.plot(
            [100 * low, 100 * high], [0, 0], lw=7, color=COLOURS["accent"], alpha=0.35, solid_capstyle="round"
        )
        if len(per_seed) > 1:
            ax.plot(
                [100 * d for d in per_seed], [0.55] * len(per_seed), "o", ms=5, mew=0, color=COLOURS["dot"]
            )
        ax.plot([100 * difference], [0], "D", ms=8, color=COLOURS["accent"], mew=0)
        drawn = [0.0, 100 * low, 100 * high, *(100 * d for d in per_seed)]
        pad = 0.08 * (max(drawn) - min(drawn) or 1.0)
        ax.set(xlim=(min(drawn) - pad, max(drawn) + pad), ylim=(-0.6, 1.0), yticks=[])
        ax.spines["left"].set_visible(False)
        ax.set_xlabel(f"{side} \N{MINUS SIGN} baseline, AP points")
        ax.annotate(
            "no difference", (0, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), va="top",
            textcoords="offset points", fontsize=9, color=COLOURS["baseline"],
        )  # fmt: skip
        reach = f"{points(low, True)} to {points(high, True)}"
        alt = f"Difference {points(difference, True)}, 95% interval {reach}."
        return _svg(canvas, f"interval-{width:g}", alt)


def importances(values: Mapping[str, float], *, width: float = WIDE) -> str:
    """Bars of how much each parameter explains of the scores, largest first, at most 20. Returns SVG text."""
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked[:MOST_BARS]
    with _style():
        canvas, ax = _canvas(width, 0.5 + 0.25 * max(len(shown), 1))
        rows = range(len(shown))
        heights = [max(v, 0.0) if known(v) else 0.0 for _, v in shown]
        ax.barh(rows, heights, height=0.62, color=COLOURS["accent"])
        for row, value in zip(rows, heights, strict=True):
            ax.annotate(
                f"{value:.2f}", (value, row), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=9, color=COLOURS["muted"],
            )  # fmt: skip
        ax.set_yticks(list(rows), [_short(name, 34 if width > 5 else 16) for name, _ in shown])
        ax.set(xlim=(0, 1.15 * max(heights, default=1.0) or 1.0), ylim=(len(shown) - 0.4, -0.6), xticks=[])
        ax.spines["bottom"].set_visible(False)
        ax.grid(visible=False)
        leading = ", ".join(f"{name} {value:.2f}" for name, value in shown[:3])
        more = f" ({len(ranked) - len(shown)} smaller ones not drawn)" if len(ranked) > len(shown) else ""
        return _svg(
            canvas, f"importances-{width:g}", f"Importance of each parameter, led by {leading}{more}."
        )


def training_curves(epochs: Sequence[EpochPoint], *, width: float = WIDE) -> str:
    """Loss terms and AP by epoch, beside each other when wide, stacked when narrow. Returns SVG text."""
    side = width > 5
    terms = list(dict.fromkeys(term for point in epochs for term in point.losses))
    colours = [COLOURS[c] for c in ("accent", "second", "baseline", "fail", "muted", "dot")]
    with _style():
        canvas, _ = _canvas(width, 3.4 if side else 5.8, axes=False)
        left, right = canvas.subplots(1, 2) if side else canvas.subplots(2, 1)
        for i, term in enumerate(terms):
            seen = [(p.epoch, p.losses[term]) for p in epochs if known(p.losses.get(term))]
            marker = "o" if len(seen) < 30 else ""
            colour, dash = colours[i % len(colours)], ("-", "--", ":")[i // len(colours) % 3]
            ax_style: dict[str, Any] = {"color": colour, "ls": dash, "ms": 3.5, "lw": 1.8, "marker": marker}
            left.plot([e for e, _ in seen], [v for _, v in seen], label=_short(term, 24), **ax_style)
        scored = [(p.epoch, 100 * p.ap) for p in epochs if p.ap is not None and known(p.ap)]
        marker = "o" if len(scored) < 30 else ""
        right.plot(
            *zip(*scored, strict=True) if scored else ((), ()),
            color=COLOURS["accent"],
            lw=2,
            marker=marker,
            ms=4,
        )
        if scored:
            _label_right(right, [(scored[-1][1], COLOURS["accent"])])
        left.set(xlabel="epoch", ylabel="loss")
        right.set(xlabel="epoch", ylabel="AP")
        for ax in (left, right):
            _plain(ax)
            _whole_numbers(ax)
        if terms:
            _legend(left, min(len(terms), 3))
        last = f"; AP {points(scored[-1][1] / 100)} after epoch {scored[-1][0]}" if scored else ""
        alt = f"Losses ({', '.join(terms) or 'none logged'}) and AP over {len(epochs)} epochs{last}."
        return _svg(canvas, f"training-{width:g}", alt)


def to_png(canvas: Canvas, dpi: int = 160) -> bytes:
    """Encode a matplotlib figure as a signed PNG; the same figure gives the same bytes."""
    _make_legible(canvas)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": SIGNATURE})
    return buffer.getvalue()


def _make_legible(canvas: Canvas) -> None:
    """Give every text of the figure fonts that have its letters, and spell out what no font has."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedLocator

    for ax in canvas.axes:
        for axis in (ax.xaxis, ax.yaxis):
            # names: an axis writes them anew whenever it is drawn, so the labels themselves are of no use
            if isinstance(axis.get_major_locator(), FixedLocator):
                axis.set_ticklabels([legible(label.get_text()) for label in axis.get_ticklabels()])
                for label in axis.get_ticklabels():
                    label.set_parse_math(False)
    for text in canvas.findobj(Text):
        assert isinstance(text, Text)
        shown = legible(text.get_text())
        text.set(text=shown, fontfamily=families(shown))


def median(values: Sequence[float]) -> float | None:
    """The middle value, None of nothing."""
    return statistics.median(values) if values else None


def _style() -> AbstractContextManager[None]:
    import matplotlib

    muted = COLOURS["muted"]
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be searched, selected and read aloud
            "svg.hashsalt": "detsearch",
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "text.color": COLOURS["ink"],
            "axes.labelcolor": muted,
            "axes.edgecolor": COLOURS["line"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": COLOURS["line"],
            "xtick.color": muted,
            "ytick.color": muted,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "legend.frameon": False,
        }
    )


def _canvas(width: float, height: float, axes: bool = True) -> tuple[Canvas, Any]:
    # Not pyplot: it keeps every figure alive in a global registry.
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(width, height), layout="constrained", facecolor="none")
    if not axes:
        return canvas, None
    ax = canvas.subplots()
    _plain(ax)
    return canvas, ax


def _plain(ax: Axes) -> None:
    ax.set_facecolor("none")
    ax.grid(axis="y", lw=0.7)
    ax.spines["left"].set_visible(False)


def _whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _legend(ax: Axes, columns: int) -> None:
    if not ax.get_legend_handles_labels()[0]:
        return
    legend = ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=9.5, handlelength=1.6,
        columnspacing=1.4, borderaxespad=0.2, borderpad=0.1,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _label_right(ax: Axes, labels: Sequence[tuple[float, str]]) -> None:
    """Write values at the right end of their lines, pushed apart where they would overlap."""
    bottom, top = ax.get_ylim()
    gap = 0.075 * (top - bottom)
    at = sorted(labels)
    heights = [value for value, _ in at]
    if len(at) == 2 and heights[1] - heights[0] < gap:
        middle = sum(heights) / 2
        heights = [middle - gap / 2, middle + gap / 2]
    for (value, colour), height in zip(at, heights, strict=True):
        ax.annotate(
            f"{value:.1f}", (1, height), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center",
            textcoords="offset points", color=colour, fontsize=10, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _svg(canvas: Canvas, name: str, alt: str) -> str:
    """SVG element for inlining: page colours, the reader's font, ids that are unique in the page."""
    import warnings

    for ax in canvas.axes:
        for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            label.set_parse_math(False)  # a class called "$x" is no formula
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's font draws it, not ours
        canvas.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = visible(buffer.getvalue())
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    # Inside tags only: in text nodes `<` is escaped, and words there must stay as they are.
    text = re.sub(r"<[^>]+>", lambda tag: _restyle(tag[0], name), text)
    text = re.sub(r">\s*\n\s*<", "><", text)
    head = f'<svg role="img" aria-label="{escape(alt)}" stroke-linejoin="round"'
    return text.strip().replace("<svg", head, 1)


def _restyle(tag: str, name: str) -> str:
    tag = re.sub(r"(-?\d+\.\d{2})\d+", r"\1", tag)
    tag = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", tag)
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", tag)
    for key, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{key}, {colour})")
    return " ".join(tag.split())
