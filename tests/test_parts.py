"""Numbers and text in every field of a recipe: whoever adds a field, none of these reaches a kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from detsearch_cli import parts
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError, StudyError
from detsearch_cli.recipe import compose, parse_set, validate
from detsearch_cli.schema import SLOT_PACKAGES, Recipe
from detsearch_cli.search.config import SamplerChoice
from detsearch_cli.search.samplers.base import Sampler

SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and name != "detector"
}
NEVER = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300]),
    st.integers(min_value=2**53 + 1),
    st.integers(max_value=-(2**53) - 1),
    st.just(10**400),
    st.just(10**5000),
    st.sampled_from(["a\0b", "a\udcffb", "٣", "9" * 5000, "nan", "inf", "1e400", "1e300", "0x10"]),
)
"""What no number and no text of a recipe may be. Text that is a plain name is not among them."""


def part_options() -> Iterator[tuple[str, str, type[parts.Part]]]:
    """(key of the recipe, part, class of its options), of every part that a recipe can name."""
    for key, package in SLOT_PACKAGES.items():
        for name in parts.names(package):
            yield key, name, parts.find(package, name, parts.Part)  # type: ignore[type-abstract]
    for name in parts.names("detectors"):
        yield "detector", name, parts.find("detectors", name, Detector).Options  # type: ignore[type-abstract]


PARTS = list(part_options())
SAMPLERS = [
    (name, parts.find("search.samplers", name, Sampler).Options)  # type: ignore[type-abstract]
    for name in parts.names("search.samplers")
]


def takes_text(model: type[BaseModel], field: str) -> bool:
    return '"type": "string"' in json.dumps(model.model_json_schema()["properties"][field])


def refused(content: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        validate(content)
    said = str(caught.value)
    assert key in said and len(said) < 400 and "\n" not in said, said


def is_plain_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_no_key_of_any_section_takes_what_is_no_number_and_the_key_is_named(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    key = data.draw(st.sampled_from(sorted(SECTIONS[section].model_fields)))
    value = data.draw(NEVER)
    if is_plain_text(value) and takes_text(SECTIONS[section], key):
        return
    refused({section: {key: value}}, f"{section}.{key}")
    refused({section: {key: [value, value]}}, f"{section}.{key}")


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_no_option_of_any_part_takes_what_is_no_number_and_the_key_is_named(data: st.DataObject) -> None:
    slot, name, model = data.draw(st.sampled_from([part for part in PARTS if part[2].model_fields]))
    option = data.draw(st.sampled_from(sorted(model.model_fields)))
    value = data.draw(NEVER)
    refused({slot: {"name": name, option: value}}, f"{slot}.{option}")
    refused({slot: {"name": name, option: [[value]]}}, f"{slot}.{option}")


@pytest.mark.parametrize(("name", "options"), SAMPLERS)
def test_no_option_of_a_sampler_takes_what_is_no_number(name: str, options: type[BaseModel]) -> None:
    for option in options.model_fields:
        for value in (math.nan, 10**19, 10**400, True, "٣", "a\0b", -1):
            with pytest.raises(StudyError, match=option):
                SamplerChoice.parse({"name": name, option: value})


@pytest.mark.parametrize(
    ("section", "key"), [(s, k) for s in SECTIONS for k, f in SECTIONS[s].model_fields.items()]
)
def test_true_is_no_number(section: str, key: str) -> None:
    takes_flags = '"boolean"' in json.dumps(SECTIONS[section].model_json_schema()["properties"][key])
    if not takes_flags:
        refused({section: {key: True}}, f"{section}.{key}")


def unbounded(schema: dict[str, Any]) -> Iterator[str]:
    """Fields of a JSON schema that take whole numbers of any size."""
    for field, about in schema.get("properties", {}).items():
        stack = [about]
        while stack:
            kind = stack.pop()
            bounded = {"maximum", "enum", "const"} & {*kind, *about}
            if kind.get("type") == "integer" and not bounded:
                yield field
            stack += [*kind.get("anyOf", []), *kind.get("prefixItems", [])]
            stack += [kind["items"]] if isinstance(kind.get("items"), dict) else []


@pytest.mark.parametrize(
    "model", [*SECTIONS.values(), *(part[2] for part in PARTS), *(options for _, options in SAMPLERS)]
)
def test_every_whole_number_of_a_recipe_has_an_upper_bound(model: type[BaseModel]) -> None:
    # the levels of a pyramid are bounded by a rule of their own, 2 to 7
    assert [field for field in unbounded(model.model_json_schema()) if field != "levels"] == []


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("seed", 2**32 - 1),
        ("neck.channels", 4096),
        ("optim.batch_size", 65_536),
        ("runtime.workers", 1024),
        ("data.split_seed", 2**32 - 1),
    ],
)
def test_a_bound_itself_is_taken_and_one_more_is_not(key: str, most: int) -> None:
    section, _, name = key.rpartition(".")
    nested = (lambda n: {section: {name: n}}) if section else (lambda n: {name: n})
    validate(nested(most))
    refused(nested(most + 1), key)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"augment": {"image_size": [800, 400]}}, "short side, then the limit of the long side"),
        ({"augment": {"image_size": [100_000, 100_000]}}, "8192"),
        ({"augment": {"image_size": 0}}, "16"),
        ({"augment": {"mean": [123.7, 116.3, 103.5]}}, "less than or equal to 1"),
        ({"augment": {"std": [0, 0, 0]}}, "greater than"),
        ({"augment": {"scale": [1, 1000]}}, "at most 8"),
        ({"schedule": {"milestones": [8, 11]}}, "less than or equal to 1"),
        ({"data": {"subset": 1.5}}, "a whole number of images, or a part"),
        ({"runtime": {"device": "mps"}}, "auto, cpu, cuda or cuda:N"),
        ({"runtime": {"device": "cpu:5"}}, "auto, cpu, cuda or cuda:N"),
        ({"priors": {"name": "shapes", "shapes": [[9, 9]] * 65}}, "at most 64 shapes"),
        ({"data": {"source": "caf\udce9"}}, "UTF-8"),
    ],
)
def test_a_size_or_text_that_no_training_has_is_refused_with_its_rule(
    content: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        validate(content)


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    refused({"augment": {"scale": endless}}, "augment.scale")
    refused({"priors": {"name": "shapes", "shapes": endless}}, "priors.shapes")


def test_a_number_that_yaml_reads_as_text_obeys_the_same_rule() -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr: a number must be finite and at most 2\^53"):
        compose([("--set", parse_set("optim.lr=1e30"))])
