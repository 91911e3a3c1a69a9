"""Radial basis surrogate, perturbing all coordinates of the best (stochastic RBF)."""

from __future__ import annotations

from detsearch_cli.search.samplers._pysot import PySOT


class Srbf(PySOT):
    """Source: Regis and Shoemaker 2007."""

    strategy = "srbf"
