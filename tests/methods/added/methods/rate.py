"""Search the learning rate: a method of one file, for the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detsearch_cli.methods.base import Method
from detsearch_cli.option import option


@dataclass(frozen=True)
class Options:
    highest: float = option(0.01, "Largest learning rate.", min=1e-5, max=1.0)
    refused_above: float = option(1.0, "Learning rates above are not worth a training.")


class Rate(Method):
    Options = Options
    sampler = "random"
    search_help = "Find the learning rate of highest AP."

    def space(self, recipe: Any) -> Any:
        from detsearch_cli.search.space import Product, Real

        return Product((Real("lr", 1e-5, self.options.highest, log=True),))

    def refuse(self, recipe: Any, candidate: Any) -> str | None:
        too_high = candidate["lr"] > self.options.refused_above
        return f"a learning rate above {self.options.refused_above:g}" if too_high else None

    def fragment(self, recipe: Any, candidate: Any) -> dict[str, Any]:
        return {"optim": {"lr": candidate["lr"]}}

    def tables(self, recipe: Any) -> Any:
        from detsearch_cli.report.page import Table

        return [Table("The rate", "Of the whole batch.", ["", "lr"], [["found", recipe.optim.lr]])]
