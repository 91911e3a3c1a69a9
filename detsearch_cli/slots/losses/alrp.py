"""aLRP Loss: average localisation-recall-precision, one ranking error for classes and boxes that balances itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from detsearch_cli.slots.losses._ranking import GivenGradient, Negatives, ramp_sums, ramps_below, split_scores
from detsearch_cli.slots.losses.base import DetectionLoss, box_loss, mean_over_ranks
from detsearch_cli.structures import Assignment, Dense, Targets, TrainingStep

LEAST = 1e-5
"""A positive with fewer negatives above it than this moves nothing: the released code's bound."""
START = 50.0
"""What the regression term is multiplied by in the first epoch. Source: the released code."""


class ALRP(DetectionLoss):
    """Source: Oksuz et al. 2020 (A Ranking-based, Balanced Loss Function Unifying Classification and Localisation in Object
    Detection), Eq. 9 to 14, and its released code.

    Each positive moves up by the negatives above it and the localisation errors of the positives above it, as parts of its
    rank; each negative moves down by its part in that. The localisation error is (1 - GIoU) / 2, and the regression term
    weighs a positive's by all the ranks that it takes part in. Exact for delta > 0, too.

    Self-balancing: in each epoch the regression term is multiplied by the mean of both terms over the mean of the regression
    term in the epoch before. An epoch is the training's own, where the released code counts 7,330 steps (COCO's).
    Micro-batches and the processes of a distributed training rank their own images; the balance is that of all of them.
    """

    ranks: ClassVar[bool] = True

    delta: float = Field(default=1.0, ge=0, le=1000, description="half the width of the ramp; 0: a step")

    _state: dict[str, float] = PrivateAttr(default_factory=lambda: {"epoch": 0.0, "weight": START})
    _sums: Tensor | None = PrivateAttr(
        None
    )  # of both terms in this epoch; on the device, or each step would wait

    def __call__(self, dense: Dense, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        scores, positive, left_out, pairs = split_scores(dense, assignment, targets)
        errors = box_loss(dense, pairs, targets, "giou") / 2
        classification, regression = scores[:0].sum(), errors.sum()
        if len(positive):
            value, gradient, shares = localisation_recall_precision(
                scores.detach(), errors.detach(), positive, left_out, self.delta
            )
            classification = GivenGradient.apply(scores, value, gradient)
            regression = (shares.to(errors.dtype) * errors).sum()
        # every rank is here in every step, with or without a positive, and remembers the same
        now = mean_over_ranks(torch.stack([classification, regression]), minimum=0.0).double()
        self._sums = now if self._sums is None else self._sums + now
        return {"classification": classification, "regression": self._state["weight"] * regression}

    def before_step(self, step: TrainingStep) -> None:
        """A new epoch begins with the balance of the one before."""
        if step.epoch == self._state["epoch"]:
            return
        classification, regression = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        self._state["epoch"] = float(step.epoch)
        if regression > 0:
            self._state["weight"] = (classification + regression) / regression
        self._sums = None

    def state(self) -> dict[str, float]:
        sums = [0.0, 0.0] if self._sums is None else self._sums.tolist()
        return {**self._state, "classification": sums[0], "regression": sums[1]}

    def restore(self, state: dict[str, float], device: torch.device) -> None:
        self._state = {key: state[key] for key in self._state}
        sums = [state["classification"], state["regression"]]
        self._sums = torch.tensor(sums, dtype=torch.float64, device=device)


@torch.no_grad()
def localisation_recall_precision(
    scores: Tensor, errors: Tensor, positive: Tensor, left_out: Tensor, delta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """1 minus the mean precision, the update of every score as its gradient, and each positive's share of the regression.

    scores (N,), localisation errors (P,) of the positives (P,) -> (), (N,), (P,).
    """
    if not bool(scores.isfinite().all()):
        nothing = torch.full_like(scores, torch.nan, dtype=torch.float64)
        return scores.new_full((), torch.nan), nothing, nothing[positive]
    negatives, errors = Negatives(scores, positive, left_out, delta), errors.double()
    own = negatives.own
    itself = 1.0 if delta == 0 else 0.5  # what a positive counts for in the sums over positives
    wrong = negatives.sums()
    rank = 1 + ramp_sums(own, own, delta) - itself + wrong
    badly_placed = ramp_sums(own, own, delta, errors) - itself * errors
    lacks = torch.where(wrong > LEAST, (badly_placed + wrong) / rank, 0.0)
    gradient = negatives.spread(lacks / wrong.clamp(min=LEAST))
    gradient[positive] = -lacks
    # a step here whatever delta is, as the released code sums over positives in the order of their scores
    shares = ramps_below(own, own, 0.0, 1 / rank)
    return (wrong / rank).mean(), gradient / len(positive), shares / len(positive)
