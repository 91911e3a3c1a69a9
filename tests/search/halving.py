"""Samplers of the tests that ask for candidates at fewer epochs first."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from detsearch_cli.search import config
from detsearch_cli.search.samplers.base import ProductSampler, Proposal, stream

RUNGS = (1, 3, None)


class Scripted(ProductSampler):
    """Proposes a list, then ends; keeps what it hears."""

    script: ClassVar[list[Proposal]] = []
    heard: ClassVar[list[tuple[Any, ...]]] = []

    @property
    def exhausted(self) -> bool:
        return self.asked >= len(self.script)

    def propose(self) -> Proposal | None:
        return None if self.exhausted else self.script[self.asked]

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        self.heard.append((proposal.candidate, proposal.epochs, value))

    def fail(self, proposal: Proposal) -> None:
        self.heard.append((proposal.candidate, proposal.epochs, None))

    def refused(self, proposal: Proposal, reason: str) -> None: ...


class Halving(ProductSampler):
    """Successive halving: four candidates at 1 epoch, the better two at 3, the best at the whole; again and again."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rung, self._left, self._under_way = 0, 4, 0
        self._values: list[tuple[float, int, Proposal]] = []
        self._next: list[Proposal] = []

    def propose(self) -> Proposal | None:
        if self._next:
            self._under_way += 1
            return self._next.pop(0)
        if self._left:
            self._left -= 1
            self._under_way += 1
            return Proposal(self.space.sample(stream(self.seed, self.asked)), RUNGS[0])
        return None  # the rung is not over

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        self._values.append((value, -len(self._values), proposal))
        self._under_way -= 1
        if self._under_way or self._left or self._next:
            return
        better = sorted(self._values, key=lambda told: told[:2], reverse=True)[: len(self._values) // 2]
        self._values, self._rung = [], self._rung + 1
        if self._rung == len(RUNGS):
            self._rung, self._left = 0, 4
        else:
            self._next = [Proposal(told[2].candidate, RUNGS[self._rung]) for told in better]

    def fail(self, proposal: Proposal) -> None:
        self.tell(proposal, float("-inf"))

    def refused(self, proposal: Proposal, reason: str) -> None:
        self.fail(proposal)


def install(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Make it found as `halving`."""
    found = config._sampler_class
    kinds = {"halving": Halving}
    patched = lambda name: kinds.get(name) or found(name)  # noqa: E731
    if monkeypatch is None:
        config._sampler_class = patched
    else:
        monkeypatch.setattr(config, "_sampler_class", patched)
