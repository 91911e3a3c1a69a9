"""Two candidates at one epoch, then the better one to its end: a sampler for the tests."""

from __future__ import annotations

from typing import Any

from detsearch_cli.search.samplers.base import Proposal, Sampler, stream
from detsearch_cli.search.space import Candidate


class Halving(Sampler):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.values: list[tuple[float, int, Candidate]] = []

    def propose(self) -> Proposal | None:
        if self.asked < 2:
            return Proposal(self.space.sample(stream(self.seed, self.asked)), epochs=1)
        if len(self.values) < 2:
            return None
        return Proposal(max(self.values)[2])

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        self.values.append((value, -len(self.values), proposal.candidate))

    def fail(self, proposal: Proposal) -> None:
        self.values.append((-1.0, -len(self.values), proposal.candidate))

    def refused(self, proposal: Proposal, reason: str) -> None: ...

    @property
    def exhausted(self) -> bool:
        return self.asked >= 3
