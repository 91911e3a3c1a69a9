"""A candidate trained in stages: asked for at some epochs, later continued at more in the same folder.

Trials of one candidate have the same recipe, named by its hash. A stage is such a trial that trains; the first
one's folder holds the checkpoint that the next one goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence

from detsearch_cli.search.study import Trial


def length(epochs: int | None, whole: int) -> int:
    """Epochs that a trial asked for with `epochs` trains up to; a whole training has `whole`."""
    return whole if epochs is None else min(epochs, whole)


def trains(trial: Trial) -> bool:
    """True while the trial has no outcome and does not wait for that of another."""
    return trial.state == "running" and trial.repeat_of is None


def first_number(trial: Trial) -> int:
    """The number of the candidate's first stage."""
    return trial.number if trial.continues is None else trial.continues


def blocked(trial: Trial, trials: Sequence[Trial]) -> bool:
    """True when the stage before this one is still running: there is no checkpoint yet to go on from."""
    return trial.continues is not None and any(
        other.state == "running" and first_number(other) == trial.continues and other.repeat_of is None
        for other in trials[trial.continues : trial.number]
    )


def answering(stages: Sequence[Trial], epochs: int | None, whole: int) -> Trial | None:
    """The stage that already answers a proposal of the same recipe at `epochs`; None: it has to train.

    A stage that trains further answers, too: its checkpoint has left the shorter training behind. One that
    failed leaves nothing to go on from.
    """
    wanted = length(epochs, whole)
    return next((s for s in stages if s.state == "failed" or length(s.epochs, whole) >= wanted), None)


def value_at(trial: Trial, epochs: int) -> float | None:
    """The trial's value after that many epochs, where it was scored then; else its last one."""
    return dict(trial.scores).get(epochs, trial.value)


def hang_on(trial: Trial, ended: Trial) -> bool:
    """True when the outcome of `ended` is the running trial's, too: it repeats it, or continues what failed."""
    if trial.state != "running":
        return False
    if trial.repeat_of is not None:
        return trial.repeat_of == ended.number
    return ended.state == "failed" and trial.number > ended.number and trial.continues == first_number(ended)
