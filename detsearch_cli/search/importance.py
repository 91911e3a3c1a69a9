"""Which parameters matter, estimated from a study's trials."""

from __future__ import annotations

import warnings

from detsearch_cli.search.study import Study
from detsearch_cli.trials import by_candidate, mean_of

MIN_TRIALS = 8


def importances(study: Study, seed: int = 0) -> dict[str, float]:
    """Parameter name -> share of the value's variance, summing to 1, largest first; deterministic.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014): a random forest is fitted to (candidate, value) and its
    variance split by parameter. Empty with fewer than 8 completed candidates, where all values are equal, and for
    a space that is no product: nothing to split there, and a ranking would be noise. The baseline, repeats and
    stopped trials are left out.
    """
    space = study.config.space
    trials = [mean_of(group) for group in by_candidate(study.trials) if group[0].trained]
    if space is None or len(trials) < MIN_TRIALS or len({trial.value for trial in trials}) < 2:
        return {}
    import optuna

    from detsearch_cli.search.samplers._optuna import distributions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    varying = [p.name for p in space.parameters if len({(t.candidate or {})[p.name] for t in trials}) > 1]
    if not varying:
        return {}
    known = distributions(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = optuna.create_study(direction="maximize")
        for trial in trials:
            memory.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.candidate or {}), distributions=known, value=trial.value
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        shares = optuna.importance.get_param_importances(memory, evaluator=evaluator, params=varying)
    return {name: float(share) for name, share in shares.items()}
