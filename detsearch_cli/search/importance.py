"""Which parameters matter, estimated from a study's trials."""

from __future__ import annotations

import warnings

from detsearch_cli.search.study import Study

MIN_TRIALS = 8


def importances(study: Study, seed: int = 0) -> dict[str, float]:
    """Parameter name -> share of the value's variance, summing to 1, largest first; deterministic.

    fANOVA (Hutter, Hoos and Leyton-Brown 2014): a random forest is fitted to (candidate, value) and its
    variance split by parameter. Empty with fewer than 8 completed candidates, or where all values are equal:
    then there is nothing to split, and a ranking would be noise. The baseline and repeats are left out.
    """
    rows = [row for row in study.rows if row.trained and row.state == "complete" and row.value is not None]
    if len(rows) < MIN_TRIALS or len({row.value for row in rows}) < 2:
        return {}
    import optuna

    from detsearch_cli.search.samplers._optuna import distributions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    varying = [
        p.name for p in study.space.parameters if len({(row.candidate or {})[p.name] for row in rows}) > 1
    ]
    if not varying:
        return {}
    known = distributions(study.space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = optuna.create_study(direction="maximize")
        for row in rows:
            memory.add_trial(
                optuna.trial.create_trial(
                    params=dict(row.candidate or {}), distributions=known, value=row.value
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        found = optuna.importance.get_param_importances(memory, evaluator=evaluator, params=varying)
    return {name: float(share) for name, share in found.items()}
