"""Uniformly random candidates (Bergstra and Bengio 2012)."""

from __future__ import annotations

from detsearch_cli.parts import Part
from detsearch_cli.search.samplers.base import Proposal, Sampler, stream
from detsearch_cli.search.space import Space, key


class Random(Sampler):
    """Independent draws of any space; a known candidate is drawn again, up to 100 times, so that few repeat."""

    def __init__(
        self, space: Space, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        super().__init__(space, budget, seed, workers, options)
        self._seen: set[str] = set()

    @classmethod
    def accepts(cls, space: Space) -> bool:
        return True  # every space can be drawn from

    def propose(self) -> Proposal | None:
        rng = stream(self.seed, self.asked)
        for _ in range(100):
            candidate = self.space.sample(rng)
            if (name := key(candidate)) not in self._seen:
                break
        self._seen.add(name)
        return Proposal(candidate)

    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        """Random search learns nothing."""

    def fail(self, proposal: Proposal) -> None:
        """Random search learns nothing."""

    def refused(self, proposal: Proposal, reason: str) -> None:
        """Random search learns nothing."""
