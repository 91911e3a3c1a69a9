"""A space that is no product: words, as a formula or an architecture would be. Of the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from detsearch_cli.errors import SpaceError
from detsearch_cli.search.space import Candidate


class Words:
    """{"word": ["a", "b", ...]} of one to four letters."""

    kind: ClassVar[str] = "words"
    size: int | None = None

    def __init__(self, letters: str = "abc") -> None:
        self.letters = letters

    def sample(self, rng: np.random.Generator) -> Candidate:
        return {"word": [str(letter) for letter in rng.choice(list(self.letters), rng.integers(1, 5))]}

    def check(self, candidate: Candidate) -> None:
        if not set(candidate["word"]) <= set(self.letters):
            raise SpaceError(f"a word must be made of {self.letters}, got {candidate['word']}")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "letters": self.letters}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        return cls(content["letters"])
