"""torchvision's detectors at random weights: ours gives the same raw outputs once it holds their state dict.

torchvision's networks are the independent expectation here, in random state, so nothing is fetched.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detsearch_cli.boxes import DELTA_WEIGHTS
from detsearch_cli.detectors import _starting, _torchvision, build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.recipe import compose

SIZE = (96, 160)
"""No multiple of the strides 64 and 128, where torchvision's anchors lie less than a stride apart."""
CATEGORIES = tuple(detection.FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
ROWS = [i for i, name in enumerate(CATEGORIES) if name not in ("N/A", "__background__")]
CLASSES = tuple(CATEGORIES[i] for i in ROWS)
SCALE = torch.tensor(DELTA_WEIGHTS)


def torchvisions(name: str) -> Any:
    return stirred(getattr(detection, name)(weights=None, weights_backbone=None))


def small(kind: Any, num_classes: int = 91) -> Any:
    """The same with a backbone that is built in a moment."""
    extra = LastLevelP6P7(256, 256)
    body = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=extra,
    )
    return stirred(kind(body, num_classes))


def stirred(network: Any) -> Any:
    """The network with weights and statistics that let no branch be a constant."""
    torch.manual_seed(0)
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif value.dim() == 0 or key.endswith("scale_weight"):
            continue
        elif key.endswith(
            ("cls_logits.weight", "bbox_reg.weight", "bbox_pred.weight", "bbox_ctrness.weight")
        ):
            value.normal_(0, 0.01)
    return network.eval()


def ours(
    state: dict[str, Tensor], classes: tuple[str, ...] = CLASSES, name: str | None = None, **changes: Any
) -> tuple[Detector, _starting.Started]:
    recipe = compose([("implied", _torchvision.recipe_of(state)), ("test", changes)])
    foreign = _torchvision.converted(state, name)
    torch.manual_seed(1)
    detector = build(recipe, len(classes))
    source = _starting.Source(Path("file"), "", foreign.detector, {}, foreign.state, foreign.classes)
    return detector.eval(), _starting.fill(detector, source, classes)


def anchors_of(generator: nn.Module, images: Tensor, features: list[Tensor]) -> Tensor:
    found: Tensor = generator(ImageList(images, [tuple(images.shape[2:])] * len(images)), features)[0]
    return found


def same(mine: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=atol)


def same_boxes(mine: Tensor, theirs: Tensor) -> None:
    """Px: a coordinate is the difference of a centre and a size, which here reach thousands."""
    same(mine, theirs, atol=1e-3)


@torch.no_grad()
def test_fcos_gives_torchvisions_outputs() -> None:
    network, images = torchvisions("fcos_resnet50_fpn"), torch.rand(1, 3, *SIZE)
    detector, started = ours(network.state_dict())
    features = list(network.backbone(images).values())
    wanted, dense = network.head(features), detector(images)
    anchors = anchors_of(network.anchor_generator, images, features)
    same(dense.logits, wanted["cls_logits"][..., ROWS])
    same(dense.deltas.relu(), wanted["bbox_regression"])
    assert dense.centerness is not None
    same(dense.centerness, wanted["bbox_ctrness"][..., 0])
    same_boxes(dense.boxes, network.head.box_coder.decode(wanted["bbox_regression"], anchors[None]))
    # all but the factor of each level, which torchvision has not
    assert started.loaded == started.tensors - 5
    assert started.kept == 80


@torch.no_grad()
def test_retinanet_gives_torchvisions_outputs() -> None:
    network, images = torchvisions("retinanet_resnet50_fpn"), torch.rand(1, 3, *SIZE)
    detector, started = ours(network.state_dict())
    features = list(network.backbone(images).values())
    wanted, dense = network.head(features), detector(images)
    anchors = anchors_of(network.anchor_generator, images, features)
    same(dense.logits, wanted["cls_logits"][..., ROWS])
    same(dense.deltas / SCALE, wanted["bbox_regression"])
    same(dense.priors.boxes, anchors)
    same_boxes(
        dense.boxes[0],
        network.head.regression_head.box_coder.decode_single(wanted["bbox_regression"][0], anchors),
    )
    assert started.loaded == started.tensors


@torch.no_grad()
def test_faster_rcnn_gives_torchvisions_outputs_of_both_stages() -> None:
    network, images = torchvisions("fasterrcnn_resnet50_fpn"), torch.rand(2, 3, *SIZE)
    detector: Any
    detector, started = ours(network.state_dict())
    features = network.backbone(images)
    levels = list(features.values())
    objectness, offsets = concat_box_prediction_layers(*network.rpn.head(levels))
    anchors = anchors_of(network.rpn.anchor_generator, images, levels)
    dense = detector(images)
    same(dense.logits, objectness.view(2, -1, 1))
    same(dense.deltas / SCALE, offsets.view(2, -1, 4))
    same_boxes(dense.boxes, network.rpn.box_coder.decode(offsets, [anchors] * 2).view(2, -1, 4))
    regions = torch.tensor([[3.0, 4, 60, 70], [10, 10, 150, 90], [100, 20, 140, 90.5]])
    pooled = network.roi_heads.box_roi_pool(features, [regions, regions + 2], [SIZE] * 2)
    scores, boxes = network.roi_heads.box_predictor(network.roi_heads.box_head(pooled))
    both, counts = torch.cat([regions, regions + 2]), torch.tensor([3, 3])
    logits, deltas = detector.second_stage(detector.features(images), both, counts, images)
    same(logits, scores[:, [*ROWS, 0]])
    same(deltas, boxes.view(6, 91, 4)[:, ROWS])
    assert started.loaded == started.tensors


