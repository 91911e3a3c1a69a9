"""Charts: real content, page colours, no clash of ids, the same bytes for the same input."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from detsearch_cli.report import figures
from detsearch_cli.report.figures import EpochPoint
from tests.trials import Trial

WIDTHS = (figures.WIDE, figures.NARROW)
ROWS = [
    Trial(0, None, "complete", 0.381, 20.0),
    Trial(1, {"k": 3}, "complete", 0.295, 20.0),
    Trial(2, {"k": 5}, "failed", None, 3.0, "loss became NaN"),
    Trial(3, {"k": 4}, "complete", 0.412, 20.0),
    Trial(4, {"k": 4}, "running"),
]
EPOCHS = [EpochPoint(e, {"cls": 1 / e, "box": 2 / e}, 0.03 * e if e % 2 == 0 else None) for e in range(1, 7)]


def test_a_chart_of_low_scores_names_none_below_zero() -> None:
    low = [Trial(0, None, "complete", 0.0, 20.0), Trial(1, {"k": 3}, "complete", 0.06, 20.0)]
    for trials in (low, [*low, Trial(2, {"k": 4}, "failed", None, 3.0, "loss became NaN")]):
        shown = texts(figures.ap_per_trial(trials, 0.0))
        assert "0" in shown
        assert not [text for text in shown if text.startswith(("-", "\N{MINUS SIGN}"))]


def texts(svg: str) -> list[str]:
    """Text nodes of a chart, by an XML parser."""
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def markers(svg: str, colour: str) -> int:
    """How often a marker is placed in this colour."""
    uses = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")
    return sum(f"var(--{colour}," in u.get("style", "") for u in uses)


@pytest.mark.parametrize("width", WIDTHS)
def test_search_chart_shows_best_baseline_and_failed_trials(width: float) -> None:
    svg = figures.ap_per_trial(ROWS, 0.381, width=width)
    assert {"41.2", "38.1", "baseline", "best so far", "failed"} <= set(texts(svg))
    assert markers(svg, "dot") == 3 + 1  # three scored trials and the legend's sample
    assert markers(svg, "fail") == 1 + 1
    label = ET.fromstring(svg).get("aria-label")
    assert label == "AP per trial: 3 scored, 1 failed; best 41.2 at trial 3; baseline 38.1."


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[2:3], ROWS[4:], ROWS[1:2] * 2])
def test_search_chart_draws_any_stage_of_a_search(rows: list[Trial]) -> None:
    assert ET.fromstring(figures.ap_per_trial(rows, None)).get("role") == "img"


def test_search_chart_leaves_out_scores_that_are_no_numbers() -> None:
    svg = figures.ap_per_trial([*ROWS, Trial(5, {"k": 1}, "complete", math.nan)], math.nan)
    assert "nan" not in svg.lower().replace("nan-", "")
    assert "baseline" not in texts(svg)


def test_a_stopped_trial_is_a_hollow_dot_that_never_is_the_best() -> None:
    svg = figures.ap_per_trial([*ROWS, Trial(5, {"k": 1}, "stopped", 0.9)], 0.381)
    assert "stopped early" in texts(svg)
    assert "stopped early" not in texts(figures.ap_per_trial(ROWS, 0.381))
    label = ET.fromstring(svg).get("aria-label")
    assert label == "AP per trial: 3 scored, 1 failed, 1 stopped early; best 41.2 at trial 3; baseline 38.1."
    assert markers(svg, "dot") == 3 + 1


def test_best_so_far_never_falls() -> None:
    rows = [Trial(i, {"k": i}, "complete", v) for i, v in enumerate([0.1, 0.5, 0.2, 0.6, 0.3])]
    svg = figures.ap_per_trial(rows, None)
    path = next(p for p in re.findall(r"<path[^>]*>", svg) if "--accent" in p and p.count(" L ") > 3)
    heights = [float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", path)]
    assert heights == sorted(heights, reverse=True)  # y grows downward in SVG
    assert len(set(heights)) == 3


def test_the_noise_is_a_band_and_the_baseline_s_seeds_count_by_their_mean() -> None:
    rows = [
        Trial(0, None, "complete", 0.2),
        Trial(1, None, "complete", 0.4, again_of=0, seed=1),
        Trial(2, {"k": 1}, "complete", 0.35),
    ]
    svg = figures.ap_per_trial(rows, 0.3, noise=0.1)
    assert "noise of one training" in texts(svg)
    said = ET.fromstring(svg).get("aria-label") or ""
    assert "best 30.0 at trial 0; trial 2 leads, expected gain" in said and said.endswith("; baseline 30.0.")
    assert "noise of one training" not in texts(figures.ap_per_trial(rows, 0.3))


def test_where_the_noise_is_measured_each_candidate_has_what_is_expected_of_it() -> None:
    rows = [
        Trial(0, None, "complete", 0.2),
        Trial(1, None, "complete", 0.4, again_of=0, seed=1),
        *(Trial(2 + k, {"k": k}, "complete", 0.3 + 0.01 * k) for k in range(3)),
    ]
    assert "expected, 95%" in texts(figures.ap_per_trial(rows, 0.3))
    assert "best so far" not in texts(figures.ap_per_trial(rows, 0.3))
    assert "best so far" in texts(figures.ap_per_trial(rows[2:], None))


def test_charts_are_deterministic_and_ask_nothing_of_the_network() -> None:
    for width in WIDTHS:
        for draw in (
            lambda w: figures.ap_per_trial(ROWS, 0.381, width=w),
            lambda w: figures.importances({"a": 0.7, "b": 0.3}, width=w),
            lambda w: figures.training_curves(EPOCHS, width=w),
            lambda w: figures.interval(0.02, -0.01, 0.05, [0.01, 0.03], width=w),
        ):
            svg = draw(width)
            assert svg == draw(width)
            assert not re.search(r'(?:href|src)="(?!#)', svg)
            assert not re.search(r"<(?:metadata|script|style|image)\b", svg)


def test_ids_are_unique_across_the_charts_of_a_page() -> None:
    charts = [figures.ap_per_trial(ROWS, 0.381, width=w) for w in WIDTHS]
    charts += [figures.training_curves(EPOCHS, width=w) for w in WIDTHS]
    ids = [i for svg in charts for i in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))
    for svg in charts:
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used and used <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_every_colour_follows_the_theme_of_the_page() -> None:
    svg = (
        figures.ap_per_trial(ROWS, 0.381) + figures.training_curves(EPOCHS) + figures.importances({"a": 1.0})
    )
    plain = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", svg)
    assert not re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", plain)


def test_importances_are_ranked_capped_and_escaped() -> None:
    values = {f"p{i:02d}": (i + 1) / 100 for i in range(30)} | {"<script>$x_": 0.9}
    svg = figures.importances(values)
    shown = texts(svg)
    assert "<script>$x_" in shown and "<script>" not in svg
    assert "p29" in shown and "p00" not in shown
    assert shown.index("<script>$x_") < shown.index("p29")
    assert "11 smaller ones not drawn" in svg


def test_importances_of_nothing_are_an_empty_chart() -> None:
    assert ET.fromstring(figures.importances({"a": 0.0, "b": math.nan})).get("role") == "img"


@pytest.mark.parametrize("width", WIDTHS)
def test_training_curves_name_every_term_and_the_last_score(width: float) -> None:
    svg = figures.training_curves(EPOCHS, width=width)
    assert {"cls", "box", "epoch", "loss", "AP", "18.0"} <= set(texts(svg))
    assert "AP 18.0 after epoch 6" in svg


def test_training_curves_survive_a_run_without_scores() -> None:
    assert "none logged" in figures.training_curves([EpochPoint(1, {})])


def test_interval_says_its_numbers() -> None:
    svg = figures.interval(0.0242, 0.0187, 0.0297, [0.02, 0.03])
    assert "Difference +2.4, 95% interval +1.9 to +3.0." in svg
    assert markers(svg, "dot") == 2


@pytest.mark.parametrize(
    ("fraction", "signed", "said"),
    [
        (0.381, False, "38.1"),
        (0.0, True, "+0.0"),
        (-0.0124, True, "\N{MINUS SIGN}1.2"),
        (0.0003, True, "+0.03"),  # rounding to +0.0 would hide on which side of zero it lies
        (None, False, "–"),
        (math.nan, True, "–"),
        (math.inf, False, "–"),
    ],
)
def test_points_keep_the_sign(fraction: float | None, signed: bool, said: str) -> None:
    assert figures.points(fraction, signed) == said


def test_png_is_deterministic() -> None:
    from matplotlib.figure import Figure

    def png() -> bytes:
        canvas = Figure(figsize=(2, 1))
        canvas.subplots().plot([1, 2], [3, 4])
        return figures.to_png(canvas)

    assert png() == png()
    assert png().startswith(b"\x89PNG")
