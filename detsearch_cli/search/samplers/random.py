"""Uniformly random candidates (Bergstra and Bengio 2012)."""

from __future__ import annotations

from detsearch_cli.search.samplers.base import Sampler, stream
from detsearch_cli.search.space import Candidate, Space, key


class Random(Sampler):
    """Independent uniform draws; a known candidate is drawn again, up to 100 times, so that few repeat."""

    def __init__(self, space: Space, budget: int, seed: int, workers: int = 1) -> None:
        super().__init__(space, budget, seed, workers)
        self._seen: set[str] = set()

    def propose(self) -> Candidate | None:
        rng = stream(self.seed, self.asked)
        for _ in range(100):
            candidate = self.space.sample(rng)
            if key(candidate) not in self._seen:
                break
        self._seen.add(key(candidate))
        return candidate

    def tell(self, candidate: Candidate, value: float) -> None:
        """Random search learns nothing."""

    def fail(self, candidate: Candidate) -> None:
        """Random search learns nothing."""
