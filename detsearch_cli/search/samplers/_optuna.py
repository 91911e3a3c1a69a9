"""Optuna's own samplers behind our ask/tell: an in-memory study that is replayed like every other sampler."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from copy import copy

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from detsearch_cli.parts import Part
from detsearch_cli.search.samplers.base import ProductSampler, Proposal, trusted
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


FORGET_AFTER = 200
"""Refusals after which a study is copied without them: every question reads all of a study's trials, so that ten
thousand refused ones would cost minutes."""


class OptunaSampler(ProductSampler):
    """Asks and tells an in-memory study; its random state lives in Optuna's sampler, seeded at each beginning."""

    def __init__(
        self, space: Product, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = self._begun(seed)
        self._distributions = distributions(space)
        self._numbers: dict[str, list[int]] = {}  # of the trials under way, by candidate
        self._told: dict[str, tuple[float, int]] = {}  # candidate -> its mean, over so many seeds
        self._refused: set[int] = set()
        self._begun_anew = 0

    @abstractmethod
    def build(self, seed: int) -> optuna.samplers.BaseSampler:
        """The seeded Optuna sampler."""

    def _begun(self, seed: int) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental options, parameters of one value
            return optuna.create_study(direction="maximize", sampler=self.build(seed))

    def propose(self) -> Proposal | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._study.ask(self._distributions)
        params = trial.params  # a copy, made anew each time it is asked for
        candidate = {p.name: params[p.name] for p in self.space.parameters}
        self._numbers.setdefault(key(candidate), []).append(trial.number)
        return Proposal(candidate)

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        name = key(proposal.candidate)
        self._told[name] = value, seeds
        self._study.tell(self._numbers[name].pop(0), value)

    def tell_again(self, proposal: Proposal, value: float, seeds: int) -> None:
        self._told[key(proposal.candidate)] = value, seeds
        self._begin_anew()

    def fail(self, proposal: Proposal) -> None:
        # Optuna's samplers leave failed trials out of their models
        self._study.tell(self._numbers[key(proposal.candidate)].pop(0), state=TrialState.FAIL)

    def refused(self, proposal: Proposal, reason: str) -> None:
        number = self._numbers[key(proposal.candidate)].pop(0)
        self._study.tell(number, state=TrialState.FAIL)
        self._refused.add(number)
        if len(self._refused) >= FORGET_AFTER:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Go on in a study without the refused candidates, and with what is known of the others by now.

        Optuna's study cannot change a value, nor forget. Its sampler begins anew, too: it remembers trials by their
        numbers, which change. Its seed then depends on how often that was, so that it does not propose again what it
        began with.
        """
        self._begun_anew += len(self._refused) + 1
        old, self._study = self._study, self._begun(self.seed + self._begun_anew)
        values = self._values()
        renumbered: dict[int, int] = {}
        for trial in old.get_trials(deepcopy=False):
            if trial.number not in self._refused:
                renumbered[trial.number] = len(renumbered)
                if trial.state == TrialState.COMPLETE:
                    trial = copy(trial)
                    trial.value = values[key({p.name: trial.params[p.name] for p in self.space.parameters})]
                self._study.add_trial(trial)
        self._numbers = {name: [renumbered[n] for n in numbers] for name, numbers in self._numbers.items()}
        self._refused.clear()

    def _values(self) -> dict[str, float]:
        """Of every candidate that was told."""
        means, seeds = np.array(list(self._told.values())).T if self._told else np.zeros((2, 0))
        if (seeds > 1).any():
            means = trusted(means, seeds, self.noise)
        return dict(zip(self._told, means.tolist(), strict=True))
