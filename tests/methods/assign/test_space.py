"""Bins, edges, names: Table 5 of HPS-Det and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detsearch_cli.errors import SpaceError
from detsearch_cli.methods.assign.space import bin_labels, build, parse_bins, parse_edges

LEVELS = (3, 7)
THREE, FIVE = (0.5, 2.0), (0.25, 0.5, 2.0, 4.0)


@pytest.mark.parametrize(
    ("text", "edges", "levels", "size"),
    [
        ("3,3,3,3,3", (THREE,) * 5, (3, 4, 5, 6, 7), 15),
        ("1,1,1,1,1", ((),) * 5, (3, 4, 5, 6, 7), 5),
        ("5", (FIVE,), None, 5),
        ("3", (THREE,), None, 3),
        ("1", ((),), None, 1),
        ("1,3,3,3,5", ((), THREE, THREE, THREE, FIVE), (3, 4, 5, 6, 7), 15),
        (None, (THREE,) * 5, (3, 4, 5, 6, 7), 15),
    ],
)
def test_bins_are_those_of_table_5(text, edges, levels, size):
    bins = parse_bins(text, LEVELS)
    assert (bins.edges, bins.levels) == (edges, levels)
    assert len(build(bins, 25).parameters) == size


def test_the_default_is_three_bins_for_each_level_of_any_pyramid():
    assert parse_bins(None, (3, 6)) == parse_bins("3,3,3,3", (3, 6))
    assert parse_bins(None, (3, 4), (1.0,)).edges == ((1.0,), (1.0,))


def test_own_edges_hold_for_every_row_of_several_bins():
    assert parse_bins("1,2,2", (3, 5), (1.5,)).edges == ((), (1.5,), (1.5,))
    assert parse_bins("3", LEVELS, (1.0, 3.0)).edges == ((1.0, 3.0),)


@pytest.mark.parametrize(
    ("text", "edges", "says"),
    [
        ("3,3,3", None, "one for each of the detector's 5 levels P3 to P7, got '3,3,3'; try '3,3,3,3,3'"),
        ("3,3,3,3,3,3", None, "5 levels"),
        ("4", None, "4 bins need 3 aspect-ratio edges"),
        ("3", (1.0,), "3 bins need 2 edges, got 1: 1"),
        ("0", None, "at least 1"),
        ("three", None, "whole numbers"),
        ("", None, "whole numbers"),
        ("3;3", None, "whole numbers"),
    ],
)
def test_bins_that_fit_no_detector_are_refused(text, edges, says):
    with pytest.raises(SpaceError, match=says):
        parse_bins(text, LEVELS, edges)


def test_edges_are_read_as_fractions_or_decimals():
    assert parse_edges("1/2, 2") == (0.5, 2.0)
    assert parse_edges("0.25,1") == (0.25, 1.0)


@pytest.mark.parametrize("text", ["", "2,1", "1,1", "0,1", "-1,1", "a", "1/0"])
def test_edges_that_are_no_ascending_ratios_are_refused(text):
    with pytest.raises(SpaceError, match="ascending positive ratios"):
        parse_edges(text)


def test_names_say_level_and_shape_and_never_repeat():
    assert build(parse_bins("3,3", (3, 4)), 9).names == (
        "P3.wide", "P3.square", "P3.tall", "P4.wide", "P4.square", "P4.tall",
    )  # fmt: skip
    assert build(parse_bins("1,1", (3, 4)), 9).names == ("P3", "P4")
    assert build(parse_bins("1", (3, 4)), 9).names == ("all",)
    assert build(parse_bins("5", (3, 4)), 9).names[::4] == ("all.widest", "all.tallest")
    assert build(parse_bins("3", (3, 4), (1.0, 3.0)), 9).names == ("all.bin1", "all.bin2", "all.bin3")


def test_counts_go_from_one_to_the_maximum():
    (parameter,) = build(parse_bins("1", LEVELS), 25).parameters
    assert (parameter.low, parameter.high) == (1, 25)
    with pytest.raises(SpaceError, match="at least 1, got 0; see --max-count"):
        build(parse_bins("1", LEVELS), 0)


def test_candidates_and_counts_are_each_others_inverse():
    bins = parse_bins("1,3,5", (3, 5))
    counts = [[4], [1, 2, 3], [9, 8, 7, 6, 5]]
    assert bins.counts(bins.candidate(counts)) == counts
    with pytest.raises(SpaceError, match="must have that shape"):
        bins.candidate([[4], [1, 2], [1]])
    with pytest.raises(SpaceError, match=r"'P3'"):
        bins.counts({k: v for k, v in bins.candidate(counts).items() if k != "P3"})


def test_bins_are_labelled_by_their_range():
    assert bin_labels(THREE) == ("≤ 1/2", "1/2 – 2", "> 2")
    assert bin_labels((1.2345678,)) == ("≤ 1.23457", "> 1.23457")
    assert bin_labels(()) == ("any",)


def test_describing_a_space_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from detsearch_cli.methods.assign.space import parse_bins, build; "
        "build(parse_bins('3', (3, 7)), 25); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
