"""What a sampler is: a deterministic ask/tell object, rebuilt after a restart by replaying the ledger.

Given the same space, budget, seed, workers and the same sequence of events (ask, tell, fail), a sampler
proposes the same candidates. It keeps no state on disk and touches no global random state. It maximises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from detsearch_cli.errors import StudyError
from detsearch_cli.search.space import Candidate, Space, key

if TYPE_CHECKING:
    import numpy as np


class Sampler(ABC):
    """Proposes candidates of `space`.

    budget: how many candidates the search means to try, for samplers that shrink their steps or lay a grid.
    workers: how many candidates may be under way at once.
    """

    def __init__(self, space: Space, budget: int, seed: int, workers: int = 1) -> None:
        self.space = space
        self.budget = max(1, budget)
        self.seed = seed
        self.workers = max(1, workers)
        self.asked = 0

    def ask(self) -> Candidate | None:
        """The next candidate; None when nothing can be proposed before something under way is told.

        None changes nothing, so waiting is not an event and need not be replayed.
        """
        candidate = self.propose()
        if candidate is not None:
            self.asked += 1
        return candidate

    @abstractmethod
    def propose(self) -> Candidate | None:
        """The candidate number `self.asked`, or None to wait."""

    @abstractmethod
    def tell(self, candidate: Candidate, value: float) -> None:
        """The finite value of a candidate that was asked; higher is better."""

    @abstractmethod
    def fail(self, candidate: Candidate) -> None:
        """A candidate that was asked has no value: its training failed."""

    @property
    def exhausted(self) -> bool:
        """True when this sampler will never propose again."""
        return False

    def restore(self, candidate: Candidate) -> None:
        """Replay an ask event of the ledger: afterwards the sampler is as if `ask` had returned `candidate`.

        Raises StudyError when it now proposes something else, as after an upgrade of the library behind it.
        """
        proposed = self.ask()
        if proposed is None or key(proposed) != key(candidate):
            raise StudyError(
                f"the sampler proposes {proposed} where the ledger holds {candidate}, proposal {self.asked}; "
                "if a library was upgraded since, go back to its former version or start another --name"
            )


def stream(seed: int, index: int) -> np.random.Generator:
    """A random generator of its own for proposal number `index`, so that no state has to be carried along."""
    import numpy as np

    return np.random.default_rng([seed, index])
