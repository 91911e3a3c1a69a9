"""Gaussian process, largest expected improvement."""

from __future__ import annotations

from detsearch_cli.search.samplers._pysot import PySOT


class ExpectedImprovement(PySOT):
    """Source: Jones, Schonlau and Welch 1998, as in pySOT."""

    strategy = "ei"
