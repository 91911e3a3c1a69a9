"""What can be searched: the `Space` protocol, and `Product`, the space of most methods.

A candidate is a JSON object, its names in the order of its space. A product's candidate has one value for each
named parameter: an integer range, a real range or a choice. Other spaces (formulas, architectures) belong to
their methods.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from detsearch_cli.document import checked
from detsearch_cli.errors import SpaceError

if TYPE_CHECKING:
    import numpy as np

Candidate = dict[str, Any]


class Space(Protocol):
    """What a search may try. kind: names the kind of space in JSON and in messages."""

    kind: ClassVar[str]

    def sample(self, rng: np.random.Generator) -> Candidate:
        """A candidate drawn at random."""
        ...

    def check(self, candidate: Candidate) -> None:
        """Raises SpaceError for a candidate outside the space."""
        ...

    @property
    def size(self) -> int | None:
        """Number of candidates; None when it is infinite or unknown."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back; holds "kind"."""
        ...

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The space that `to_json` wrote."""
        ...


@dataclass(frozen=True)
class Integer:
    """Whole numbers low..high, both included."""

    name: str
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise SpaceError(f"{self.name} must have low <= high, got {self.low}..{self.high}")

    @property
    def size(self) -> int:
        return self.high - self.low + 1

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def level(self, index: int, count: int) -> int:
        """Centre of the `index`-th of `count` equal parts of the range; all values when count is the size."""
        return self.low + int((index + 0.5) * self.size / count)

    def sample(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high + 1))


@dataclass(frozen=True)
class Real:
    """Real numbers low..high; uniform in the logarithm where `log`. start: where a sampler that moves begins."""

    name: str
    low: float
    high: float
    log: bool = False
    start: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise SpaceError(f"{self.name} must have finite low <= high, got {self.low}..{self.high}")
        if self.log and self.low <= 0:
            raise SpaceError(
                f"{self.name} is searched in the logarithm, so low must be above 0, got {self.low}"
            )

        if self.start is not None and not self.holds(self.start):
            raise SpaceError(f"{self.name} must start in {self.low:g}..{self.high:g}, got {self.start:g}")

    @property
    def size(self) -> int | None:
        return 1 if self.low == self.high else None

    def holds(self, value: Any) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def level(self, index: int, count: int) -> float:
        """Centre of the `index`-th of `count` equal parts of the range (of its logarithm where `log`)."""
        return self.at((index + 0.5) / count)

    def at(self, part: float) -> float:
        """The value at `part` in [0, 1] of the way from low to high."""
        if not self.log:
            value = self.low + part * (self.high - self.low)
        else:
            value = math.exp(math.log(self.low) + part * (math.log(self.high) - math.log(self.low)))
        return min(max(value, self.low), self.high)

    def sample(self, rng: np.random.Generator) -> float:
        return self.at(float(rng.random()))


@dataclass(frozen=True)
class Choice:
    """One of some strings, without an order."""

    name: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options or len(set(self.options)) != len(self.options):
            raise SpaceError(
                f"{self.name} must have distinct options, at least one, got {list(self.options)}"
            )

    @property
    def size(self) -> int:
        return len(self.options)

    def holds(self, value: Any) -> bool:
        return value in self.options

    def level(self, index: int, count: int) -> str:
        return self.options[int((index + 0.5) * self.size / count)]

    def sample(self, rng: np.random.Generator) -> str:
        return self.options[int(rng.integers(self.size))]


Parameter = Integer | Real | Choice
_KINDS: dict[str, type[Parameter]] = {"integer": Integer, "real": Real, "choice": Choice}


@dataclass(frozen=True)
class Product:
    """Every combination of the parameters' values. Raises SpaceError when empty or when names repeat."""

    kind: ClassVar[str] = "product"
    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", tuple(self.parameters))
        names = self.names
        if not names:
            raise SpaceError("a search space needs at least one parameter, got none")
        if len(set(names)) != len(names):
            raise SpaceError(f"parameter names must differ, got {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @cached_property
    def free(self) -> tuple[Parameter, ...]:
        """The parameters that can take more than one value."""
        return tuple(p for p in self.parameters if p.size != 1)

    @cached_property
    def size(self) -> int | None:
        """Number of candidates; None when a real parameter makes it infinite."""
        product = 1
        for p in self.parameters:
            if p.size is None:
                return None
            product *= p.size
        return product

    def check(self, candidate: Candidate) -> None:
        """Raises SpaceError unless the candidate has exactly this space's names, each value in its range."""
        if set(candidate) != set(self.names):
            raise SpaceError(
                f"a candidate must set {', '.join(self.names)}, got {', '.join(candidate) or 'nothing'}"
            )
        for p in self.parameters:
            if not p.holds(candidate[p.name]):
                raise SpaceError(f"{p.name} must lie in {describe(p)}, got {candidate[p.name]!r}")

    def sample(self, rng: np.random.Generator) -> Candidate:
        """A candidate drawn uniformly."""
        return {p.name: p.sample(rng) for p in self.parameters}

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` reads back."""
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        # what is not set is left out, so that spaces of before it existed are the same
        set_ = [
            {name: value for name, value in asdict(p).items() if value is not None} for p in self.parameters
        ]
        kind_of = [kinds[type(p)] for p in self.parameters]
        listed = [{"kind": k, **json.loads(json.dumps(s))} for k, s in zip(kind_of, set_, strict=True)]
        return {"kind": self.kind, "parameters": listed}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The space that `to_json` wrote. Raises SpaceError, or KeyError, TypeError or AttributeError for any other."""
        parameters: list[Parameter] = []
        for number, listed in enumerate(content["parameters"]):
            values = {name: value for name, value in listed.items() if name != "kind"}
            kind: Any = _KINDS[listed["kind"]]
            parameters.append(
                checked(values, kind, f"parameter {number} of the space", SpaceError, "restore it")
            )
        return cls(tuple(parameters))


def read_space(content: Mapping[str, Any]) -> Product | None:
    """The space in a ledger; None for a kind that only its method can read."""
    return Product.from_json(content) if content["kind"] == Product.kind else None


def describe(parameter: Parameter) -> str:
    """The parameter's range for a message: `1..25`, `0.1..1` or `a | b`."""
    if isinstance(parameter, Choice):
        return " | ".join(parameter.options)
    return f"{parameter.low:g}..{parameter.high:g}"


def key(candidate: Mapping[str, Any]) -> str:
    """Canonical name of a candidate: equal candidates have equal keys, whatever the order of their names."""
    return json.dumps(dict(candidate), sort_keys=True)
