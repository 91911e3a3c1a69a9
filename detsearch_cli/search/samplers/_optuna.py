"""Optuna's own samplers behind our ask/tell: an in-memory study that is replayed like every other sampler."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from detsearch_cli.parts import Part
from detsearch_cli.search.samplers.base import ProductSampler, Proposal
from detsearch_cli.search.space import Choice, Integer, Product, key


def distributions(space: Product) -> dict[str, BaseDistribution]:
    """The space in Optuna's terms, parameter name -> distribution."""
    result: dict[str, BaseDistribution] = {}
    for p in space.parameters:
        if isinstance(p, Integer):
            result[p.name] = IntDistribution(p.low, p.high)
        elif isinstance(p, Choice):
            result[p.name] = CategoricalDistribution(p.options)
        else:
            result[p.name] = FloatDistribution(p.low, p.high, log=p.log)
    return result


class OptunaSampler(ProductSampler):
    """Asks and tells an in-memory study; its random state lives in the sampler, seeded once."""

    def __init__(
        self, space: Product, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental options, parameters of one value
            self._study = optuna.create_study(direction="maximize", sampler=self.build())
        self._distributions = distributions(space)
        self._trials: dict[str, list[Any]] = {}

    @abstractmethod
    def build(self) -> optuna.samplers.BaseSampler:
        """The seeded Optuna sampler."""

    def propose(self) -> Proposal | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(self._distributions)
        candidate = {p.name: trial.params[p.name] for p in self.space.parameters}
        self._trials.setdefault(key(candidate), []).append(trial)
        return Proposal(candidate)

    def tell(self, proposal: Proposal, value: float) -> None:
        self._study.tell(self._trials[key(proposal.candidate)].pop(0), value)

    def fail(self, proposal: Proposal) -> None:
        # Optuna's samplers leave failed trials out of their models
        self._study.tell(self._trials[key(proposal.candidate)].pop(0), state=TrialState.FAIL)

    def refused(self, proposal: Proposal, reason: str) -> None:
        self.fail(proposal)
