"""Tree-structured Parzen estimator, from Optuna."""

from __future__ import annotations

import optuna

from detsearch_cli.search.samplers._optuna import OptunaSampler


class Tpe(OptunaSampler):
    """Source: Bergstra et al. 2011. The first ten candidates, at most half the budget, are random."""

    def build(self) -> optuna.samplers.BaseSampler:
        startup = max(1, min(10, self.budget // 2))
        return optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=startup, multivariate=True)
