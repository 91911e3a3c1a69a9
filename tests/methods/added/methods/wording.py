"""Search a list of warm-up steps written as words: a method whose candidates are no product of ranges, for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from detsearch_cli.errors import SpaceError
from detsearch_cli.methods.base import Method


@dataclass(frozen=True)
class Sums:
    """Nested sums: {"sum": [1, {"sum": [2, 3]}]}."""

    kind: ClassVar[str] = "sums"
    size: ClassVar[int | None] = None

    def sample(self, rng: Any) -> dict[str, Any]:
        inner: list[Any] = [int(n) for n in rng.integers(0, 9, size=2)]
        return {"sum": [*inner, self.sample(rng)]} if rng.random() < 0.5 else {"sum": inner}

    def check(self, candidate: Any) -> None:
        if set(candidate) != {"sum"}:
            raise SpaceError(f"a candidate must be a sum, got {candidate}")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_json(cls, content: Any) -> Sums:
        return cls()


class Wording(Method):
    sampler = "random"

    def space(self, recipe: Any) -> Any:
        return Sums()

    def fragment(self, recipe: Any, candidate: Any) -> dict[str, Any]:
        return {"schedule": {"warmup_steps": total(candidate)}}


def total(candidate: Any) -> int:
    return sum(total(part) if isinstance(part, dict) else part for part in candidate["sum"])
