"""Gaussian process, lowest lower confidence bound (of the error)."""

from __future__ import annotations

from detsearch_cli.search.samplers._pysot import PySOT


class LowerConfidenceBound(PySOT):
    """Source: Srinivas et al. 2010, as in pySOT."""

    strategy = "lcb"
