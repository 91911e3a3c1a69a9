"""What is fixed when a study begins, because its sampler is rebuilt from it; the only such record, in the ledger."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli import parts, reading
from detsearch_cli.document import checked
from detsearch_cli.errors import SpaceError, StudyError
from detsearch_cli.fragments import differences, shown
from detsearch_cli.search.documents import StudyDocument
from detsearch_cli.search.space import Choice, Integer, Product, Real, Space, read_space

if TYPE_CHECKING:
    from pydantic import ValidationError

    from detsearch_cli.search.samplers.base import Sampler

PACKAGE = "search.samplers"
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler and its options, all of them, as plain data.

    files: SHA-256 of the content of each option that names a file; options holds its absolute path.
    """

    name: str
    options: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: str | Mapping[str, Any]) -> SamplerChoice:
        """`dycors`, `{name: tpe, startup: 5}` in YAML, or the same as a mapping; every default is filled in.

        Imports the sampler's module. Raises StudyError naming the sampler or the option that is wrong.
        """
        content = dict(_content(given))
        name = content.pop("name")
        kind = _sampler_class(name)
        options = _validated(kind, name, content)
        plain, files = options.model_dump(mode="json"), {}
        for option in type(options).model_fields:
            if isinstance(path := getattr(options, option), Path):
                plain[option] = str(path.absolute())  # a worker, or a later command, may run elsewhere
                files[option] = _digest(name, option, path.absolute())
        return cls(name, plain, files)

    def build(self, space: Space, budget: int, seed: int, workers: int) -> Sampler:
        """The sampler, as it was before its first proposal."""
        kind = _sampler_class(self.name)
        return kind(space, budget, seed, workers, _validated(kind, self.name, self.options))

    def check_space(self, space: Space) -> None:
        """Raises StudyError, naming the samplers that do, when this sampler does not accept the space."""
        if _sampler_class(self.name).accepts(space):
            return
        able = [name for name in parts.names(PACKAGE) if _sampler_class(name).accepts(space)]
        raise StudyError(
            f"the sampler {self.name} cannot search {_described(space)}; "
            f"{' and '.join([', '.join(able[:-1]), able[-1]] if len(able) > 1 else able) or 'none'} can"
        )

    def compared(self) -> dict[str, Any]:
        """What must be equal to resume: a file counts by its content, so that it may be moved."""
        contents = {option: f"a file of SHA-256 {digest[:16]}" for option, digest in self.files.items()}
        return {"name": self.name, **self.options, **contents}

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(self.options), "files": dict(self.files)}


