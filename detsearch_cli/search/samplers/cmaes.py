"""Covariance matrix adaptation evolution strategy, from Optuna."""

from __future__ import annotations

import optuna

from detsearch_cli.search.samplers._optuna import OptunaSampler


class CmaEs(OptunaSampler):
    """Source: Hansen 2016. Choices and one-parameter spaces, which it cannot vary, are drawn at random."""

    def build(self) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(seed=self.seed, warn_independent_sampling=False)
