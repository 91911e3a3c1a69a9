"""Tree-structured Parzen estimator, from Optuna."""

from __future__ import annotations

import optuna
from pydantic import Field

from detsearch_cli.option import MOST_TRIALS
from detsearch_cli.parts import Part
from detsearch_cli.search.samplers._optuna import OptunaSampler


class Tpe(OptunaSampler):
    """Source: Bergstra et al. 2011."""

    class Options(Part):
        """startup: candidates drawn at random before the model is asked, at most half the budget."""

        startup: int = Field(10, ge=1, le=MOST_TRIALS)

    options: Options

    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        startup = max(1, min(self.options.startup, self.budget // 2))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
