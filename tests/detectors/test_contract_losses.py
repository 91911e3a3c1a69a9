"""Every loss with every detector that it fits, through `Detector.assign` as a training calls it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from detsearch_cli import parts
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import compose, with_fragment
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Targets, TrainingStep
from tests.detectors.test_detectors_contract import BOXES, detector_of, images, targets, total

LOSSES = parts.names("slots.losses")
DETECTORS: list[dict[str, Any]] = [
    *({"name": name} for name in parts.names("detectors")),
    {"name": "fcos", "centerness": False},
    {"name": "atss", "centerness": False},
]
PAIRS = [(detector, loss) for detector in DETECTORS for loss in LOSSES]
EACH_LOSS = pytest.mark.parametrize(("variant", "loss"), PAIRS, ids=str)


def fitting(variant: dict[str, Any], loss: str) -> Detector:
    """The detector with this loss, after its warm-ups; a pair that refuses itself is skipped."""
    try:
        # no coarser levels: a batch of small boxes and hard negatives would not reach their layers
        detector = detector_of(variant, loss=loss, neck={"levels": (3, 5)})
        detector.before_step(TrainingStep(index=99, total=100, images=10**6))
        detector.training_loss(images(1), targets(BOXES))
        for parameter in detector.parameters():
            # a layer that begins at 0 would hide those below it in the first step
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.01)
    except RecipeError as refused:
        pytest.skip(str(refused))
    return detector


def branches(detector: Detector) -> dict[str, float]:
    """Sum of the absolute gradients of every branch. Its parts of several levels or layers are one branch:

    no box of the batch may be large enough for a level.
    """
    found: dict[str, float] = {}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            branch = re.sub(r"\.[0-9]+", "", name.rpartition(".")[0])
            found[branch] = found.get(branch, 0.0) + float(parameter.grad.abs().sum())
    return found


@EACH_LOSS
def test_one_step_moves_every_branch(variant: dict[str, Any], loss: str) -> None:
    detector = fitting(variant, loss)
    total(detector.training_loss(images(2), targets(BOXES, BOXES[:1]))).backward()
    assert [branch for branch, moved in branches(detector).items() if not moved > 0] == []


def ignoring(own: Callable[[Dense, Targets], Assignment]) -> Callable[[Dense, Targets], Assignment]:
    """The assigner, with every second prior without an object ignored."""

    def assign(dense: Dense, truths: Targets) -> Assignment:
        found = own(dense, truths)
        matched = found.matched.clone()
        every_second = torch.arange(matched.shape[1]) % 2 == 0
        matched[(matched == BACKGROUND) & every_second] = IGNORE
        return replace(found, matched=matched)

    return assign


@EACH_LOSS
def test_an_ignored_prior_receives_no_gradient(variant: dict[str, Any], loss: str) -> None:
    detector = fitting(variant, loss)
    detector.assigner = ignoring(detector.assigner)  # type: ignore[assignment]
    made = detector(images(2))
    kinds = ("boxes", "deltas", "centerness", "objectness")
    leaves = {k: getattr(made, k).detach().requires_grad_() for k in kinds if getattr(made, k) is not None}
    maps = tuple(level.detach().requires_grad_() for level in made.maps)
    dense = replace(made, maps=maps, **leaves)
    truths = detector.dense_targets(targets(BOXES, BOXES[:1]))
    ignored = detector.assign(dense, truths).matched == IGNORE
    total(detector.dense_loss(dense, truths)).backward()
    scores = replace(made, maps=tuple(level.grad for level in maps)).logits
    assert ignored.any() and scores.abs().sum() > 0
    for gradient in (scores, *(leaf.grad for leaf in leaves.values())):
        assert gradient is None or not gradient[ignored].any()


def test_scores_asked_for_without_gradients_still_train() -> None:
    detector = detector_of("retinanet")
    dense = detector(images(1))
    with torch.no_grad():
        assert dense.logits.requires_grad
    with torch.inference_mode():
        assert not detector(images(1)).logits.requires_grad


def test_a_centerness_that_the_loss_does_not_train_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"loss: multibox does not train; add detector\.centerness: false"):
        detector_of({"name": "atss", "centerness": True}, loss="multibox")


@pytest.mark.parametrize("name", ["fcos", "atss"])
def test_centerness_left_open_is_there_where_the_loss_trains_it(name: str) -> None:
    for loss, there in ((None, True), ("focal_iou", True), ("parameterized_ap", False)):
        detector = detector_of({"name": name}, loss=loss)
        assert (detector(images(1)).centerness is not None) == there
        assert detector.options.centerness is there  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["fcos", "atss"])
def test_another_loss_decides_anew_unless_the_recipe_says_otherwise(name: str) -> None:
    def centerness(detector: dict[str, Any], *fragments: dict[str, Any]) -> Any:
        recipe = compose([("test", {"detector": detector})])
        for fragment in fragments:
            recipe = with_fragment(recipe, fragment)
        return recipe.detector.options["centerness"]

    ranking, focal = {"loss": "parameterized_ap"}, {"loss": "focal_iou"}
    assert [centerness({"name": name}, *f) for f in ((), (ranking,), (ranking, focal))] == [True, False, True]
    assert centerness({"name": name, "centerness": False}, focal) is False
    assert centerness({"name": name}, {"optim": {"lr": 0.1}}) is True
    with pytest.raises(RecipeError, match="has a centerness branch"):
        build(
            with_fragment(compose([("t", {"detector": name})]), ranking | {"detector": {"centerness": True}}),
            3,
        )


def test_a_ranking_loss_keeps_every_score_unless_a_threshold_is_given() -> None:
    def threshold(loss: str, test: dict[str, Any]) -> float:
        recipe = compose([("test", {"detector": "retinanet", "loss": loss, "test": test})])
        return build(recipe, 3).selection(recipe.test).score_threshold

    assert threshold("focal_iou", {}) == 0.05
    assert threshold("parameterized_ap", {}) == 0.0
    assert threshold("parameterized_ap", {"score_threshold": 0.3}) == 0.3