@dataclass(frozen=True)
class StudyConfig:
    """What a search is given that never changes afterwards.

    identity: plain data that must be equal to resume: method, its options, the recipe. space, sampler and seed
    must be equal, too. budget: candidates planned at first; DYCORS shrinks its steps by it and a grid is laid
    for it, so a study extended by more trials keeps the first budget. workers: how many at first; pySOT's
    initial design depends on it. noise_seeds: trainings of the baseline, each with another seed. races: leaders are
    trained again (search/racing.py).
    """

    identity: Mapping[str, Any]
    space: Space
    sampler: SamplerChoice
    seed: int
    budget: int
    workers: int
    noise_seeds: int = 1
    races: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data, as it comes back from a file: lists, not tuples."""
        content = {
            "identity": dict(self.identity),
            "space": self.space.to_json(),
            "sampler": self.sampler.to_json(),
            "seed": self.seed,
            "budget": self.budget,
            "workers": self.workers,
            "noise_seeds": self.noise_seeds,
            "races": self.races,
        }
        return dict(json.loads(json.dumps(content)))


@dataclass(frozen=True)
class RecordedConfig:
    """A StudyConfig as it is read from a ledger. space: None for a kind that only its method can read."""

    identity: Mapping[str, Any]
    space: Product | None
    space_json: Mapping[str, Any]
    sampler: SamplerChoice
    seed: int
    budget: int
    workers: int
    noise_seeds: int
    races: bool

    @classmethod
    def from_json(cls, content: Any, study: str) -> RecordedConfig:
        """study: its name, for the message. Raises StudyError for a record that this version cannot read."""
        remedy = "use the version of detsearch that began it, restore it from a copy, or start another --name"
        kept = checked(content, StudyDocument, f"the record of the study {study}", StudyError, remedy)
        try:
            space = read_space(kept.space)
        except (KeyError, TypeError, ValueError, AttributeError, SpaceError) as error:
            raise StudyError(
                f"the record of the study {study} is damaged: its space cannot be read ({error}); {remedy}"
            ) from error
        return cls(
            identity=kept.identity,
            space=space,
            space_json=kept.space,
            sampler=SamplerChoice(kept.sampler.name, kept.sampler.options, kept.sampler.files),
            seed=kept.seed,
            budget=kept.budget,
            workers=kept.workers,
            noise_seeds=kept.noise_seeds,
            races=kept.races,
        )

    def compared(self) -> dict[str, Any]:
        """What must be equal to resume, by the names that a user gives: an option, a key of the recipe."""
        identity = dict(self.identity)
        options, recipe = identity.pop("options", {}), identity.pop("recipe", {})
        named = {f"--{key.replace('_', '-')}": value for key, value in options.items()}
        search = {"sampler": self.sampler.compared(), "seed": self.seed, "space": self.space_json}
        return {**identity, **named, **recipe, **search}


def _described(space: Space) -> str:
    if not isinstance(space, Product):
        return f"a space of the kind {space.kind!r}"
    kinds = {Integer: "whole numbers", Real: "real numbers", Choice: "choices"}
    found = dict.fromkeys(kinds[type(parameter)] for parameter in space.parameters)
    return f"a space of {' and '.join(found)}"


def told_differences(there: RecordedConfig, here: RecordedConfig) -> str | None:
    """What differs between a ledger's search and another one, at most three things; None where nothing does."""
    old, new = there.compared(), here.compared()
    space = {"space": old.pop("space")}, {"space": new.pop("space")}
    if old["sampler"]["name"] != new["sampler"]["name"]:
        old["sampler"], new["sampler"] = old["sampler"]["name"], new["sampler"]["name"]
    # the space follows from the options and the recipe, which say more shortly what a user has changed
    every = differences(old, new) or differences(*space)
    more = [f"{len(every) - SHOWN_DIFFERENCES} more"] if len(every) > SHOWN_DIFFERENCES else []
    return "; ".join([*every[:SHOWN_DIFFERENCES], *more]) or None


def _content(given: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(given, str):
        given = reading.parse_yaml(given, f"the sampler {shown(given)}", StudyError)
    if isinstance(given, str):
        return {"name": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise StudyError(f"a sampler must have a name, got {shown(given)}; {_HOW}")
    return given


_HOW = "write a name such as dycors, or a name and options such as {name: tpe, startup: 5}"


def _sampler_class(name: str) -> type[Sampler]:
    from detsearch_cli.search.samplers.base import Sampler

    return parts.find(PACKAGE, name, Sampler, StudyError)  # type: ignore[type-abstract]


def _validated(kind: type[Sampler], name: str, options: Mapping[str, Any]) -> parts.Part:
    from pydantic import ValidationError

    try:
        return kind.Options.model_validate(dict(options))
    except ValidationError as error:
        raise StudyError(_explained(error, kind, name)) from error


def _explained(error: ValidationError, kind: type[Sampler], name: str) -> str:
    first = error.errors()[0]
    option = ".".join(map(str, first["loc"]))
    known = ", ".join(kind.Options.model_fields) or "none"
    if first["type"] == "extra_forbidden":
        return f"{option!r} is no option of the sampler {name}; its options: {known}"
    if first["type"] == "missing":
        return f"the sampler {name} needs the option {option}; write {{name: {name}, {option}: ...}}"
    said = first["msg"].removeprefix("Value error, ")
    return f"the sampler {name}'s option {option}: {said[0].lower()}{said[1:]}, got {shown(first['input'])}"


def _digest(name: str, option: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise StudyError(
            f"the sampler {name}'s option {option} must name a file, but {path} cannot be read "
            f"({error.strerror}); give the path of an existing one"
        ) from error
