"""A trial as plain data, for what takes anything that looks like one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    number: int
    candidate: Mapping[str, Any] | None
    state: str
    value: float | None = None
    seconds: float | None = None
    reason: str | None = None
    again_of: int | None = None
    seed: int = 0
