"""Recipes: fragments lie over each other, equal recipes have one hash, errors name key and origin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Recipe, compose, merge, parse_set, read_fragment, validate, with_fragment


def test_later_fragments_win_key_by_key() -> None:
    recipe = compose([("a", {"optim": {"lr": 0.1, "momentum": 0.8}}), ("b", {"optim": {"lr": 0.2}})])
    assert (recipe.optim.lr, recipe.optim.momentum) == (0.2, 0.8)


def test_a_slot_that_names_another_part_replaces_the_slot_whole() -> None:
    below = {"assign": {"name": "dynamic", "counts": [[3]]}}
    assert merge(below, {"assign": {"name": "atss"}}) == {"assign": {"name": "atss"}}
    assert merge(below, {"assign": {"alpha": 2.0}})["assign"] == {
        "name": "dynamic",
        "counts": [[3]],
        "alpha": 2.0,
    }


def test_a_default_written_or_left_out_gives_one_hash() -> None:
    short = validate({"detector": "fcos", "optim": {"lr": 0.01}})
    long = validate({"detector": {"name": "fcos", "center_sampling": False}, "seed": 0})
    assert short.hash() == long.hash() == Recipe.model_validate(yaml.safe_load(short.to_yaml())).hash()


def test_where_it_runs_does_not_change_the_hash_and_what_it_trains_does() -> None:
    base = validate({})
    assert with_fragment(base, {"runtime": {"device": "cpu", "workers": 3}}).hash() == base.hash()
    assert with_fragment(base, {"seed": 1}).hash() != base.hash()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("detsearch_cli.schema", "torch"),
        ("detsearch_cli.recipe", "torch"),
        ("detsearch_cli.slots.assigners._dynamic_defaults", "torch, pydantic, numpy"),
    ],
)
def test_who_reads_a_recipe_or_shows_a_default_waits_for_no_heavy_import(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print([m for m in '{heavy}'.split(', ') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_recipe_survives_yaml() -> None:
    recipe = validate({"augment": {"image_size": 192}, "assign": {"name": "dynamic", "counts": [[5]]}})
    assert validate(yaml.safe_load(recipe.to_yaml())) == recipe
    assert recipe.augment.image_size == (192, 192)


@pytest.mark.parametrize(
    ("augment", "side"),
    [
        ({"image_size": 192}, 192),
        ({"image_size": [800, 1333]}, 1333),
        ({"image_size": [800, 1333], "multi_scale": [640, 1200]}, 2000),
    ],
)
def test_the_largest_side_of_a_training_image_is_known(augment: dict[str, object], side: int) -> None:
    assert validate({"augment": augment}).augment.largest_side == side


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optim": {"lrr": 1}}, r"optim\.lrr is no key"),
        ({"optim": {"lr": -1}}, r"optim\.lr: .*greater than 0, got -1"),
        ({"detector": "fcoss"}, r"detector: 'fcoss' is none of the detectors \(.*did you mean 'fcos'"),
        ({"assign": {"name": "dynamic", "countz": [[1]]}}, r"assign\.count"),
        ({"detector": {"name": "fcos", "centre_sampling": True}}, r"detector\.centre_sampling is no key"),
        ({"optim": {"batch_size": 5, "accumulate": 2}}, r"batch_size 5 must be a multiple of accumulate 2"),
        ({"neck": {"levels": [5, 3]}}, r"neck\.levels: .*first <= last"),
        ({"augment": {"scale": [2, 1]}}, r"augment\.scale: .*least <= greatest"),
        ({"augment": {"multi_scale_every": 10}}, r"augment: .*needs sides to draw from; set multi_scale"),
    ],
)
def test_errors_name_the_key_the_rule_and_the_value(content: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(content)


def test_the_file_that_set_a_bad_key_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^best\.yaml: optim\.lr"):
        compose([("base.yaml", {"optim": {"momentum": 0.5}}), ("best.yaml", {"optim": {"lr": "fast"}})])


@pytest.mark.parametrize(
    ("text", "value"), [("optim.lr=0.02", {"optim": {"lr": 0.02}}), ("seed=3", {"seed": 3})]
)
def test_set_reads_the_value_as_yaml(text: str, value: dict[str, object]) -> None:
    assert parse_set(text) == value


@pytest.mark.parametrize("bits", ["32", "16"])
def test_a_precision_needs_no_quotes(bits: str) -> None:
    bare, quoted = (validate(parse_set(f"optim.precision={x}")) for x in (bits, f"'{bits}'"))
    assert bare.optim.precision == bits
    assert bare.hash() == quoted.hash()


def test_off_without_quotation_marks_is_off() -> None:
    recipe = validate(merge(parse_set("runtime.kernels=off"), parse_set("runtime.cache=off")))
    assert (recipe.runtime.kernels, recipe.runtime.cache) == ("off", "off")


@pytest.mark.parametrize("text", ["optim.lr", "=3", "a..b=1", "x=[1"])
def test_a_malformed_set_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        parse_set(text)


def test_a_recipe_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read .*none\.yaml"):
        read_fragment(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not valid YAML"):
        read_fragment(broken)
    broken.write_text("- 1\n- 2\n")
    with pytest.raises(RecipeError, match="must hold keys and values, found a list"):
        read_fragment(broken)
