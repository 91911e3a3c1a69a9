"""Recipes: composed of fragments, checked against their detector. The sections themselves are in schema.py.

A *fragment* is a partial recipe. Fragments are laid over each other, later over earlier, so a searched
assignment, learned anchors and an evolved loss can be trained together. Changing a recipe makes a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from detsearch_cli import parts
from detsearch_cli.detectors import PRETRAINED, find_published, find_trained
from detsearch_cli.errors import RecipeError
from detsearch_cli.fragments import Fragment, flattened, merge, parse_set, read_fragment
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
    from detsearch_cli.slots.losses.base import DetectionLoss

__all__ = [
    "Augment", "Backbone", "Data", "Fragment", "Optim", "Recipe", "Runtime", "Schedule", "Slot", "Test",
    "build_part", "compose", "detector_class", "detector_options", "merge", "parse_set", "read_fragment",
    "validate", "with_fragment",
]  # fmt: skip
"""Also what schema.py and fragments.py define: whoever may import this module needs only this one."""


DEFAULTS = "defaults"
"""The origin of what nobody asked for: it gives way to what the weights imply."""
Tell = Callable[[str], None]
"""Hears a line for a person."""


def compose(fragments: Iterable[tuple[str, Fragment]], tell: Tell = lambda _: None) -> Recipe:
    """Lay named fragments over each other, first to last, and validate the outcome.

    Each item is (where it came from, fragment); a key that does not validate is blamed on the last origin
    that set it. Weights that are given by name, or as a run, become a file here, once (`with_weights`); what they
    imply lies over a first fragment from DEFAULTS and under all the others. tell: hears a line about it. Raises
    RecipeError, and CheckpointError for weights that cannot be had.
    """
    pairs = list(fragments)
    below: Fragment = {}
    given: Fragment = {}
    for number, (origin, fragment) in enumerate(pairs):
        if number == 0 and origin == DEFAULTS:
            below = fragment
        else:
            given = merge(given, fragment)
    try:
        return validate(merge(below, with_weights(given, below, tell)))
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
    kind = detector_class(recipe.detector)
    options = kind.settled(detector_options(recipe.detector), _loss_class(recipe))
    slots: dict[str, Any] = {"detector": slot_of(recipe.detector.name, options)}
    # pydantic's default is FCOS's; a recipe that leaves the levels open gets those of its own detector
    if "levels" not in recipe.neck.model_fields_set:
        own = kind.default_levels
        slots["neck"] = recipe.neck.model_copy(update={"levels": own})
    for key, package in SLOT_PACKAGES.items():
        slot: Slot | None = getattr(recipe, key)
        if slot is not None:
            slots[key] = slot_of(slot.name, build_part(package, slot, key))
    return recipe.model_copy(update=slots)


def _loss_class(recipe: Recipe) -> type[DetectionLoss] | None:
    """None where the detector has the choice."""
    if recipe.loss is None:
        return None
    from detsearch_cli.slots.losses.base import DetectionLoss

    return find_part(SLOT_PACKAGES["loss"], recipe.loss, DetectionLoss, "loss")


def with_fragment(recipe: Recipe, fragment: Mapping[str, Any]) -> Recipe:
    """A new recipe with the fragment laid over this one. Raises RecipeError naming the key."""
    below = recipe.model_dump(mode="json")
    if "loss" in fragment:
        # what the former loss decided is open again, or no other loss could be laid over the recipe
        open_ = detector_class(recipe.detector).loosened(recipe.detector.options, _loss_class(recipe))
        below["detector"] = {"name": recipe.detector.name, **open_}
    return validate(merge(below, with_weights(fragment, below)))


def with_weights(
    fragment: Mapping[str, Any], below: Mapping[str, Any], tell: Tell = lambda _: None
) -> Fragment:
    """The fragment with a file in the place of weights that are given by name, and with what these weights imply.

    `init` that names a run, a file or a checkpoint becomes {file, sha256}, over the keys that build its network;
    `backbone.weights: pretrained` becomes a file, over the mean and deviation it was trained with. What the fragment
    itself says wins. A recipe that was composed holds files alone, so no worker and no later run asks the network.
    below: what the fragment is to be laid over. Raises RecipeError and CheckpointError.
    """
    result = dict(fragment)
    given = result.get("init")
    if isinstance(given, Mapping) and given.keys() == {"file"}:
        given = given["file"]
    if isinstance(given, str):
        if not given.strip():  # as a path it would be the current folder
            raise RecipeError("init names a run, a weights file or a published checkpoint, got an empty text")
        source = find_trained(given)
        _refuse_other_detector(merge(source.implied, result).get("detector"), source.detector, given)
        result["init"] = {"file": str(source.file), "sha256": source.sha256}
        result = _imply(result, source.implied, f"init {given}", tell)
    whole = merge(below, result)
    found: Any = whole.get("backbone")
    backbone: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    weights = backbone.get("weights")
    if weights is not None and isinstance(whole.get("init"), Mapping):
        raise RecipeError(
            "init holds the weights of the backbone too, so backbone.weights has no use beside it; set one of the two "
            "to null"
        )
    if weights != PRETRAINED:
        return result
    name = backbone.get("name") or Backbone.model_fields["name"].default
    published = find_published(str(name))
    tell(f"backbone.weights: {published.origin}, in {published.file}")
    result = merge(result, {"backbone": {"weights": str(published.file)}})
    implied = {"augment": {"mean": list(published.mean), "std": list(published.std)}}
    return _imply(result, implied, f"backbone.weights {PRETRAINED}", tell)


def _refuse_other_detector(wanted: Any, held: str, given: str) -> None:
    name = wanted.get("name") if isinstance(wanted, Mapping) else None
    # anything but a name is for the validation of the whole recipe to refuse
    if not isinstance(name, str) or name == held:
        return
    error = RecipeError(
        f"init: {given} holds the detector {held}, the recipe trains {name}; leave the detector to init, or train it "
        "from the backbone's weights alone"
    )
    error.key = ("detector", "name")  # type: ignore[attr-defined]
    raise error


def _imply(fragment: Fragment, implied: Fragment, by: str, tell: Tell) -> Fragment:
    """Lay the fragment over what its weights imply, and tell what they set and where the fragment wins."""
    given = flattened(fragment)
    lost = [
        f"{key} {_brief(given[key])} (theirs: {_brief(value)})"
        for key, value in flattened(implied).items()
        # a size from the command line is a tuple, one from YAML a list
        if key in given and _brief(given[key]) != _brief(value)
    ]
    # a slot that is set to null has no keys of its own to compare
    lost += [
        f"{section} null (theirs: {value['name']})"
        for section, value in implied.items()
        if section in fragment and fragment[section] is None
    ]
    tell(f"{by} sets {', '.join(_items(implied))}" + (f"; yours stay: {', '.join(lost)}" if lost else ""))
    return merge(implied, fragment)


def _items(implied: Fragment) -> list[str]:
    """One item a part or section; what the network sees, in full, because other weights want other numbers."""
    items = []
    for section, value in implied.items():
        if section == "augment":
            items += [f"{section}.{key} {_brief(each)}" for key, each in value.items()]
        else:
            items.append(" ".join([section, *([value["name"]] if "name" in value else [])]))
    return items


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_brief(v) for v in value)}]" if len(str(value)) < 100 else "(a list)"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
