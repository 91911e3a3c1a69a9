"""Recipes: composed of fragments, checked against their detector. The sections themselves are in schema.py.

A *fragment* is a partial recipe. Fragments are laid over each other, later over earlier, so a searched
assignment, learned anchors and an evolved loss can be trained together. Changing a recipe makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from detsearch_cli import parts
from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import Fragment, merge, parse_set, read_fragment
from detsearch_cli.schema import (
    SLOT_PACKAGES,
    Augment,
    Backbone,
    Data,
    Optim,
    Recipe,
    Runtime,
    Schedule,
    Slot,
    Test,
    build_part,
    explain,
    find_part,
    slot_of,
)

if TYPE_CHECKING:
    from detsearch_cli.detectors.base import Detector

__all__ = [
    "Augment", "Backbone", "Data", "Fragment", "Optim", "Recipe", "Runtime", "Schedule", "Slot", "Test",
    "build_part", "compose", "detector_class", "detector_options", "merge", "parse_set", "read_fragment",
    "validate", "with_fragment",
]  # fmt: skip
"""Also what schema.py and fragments.py define: whoever may import this module needs only this one."""


def compose(fragments: Iterable[tuple[str, Fragment]]) -> Recipe:
    """Lay named fragments over each other, first to last, and validate the outcome.

    Each item is (where it came from, fragment); a key that does not validate is blamed on the last origin
    that set it. Raises RecipeError.
    """
    whole: Fragment = {}
    pairs = list(fragments)
    for _, fragment in pairs:
        whole = merge(whole, fragment)
    try:
        return validate(whole)
    except RecipeError as error:
        key = getattr(error, "key", ())
        for origin, fragment in reversed(pairs):  # the last one that set the key is the one that counts
            if key and _holds(fragment, key):
                raise RecipeError(f"{origin}: {error}") from error
        raise


def _holds(fragment: Any, key: tuple[Any, ...]) -> bool:
    """Whether the fragment sets this key, or names the part that the key belongs to."""
    for part in key[:2]:
        if isinstance(fragment, Mapping) and part in fragment:
            fragment = fragment[part]
        else:
            return isinstance(fragment, str)
    return True


def validate(content: Mapping[str, Any]) -> Recipe:
    """Check every key of every section and every slot's options. Raises RecipeError naming the key."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise explain(error, ()) from error
    slots: dict[str, Any] = {"detector": slot_of(recipe.detector.name, detector_options(recipe.detector))}
    # pydantic's default is FCOS's; a recipe that leaves the levels open gets those of its own detector
    if "levels" not in recipe.neck.model_fields_set:
        own = detector_class(recipe.detector).default_levels
        slots["neck"] = recipe.neck.model_copy(update={"levels": own})
    for key, package in SLOT_PACKAGES.items():
        slot: Slot | None = getattr(recipe, key)
        if slot is not None:
            slots[key] = slot_of(slot.name, build_part(package, slot, key))
    return recipe.model_copy(update=slots)


def with_fragment(recipe: Recipe, fragment: Mapping[str, Any]) -> Recipe:
    """A new recipe with the fragment laid over this one. Raises RecipeError naming the key."""
    return validate(merge(recipe.model_dump(mode="json"), fragment))


def detector_class(slot: Slot) -> type[Detector]:
    """The class of the detector a recipe names. Raises RecipeError naming the key."""
    # detectors import torch, which takes seconds; who only reads and merges fragments need not wait for it
    from detsearch_cli.detectors.base import Detector

    return find_part("detectors", slot, Detector, "detector")


def detector_options(slot: Slot) -> parts.Part:
    """The detector's own options, validated. Raises RecipeError naming the key."""
    try:
        return detector_class(slot).Options.model_validate(slot.options)
    except ValidationError as error:
        raise explain(error, ("detector",)) from error
