"""A training that starts from a trained detector: what is taken over, what is refused, what the recipe keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from detsearch_cli.detectors import build, start
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.checkpoint import save_weights
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.recipe import Recipe, compose, validate, with_fragment
from tests.recipes import SMALL, skip_without_extra, small

CLASSES = ("bolt", "nut", "gear")
NAMES = ("fcos", "retinanet", "atss", "yolov2", "faster_rcnn", "ssd", "deformable_detr")


def detector_of(recipe: Recipe, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Detector:
    skip_without_extra(recipe)
    torch.manual_seed(seed)
    return build(recipe, len(classes)).eval()


def saved(path: Path, recipe: Recipe | None = None, classes: tuple[str, ...] = CLASSES) -> Detector:
    recipe = recipe or small()
    detector = detector_of(recipe, classes)
    path.parent.mkdir(exist_ok=True)
    save_weights(path, detector, recipe, classes)
    return detector


def from_file(path: Path, **changes: Any) -> Recipe:
    return compose([("test", {**changes, "init": str(path), "data": SMALL["data"]})])


def few(name: str) -> dict[str, Any]:
    """A small detector of that name, as changes of the small recipe."""
    if name == "deformable_detr":
        return {"detector": {"name": name, "queries": 20, "layers": 1}}
    return {"detector": {"name": name, "width": 16} if name == "faster_rcnn" else {"name": name}}


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_taken_over_whole_and_its_class_rows_by_name(name: str, tmp_path: Path) -> None:
    recipe = small(**few(name))
    old = saved(tmp_path / "last.safetensors", recipe)
    begun = from_file(tmp_path)
    assert begun.detector == recipe.detector
    # other classes, in another order, of another number
    new = detector_of(begun, ("gear", "Bolt"), seed=1)
    started = start(new, begun, ("gear", "Bolt"))
    assert started is not None
    assert (started.kept, started.loaded) == (2, started.tensors)
    rows = new.class_layers()
    for key, value in new.state_dict().items():
        if key.rpartition(".")[0] not in rows:
            assert torch.equal(value, old.state_dict()[key]), key
    # what both say of the shared classes is the same
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs, ours = old(images), new(images)
    wanted = theirs.logits if name == "faster_rcnn" else theirs.logits[..., [2, 0]]
    torch.testing.assert_close(ours.logits, wanted)
    torch.testing.assert_close(ours.boxes, theirs.boxes)


def test_rows_of_other_classes_stay_as_they_were_drawn(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    begun = from_file(tmp_path)
    classes = ("nut", "washer")
    new, fresh = detector_of(begun, classes, 1), detector_of(begun, classes, 1).state_dict()
    started = start(new, begun, classes)
    weight = new.state_dict()["head.cls.weight"]
    assert torch.equal(weight[1], fresh["head.cls.weight"][1])
    assert not torch.equal(weight[0], fresh["head.cls.weight"][0])
    assert "class layers kept for 1 of 2 classes, the rest drawn anew" in str(started)


@pytest.mark.parametrize("before", [None, "parameterized_ap"])
def test_a_region_head_with_and_without_background_share_the_rows_of_classes(
    before: str | None, tmp_path: Path
) -> None:
    after = "parameterized_ap" if before is None else None
    old = saved(tmp_path / "last.safetensors", small(**few("faster_rcnn"), region_loss=before)).state_dict()
    begun = from_file(tmp_path, region_loss=after)
    new = detector_of(begun, seed=1)
    fresh = new.state_dict()["regions.cls.weight"].clone()
    assert start(new, begun, CLASSES) is not None
    weight = new.state_dict()["regions.cls.weight"]
    classes = len(CLASSES)
    assert torch.equal(weight[:classes], old["regions.cls.weight"][:classes])
    assert torch.equal(weight[classes:], fresh[classes:])
    assert len(weight) == classes + (after is None)


def test_a_loss_that_is_set_to_null_is_told_as_the_users(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors", small(loss="rank_sort"))
    told: list[str] = []
    recipe = compose([("test", {"init": str(tmp_path), "loss": None, "data": SMALL["data"]})], told.append)
    assert recipe.loss is None and "yours stay: loss null (theirs: rank_sort)" in told[0]


def test_the_best_weights_of_a_run_come_before_its_last(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    saved(tmp_path / "best.safetensors")
    init = from_file(tmp_path).init
    assert init is not None
    assert init.file == tmp_path / "best.safetensors"


def test_the_network_follows_the_weights_and_what_the_user_says_wins(tmp_path: Path) -> None:
    wide = small(neck={"channels": 24}, augment={"image_size": 96, "mean": [0.5, 0.5, 0.5]})
    saved(tmp_path / "last.safetensors", wide)
    told: list[str] = []
    fragment = {"init": str(tmp_path), "augment": {"image_size": 64}}
    recipe = compose([("defaults", {"neck": {"channels": 8}}), ("test", fragment)], told.append)
    assert (recipe.neck.channels, recipe.augment.mean) == (24, (0.5, 0.5, 0.5))
    assert recipe.augment.image_size == (64, 64)
    assert len(told) == 1
    assert "augment.mean [0.5, 0.5, 0.5]" in told[0]
    assert "yours stay: augment.image_size 64 (theirs: [96, 96])" in told[0]


def test_a_composed_recipe_names_a_file_and_its_content_and_needs_nothing_else(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    recipe = from_file(tmp_path)
    again = validate(recipe.model_dump(mode="json"))
    assert (again, again.hash()) == (recipe, recipe.hash())
    assert with_fragment(recipe, {"seed": 1}).init == recipe.init
    assert with_fragment(recipe, {"init": None}).init is None


def test_a_fragment_may_begin_elsewhere_than_the_recipe(tmp_path: Path) -> None:
    saved(tmp_path / "a" / "last.safetensors")
    saved(tmp_path / "b" / "last.safetensors", small(neck={"channels": 24}))
    first = from_file(tmp_path / "a")
    second = with_fragment(first, {"init": str(tmp_path / "b")})
    assert second.init is not None
    assert second.init.file == tmp_path / "b" / "last.safetensors"
    assert second.neck.channels == 24
    assert second.hash() != first.hash()


def test_weights_that_changed_since_the_recipe_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    recipe = from_file(tmp_path)
    saved(tmp_path / "last.safetensors", small(seed=5), ("other", "classes", "here"))
    with pytest.raises(CheckpointError, match="no longer the file"):
        start(detector_of(recipe), recipe, CLASSES)
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match="bring the file back"):
        start(detector_of(recipe), recipe, CLASSES)


def test_another_width_is_refused_by_its_key_and_both_shapes(tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    recipe = from_file(tmp_path, neck={"channels": 24})
    detector = detector_of(recipe)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"neck\.lateral\.0\.weight has shape \(16, .* and \(24, "):
        start(detector, recipe, CLASSES)
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": "retinanet"}, "holds the detector fcos, the recipe trains retinanet"),
        ({"backbone": {"weights": "some.pth"}}, "backbone.weights has no use beside it"),
    ],
)
def test_what_contradicts_the_weights_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path / "last.safetensors")
    with pytest.raises(RecipeError, match=said):
        from_file(tmp_path, **changes)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"not weights"])
def test_a_file_that_is_no_detector_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            from_file(tmp_path / name)


def test_a_backbone_alone_is_sent_to_its_own_option(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="for a backbone alone there is --backbone-weights"):
        from_file(tmp_path / "resnet.pth")


@pytest.mark.parametrize(
    "keys",
    [
        ["backbone.scale_weight"],
        ["backbone.body.conv1.weight", "head.classification_head.cls_logits.weight"],
        ["backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"],
    ],
)
def test_half_a_detector_is_one_sentence(keys: list[str], tmp_path: Path) -> None:
    torch.save({key: torch.zeros(1, 1) for key in keys}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="is no complete"):
        from_file(tmp_path / "half.pth")


def test_nothing_at_the_place_is_told_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="retinanet_resnet50_fpn, fasterrcnn_resnet50_fpn, ssd300_vgg16"
    ):
        from_file(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="give the folder of a trained run"):
        from_file(tmp_path)


def test_published_weights_bring_their_normalisation_unless_the_recipe_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from detsearch_cli.detectors._backbones import Published

    found = Published(Path("/cache/m.safetensors"), "timm/resnet18", (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(
        "detsearch_cli.recipe.find_published", lambda name: found if name == "resnet18" else None
    )
    told: list[str] = []
    fragment: dict[str, Any] = {"backbone": {"name": "resnet18", "weights": "pretrained"}}
    recipe = compose([("test", fragment)], told.append)
    assert recipe.backbone.weights == found.file
    assert (recipe.augment.mean, recipe.augment.std) == ((0.5,) * 3, (0.25,) * 3)
    assert "augment.mean [0.5, 0.5, 0.5]" in told[-1]
    own = compose([("test", fragment), ("mine", {"augment": {"mean": [0.1, 0.2, 0.3]}})], told.append)
    assert own.augment.mean == (0.1, 0.2, 0.3)
    assert "yours stay: augment.mean [0.1, 0.2, 0.3] (theirs: [0.5, 0.5, 0.5])" in told[-1]
    # of a name that is below, as in a study's recipe
    assert with_fragment(
        small(backbone="resnet18"), {"backbone": {"weights": "pretrained"}}
    ).augment == recipe.augment.model_copy(update={"image_size": (64, 64)})


@pytest.mark.parametrize(
    ("content", "digits"),
    [
        ({}, "5bed1acf78c8fb75"),
        ({"detector": "retinanet"}, "4eefba2180c4e8d3"),
        ({"detector": "ssd", "backbone": "vgg16"}, "f44b2b3eb4991777"),
        ({"detector": "faster_rcnn", "priors": {"name": "anchors", "base": 8}}, "b2d30381e5bd1951"),
        ({"detector": "atss", "priors": {"name": "shapes", "shapes": [[10, 20]]}}, "131423c33433a20d"),
        ({"detector": "yolov2", "priors": "learned"}, "2635345b1ef1eeb7"),
        ({"priors": "points", "seed": 3}, "b95099edbc6b2a83"),
    ],
)
def test_recipes_from_before_these_options_keep_their_hash(content: dict[str, Any], digits: str) -> None:
    assert compose([("test", content)]).hash() == digits


def test_an_empty_text_is_not_the_current_folder() -> None:
    with pytest.raises(RecipeError, match=r"init names a run.* got an empty text"):
        compose([("--init", {"init": ""})])