@torch.no_grad()
def test_ssd_gives_torchvisions_outputs_and_its_added_shapes_are_background() -> None:
    network, images = torchvisions("ssd300_vgg16"), torch.rand(1, 3, 320, 320)
    side = {
        "priors": {"name": "shapes", "shapes": _torchvision.ssd_shapes(320)},
        "augment": {"image_size": 320},
    }
    detector, started = ours(network.state_dict(), **side)
    features = list(network.backbone(images).values())
    wanted, dense = network.head(features), detector(images)
    assert dense.priors.sizes == tuple(tuple(f.shape[2:]) for f in features)
    shapes = [(40 * 40, 4), (20 * 20, 6), (10 * 10, 6), (5 * 5, 6), (3 * 3, 4), (1, 4)]
    theirs = torch.cat([torch.arange(cells * 6) % 6 < each for cells, each in shapes])
    scores = wanted["cls_logits"]
    same(dense.logits[:, theirs], scores[..., ROWS] - scores[..., :1])
    same(dense.deltas[:, theirs], wanted["bbox_regression"])
    same(dense.priors.boxes[theirs], anchors_of(network.anchor_generator, images, features))
    probabilities = detector.loss.probabilities(dense.logits)
    # of the ids that COCO never used nothing is taken over
    same(probabilities[:, theirs], scores[..., [0, *ROWS]].softmax(-1)[..., 1:])
    assert float(probabilities[:, ~theirs].max()) < detector.default_score_threshold
    assert started.loaded == started.tensors


@torch.no_grad()
def test_the_epsilon_of_zero_that_torchvision_sets_for_two_checkpoints_is_folded_in() -> None:
    network = small(detection.RetinaNet)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # far below the usual epsilon: forgotten, it would change every output
            module.running_var.uniform_(1e-6, 1e-5)
            module.weight.fill_(1e-3)
            module.eps = 0.0
    detector: Any
    detector, _ = ours(network.state_dict(), name="retinanet_resnet50_fpn")
    images = torch.rand(1, 3, 64, 64)
    features = list(network.backbone.body(images).values())
    for mine, theirs in zip(detector.backbone(images)[-len(features) :], features, strict=True):
        same(mine, theirs)


def test_the_older_names_of_towers_and_pyramid_are_read_alike() -> None:
    state = small(detection.RetinaNet).state_dict()
    older = {}
    for key, value in state.items():
        for i in range(4):
            key = key.replace(f"_head.conv.{i}.0.", f"_head.conv.OLD{2 * i}.")
        older[
            key.replace("OLD", "").replace("_blocks.0.0", "_blocks.0").replace("_blocks.1.0", "_blocks.1")
        ] = value
    assert older.keys() != state.keys()
    now, before = (_torchvision.converted(s, None).state for s in (state, older))
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], before[key]) for key in now)


def test_only_the_rows_of_shared_classes_are_kept() -> None:
    state = small(detection.FCOS).state_dict()
    detector, started = ours(state, ("Person", "unicorn", "tvmonitor"))
    given = state["head.classification_head.cls_logits.weight"]
    weight = detector.state_dict()["head.cls.weight"]
    assert torch.equal(weight[0], given[CATEGORIES.index("person")])
    assert torch.equal(weight[2], given[CATEGORIES.index("tv")])
    assert not any(torch.equal(weight[1], row) for row in given)
    assert (started.kept, started.classes) == (2, 3)
    assert str(started).endswith("class layers kept for 2 of 3 classes, the rest drawn anew")


def test_class_layers_of_unknown_classes_are_drawn_anew() -> None:
    network = small(detection.FCOS, num_classes=4)
    _, started = ours(network.state_dict(), ("a", "b", "c"))
    assert started.kept == 0
    assert "it knows none of the 3 classes" in str(started)


def test_a_checkpoint_is_known_by_its_content_whatever_its_name() -> None:
    names = {
        _torchvision.official_name(d + "0" * 56) for d in ("99b0c9b7", "eeacb38b", "258fb6c6", "b556d3b4")
    }
    assert names == set(_torchvision.CHECKPOINTS)
    assert _torchvision.official_name(hashlib.sha256(b"another").hexdigest()) is None
