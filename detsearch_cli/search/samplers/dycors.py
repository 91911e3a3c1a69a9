"""Radial basis surrogate, perturbing ever fewer coordinates of the best (DYCORS), as the paper."""

from __future__ import annotations

from detsearch_cli.search.samplers._pysot import PySOT


class Dycors(PySOT):
    """Source: Regis and Shoemaker 2013; HPS-Det, Algorithm 1."""

    strategy = "dycors"
