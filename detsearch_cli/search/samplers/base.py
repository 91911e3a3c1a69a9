"""What a sampler is: a deterministic ask/tell object, rebuilt after a restart by replaying its events.

Given the same space, budget, seed, workers, options and the same sequence of events (measured, ask, tell, tell_again,
fail, refused), a sampler proposes the same candidates. It keeps no state on disk and touches no global random state.
It maximises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detsearch_cli.errors import StudyError
from detsearch_cli.parts import Part
from detsearch_cli.search.space import Candidate, Product, Space, key

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Proposal:
    """A candidate to train. epochs: up to which epoch, None for the whole training.

    The same candidate proposed again with more epochs goes on from its checkpoint.
    """

    candidate: Candidate
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"a proposal must ask for at least 1 epoch, got {self.epochs}")


class Sampler(ABC):
    """Proposes candidates of `space`.

    budget: how many candidates the search means to try, for samplers that shrink their steps or lay a grid.
    workers: how many candidates may be under way at once. options: an instance of the class's own `Options`;
    None for their defaults.
    """

    Options: ClassVar[type[Part]] = Part

    def __init__(
        self, space: Space, budget: int, seed: int, workers: int = 1, options: Part | None = None
    ) -> None:
        self.space = space
        self.budget = max(1, budget)
        self.seed = seed
        self.workers = max(1, workers)
        self.options = self.Options() if options is None else options
        self.asked = 0
        self.noise = 0.0

    @classmethod
    def accepts(cls, space: Space) -> bool:
        """True when this sampler can search such a space; most need the parameters of a product."""
        return isinstance(space, Product)

    def ask(self) -> Proposal | None:
        """The next proposal; None when nothing can be proposed before something under way is told.

        None changes nothing, so waiting is not an event and need not be replayed.
        """
        proposal = self.propose()
        if proposal is not None:
            self.asked += 1
        return proposal

    @abstractmethod
    def propose(self) -> Proposal | None:
        """The proposal number `self.asked`, or None to wait."""

    def measured(self, noise: float) -> None:
        """The standard deviation of one candidate's scores over seeds, in units of value; `self.noise` is 0 before.

        It may come between a proposal and its value.
        """
        self.noise = noise

    @abstractmethod
    def tell(self, proposal: Proposal, value: float, seeds: int = 1) -> None:
        """The finite value of a proposal that was asked, its mean over so many seeds; higher is better."""

    def tell_again(self, proposal: Proposal, value: float, seeds: int) -> None:  # noqa: B027
        """A candidate that was told has more seeds by now, and this mean. Nothing, for a sampler that learns nothing."""

    @abstractmethod
    def fail(self, proposal: Proposal) -> None:
        """A proposal that was asked has no value: its training failed."""

    @abstractmethod
    def refused(self, proposal: Proposal, reason: str) -> None:
        """A proposal that was asked is not trained. There may be ten thousand of these before one that is."""

    @property
    def exhausted(self) -> bool:
        """True when this sampler will never propose again."""
        return False

    def restore(self, proposal: Proposal) -> None:
        """Replay an ask event: afterwards the sampler is as if `ask` had returned `proposal`.

        Raises StudyError when it now proposes something else, as after an upgrade of the library behind it.
        """
        now = self.ask()
        if now is None or key(now.candidate) != key(proposal.candidate) or now.epochs != proposal.epochs:
            raise StudyError(
                f"the sampler proposes {now} where the ledger holds {proposal}, proposal {self.asked}; "
                "if a library was upgraded since, go back to its former version or start another --name"
            )


class ProductSampler(Sampler):
    """A sampler that needs the parameters of a product."""

    space: Product


def trusted(values: np.ndarray, seeds: np.ndarray, noise: float) -> np.ndarray:
    """Means over seeds on one scale, for what takes a value for the truth. values, seeds (n,) -> (n,).

    Each is drawn towards the mean of all, the more the fewer seeds it has (Efron and Morris 1975); then all are stretched,
    so that those of one seed are as they were told: only the differences between many and few seeds matter.
    """
    import numpy as np

    spread2 = max(float(np.var(values) - (noise**2 / seeds).mean()), (0.1 * noise) ** 2, 1e-12)
    center = values.mean()
    return np.asarray(center + (values - center) * (spread2 + noise**2) / (spread2 + noise**2 / seeds))


def stream(seed: int, index: int) -> np.random.Generator:
    """A random generator of its own for proposal number `index`, so that no state has to be carried along."""
    import numpy as np

    return np.random.default_rng([seed, index])
