"""Covariance matrix adaptation evolution strategy, from Optuna."""

from __future__ import annotations

import optuna
from pydantic import Field

from detsearch_cli.option import MOST_TRIALS
from detsearch_cli.parts import Part
from detsearch_cli.search.samplers._optuna import OptunaSampler


class CmaEs(OptunaSampler):
    """Source: Hansen 2016. Choices and one-parameter spaces, which it cannot vary, are drawn at random."""

    class Options(Part):
        """population: candidates a generation; None for 4 + floor(3 ln d), Hansen's choice for d parameters."""

        population: int | None = Field(None, ge=4, le=MOST_TRIALS)

    options: Options

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.CmaEsSampler(
            seed=seed, warn_independent_sampling=False, popsize=self.options.population
        )
