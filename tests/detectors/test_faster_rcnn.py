"""Faster R-CNN against torchvision's, part by part, and what only it does."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torchvision.models.detection import _utils as tv_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork

from detsearch_cli import boxes, parts
from detsearch_cli.detectors import _regions
from detsearch_cli.detectors.faster_rcnn import FasterRCNN
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Test as Selection
from detsearch_cli.recipe import compose, with_fragment
from detsearch_cli.slots.assigners.max_iou import MaxIoU
from detsearch_cli.slots.losses._sampling import balanced
from detsearch_cli.slots.losses.cross_entropy import CrossEntropy
from detsearch_cli.slots.losses.rpn import RPN
from detsearch_cli.slots.priors.anchors import Anchors
from detsearch_cli.structures import BACKGROUND, IGNORE, Assignment, Dense, Matches, Targets
from tests.detectors.test_detectors_contract import BOXES, detector_of, images, targets, total, unsettle
from tests.slots import _reference as slow

SIZES = torch.tensor([[128, 160], [100, 128], [128, 90]])
WEIGHTS = torch.tensor(boxes.DELTA_WEIGHTS)


def anchors_of() -> Any:
    return Anchors(base=4, scales=1)(slow.SIZES, slow.LEVELS)


def proposing(seed: int = 0) -> Dense:
    """Random predictions of one class; the offsets move boxes by about half their size."""
    priors, generator = anchors_of(), torch.Generator().manual_seed(seed)
    deltas = torch.randn(3, len(priors.boxes), 4, generator=generator) * 0.3 * WEIGHTS
    logits = torch.randn(3, len(priors.boxes), 1, generator=generator) - 2
    return Dense((logits,), boxes.decode_deltas(priors.boxes, deltas), deltas, priors)


def reference_rpn(before: int, keep: int) -> RegionProposalNetwork:
    generator, head = AnchorGenerator(((32,),), ((1.0,),)), torch.nn.Identity()
    numbers = {"pre_nms_top_n": dict.fromkeys(("training", "testing"), before)}
    numbers["post_nms_top_n"] = dict.fromkeys(("training", "testing"), keep)
    return RegionProposalNetwork(generator, head, 0.7, 0.3, 10**6, 0.5, nms_thresh=0.7, **numbers)


# ---------------------------------------------------------------------- first stage


@pytest.mark.parametrize(("before", "keep"), [(1000, 1000), (50, 30)])
def test_proposals_equal_torchvisions(before: int, keep: int) -> None:
    dense = proposing()
    found = _regions.propose(dense, SIZES, before=before, keep=keep, nms_iou=0.7)
    shapes = [tuple(s) for s in SIZES.tolist()]
    expected = reference_rpn(before, keep).filter_proposals(
        dense.boxes, dense.logits, shapes, list(dense.priors.counts)
    )
    for image, (own, scores) in enumerate(zip(*expected, strict=True)):
        assert int(found.real[image].sum()) == len(own)
        torch.testing.assert_close(found.boxes[image, : len(own)], own)
        torch.testing.assert_close(found.scores[image, : len(own)], scores)
        assert not found.real[image, len(own) :].any()


def test_an_image_without_any_proposal_is_looked_at_whole() -> None:
    dense = proposing()
    dense.boxes[1] = -50.0  # all outside
    found = _regions.propose(dense, SIZES, before=100, keep=20, nms_iou=0.7)
    assert found.real.sum(1).tolist()[1] == 1 and found.boxes[1, 0].tolist() == [0, 0, 128, 100]


def test_the_loss_of_all_priors_equals_torchvisions() -> None:
    dense, there = proposing(), slow.random_targets([4, 0, 6], 0)
    one_class = Targets(there.boxes, torch.zeros_like(there.labels), there.splits)
    assignment = MaxIoU(positive_iou=0.7, negative_iou=0.3)(dense, one_class)
    loss = RPN(samples=10**6, positive_share=0.5)
    found = loss(dense, assignment, one_class)
    coder = tv_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    labels, wanted = [], []
    for matched in assignment.matched:
        labels.append(torch.where(matched == IGNORE, -1.0, (matched >= 0).float()))
        wanted.append(coder.encode_single(there.boxes[matched.clamp(min=0)], dense.priors.boxes))
    expected = reference_rpn(1, 1).compute_loss(
        dense.logits, dense.deltas.flatten(0, 1) / WEIGHTS, labels, wanted
    )
    torch.testing.assert_close(found["classification"], expected[0])
    torch.testing.assert_close(found["regression"], expected[1])


def test_a_sample_is_balanced_as_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    for positives, count, share in ((0.5, 64, 0.25), (0.02, 64, 0.5), (0.9, 900, 0.5), (0.0, 10, 0.5)):
        kind = torch.rand(4, 500, generator=generator)
        positive, negative = kind < positives, kind > 0.95 if positives == 0.9 else kind >= positives
        sample = balanced(positive, negative, count, share)
        labels = [torch.where(p, 1, torch.where(n, 0, -1)) for p, n in zip(positive, negative, strict=True)]
        expected = tv_utils.BalancedPositiveNegativeSampler(count, share)(labels)
        for image in range(4):
            mine = sample.image == image
            assert int(sample.positive[mine].sum()) == int(expected[0][image].sum())
            assert int((~sample.positive[mine]).sum()) == int(expected[1][image].sum())
        assert positive[sample.image, sample.index][sample.positive].all()
        assert negative[sample.image, sample.index][~sample.positive].all()
        pairs = sample.image * 500 + sample.index
        assert len(pairs.unique()) == len(pairs) and (sample.image.diff() >= 0).all()


def test_every_candidate_is_drawn_as_often_as_any_other() -> None:
    torch.manual_seed(0)
    positive = torch.zeros(1, 20, dtype=torch.bool)
    positive[0, :8] = True
    drawn = torch.zeros(20)
    for _ in range(2000):
        drawn[balanced(positive, ~positive, 10, 0.5).index] += 1
    assert (drawn[:8] / 2000 - 5 / 8).abs().max() < 0.06
    assert (drawn[8:] / 2000 - 5 / 12).abs().max() < 0.06


def test_a_soft_assignment_weighs_every_pair_by_its_share() -> None:
    dense, there = proposing(), targets(BOXES[:1], BOXES[:0], BOXES[:0])
    one_class = Targets(there.boxes, torch.zeros_like(there.labels), there.splits)
    matched = torch.full(dense.logits.shape[:2], BACKGROUND)
    matched[0, 30:34] = 0
    pairs = torch.arange(30, 33)
    zero = torch.zeros_like(pairs)
    soft = Matches(zero, pairs, zero, torch.tensor([0.2, 0.5, 0.3]))
    found = RPN(samples=4)(dense, Assignment(matched, soft), one_class)[
        "regression"
    ]  # 2 of 4 positives drawn
    wanted = boxes.encode_deltas(dense.priors.boxes[pairs], BOXES[:1].expand(3, 4))
    error = torch.nn.functional.smooth_l1_loss(
        dense.deltas[0, pairs] / WEIGHTS, wanted / WEIGHTS, beta=1 / 9, reduction="none"
    )
    torch.testing.assert_close(found, (error.sum(1) * soft.weight).sum() * 0.5 / 12)


# ---------------------------------------------------------------------- second stage


def test_regions_are_matched_as_torchvisions() -> None:
    there = slow.random_targets([4, 0, 9], 2)
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3, 200, 2, generator=generator) * 100
    found = torch.cat((corner, corner + 5 + 60 * torch.rand(3, 200, 2, generator=generator)), 2)
    found[2, :9] = there.boxes[4:]
    matched, overlap = _regions.match(found, there)
    for image, (start, own) in enumerate(slow.per_image(there)):
        if len(own) == 0:
            assert (overlap[image] == 0).all()
            continue
        quality = torch.stack([boxes.iou(gt, found[image]) for gt in own])
        expected = tv_utils.Matcher(0.5, 0.5, allow_low_quality_matches=False)(quality)
        positive = overlap[image] >= 0.5
        assert torch.equal(positive, expected >= 0)
        assert torch.equal(matched[image][positive], expected[positive] + start)


def test_sampled_regions_hold_the_ground_truths_and_their_labels() -> None:
    there = targets(BOXES, BOXES[:0], torch.tensor([[9.0, 9, 9, 9]]))
    proposals = _regions.Proposals(torch.zeros(3, 2, 4), torch.full((3, 2), -1.0))
    proposals.boxes[:, 0] = torch.tensor([0.0, 0, 30, 30])
    proposals.scores[:, 0] = 0.5
    for count in (8, None):
        regions = _regions.sample_regions(proposals, there, count=count, positive_share=0.5)
        assert regions.counts.tolist() == [4, 1, 1]  # the empty box is no region
        own = regions.matched[regions.matched >= 0]
        assert torch.equal(regions.boxes[regions.matched >= 0], there.boxes[own])
        assert sorted(own.tolist()) == [0, 1, 2] and (regions.matched == -1).sum() == 3


def test_the_loss_of_regions_equals_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (50,), generator=generator)
    corner = torch.rand(50, 2, generator=generator) * 50
    found = torch.cat((corner, corner + 20), 1)
    there = Targets(found + 5, labels.clamp(max=2), torch.tensor([0, 30, 50]))
    matched = torch.where(labels < 3, torch.arange(50), -1)
    regions = _regions.Regions(found, torch.tensor([30, 20]), matched)
    logits, deltas = torch.randn(50, 4, generator=generator), torch.randn(50, 3, 4, generator=generator)
    mine = CrossEntropy()(*regions.dense(logits, deltas, there, (96, 128)))
    # torchvision's background is class 0, and has a box too
    theirs = torch.cat((torch.zeros(50, 1, 4), deltas), 1).flatten(1)
    wanted = tv_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(there.boxes, regions.boxes)
    expected = fastrcnn_loss(logits.roll(1, 1), theirs, [(labels + 1) % 4], [wanted])
    torch.testing.assert_close(mine["classification"], expected[0])
    torch.testing.assert_close(mine["regression"], expected[1])


@pytest.mark.parametrize("name", parts.names("slots.losses"))
@pytest.mark.parametrize("crowded", [True, False])
def test_every_loss_trains_regions_or_says_why_not(name: str, crowded: bool) -> None:
    try:
        detector = detector_of({"name": "faster_rcnn", "proposals": 40}, region_loss=name)
        terms = detector.training_loss(
            images(2), targets(BOXES, BOXES[:1]) if crowded else targets(BOXES[:0], BOXES[:0])
        )
    except RecipeError as refused:
        pytest.skip(str(refused))
    total(terms).backward()
    assert total(terms).isfinite()
    for part in (detector.regions.cls, detector.regions.reg):  # type: ignore[union-attr]
        assert part.weight.grad is not None  # type: ignore[union-attr]
        assert bool(part.weight.grad.any()) or not crowded  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("loss", "outputs", "threshold"), [(None, 4, 0.05), ("focal_iou", 3, 0.05), ("rank_sort", 3, 0.0)]
)
def test_a_region_loss_decides_on_background_and_threshold(
    loss: str | None, outputs: int, threshold: float
) -> None:
    detector = detector_of({"name": "faster_rcnn", "regions": None}, region_loss=loss).eval()
    assert isinstance(detector, FasterRCNN)
    assert detector.regions.cls.out_features == outputs
    assert detector.selection(Selection()).score_threshold == threshold
    found = detector.detect(images(1), torch.tensor([[128, 128]]), Selection(score_threshold=0.0))
    assert found[0].scores.isfinite().all()


def test_losses_in_the_wrong_place_are_refused() -> None:
    with pytest.raises(RecipeError, match="detector fcos has one stage and no regions"):
        detector_of("fcos", region_loss="focal_iou")
    with pytest.raises(RecipeError, match="loss: cross_entropy wants a logit for background"):
        detector_of("retinanet", loss="cross_entropy")
    with pytest.raises(RecipeError, match="region_loss: yolo compares a branch that regions do not have"):
        detector_of("faster_rcnn", region_loss="yolo")


def test_an_open_region_loss_is_no_part_of_a_recipe() -> None:
    recipe = compose([("test", {"detector": "faster_rcnn"})])
    assert "region_loss" not in recipe.identity()
    assert compose([("test", {"detector": "faster_rcnn", "region_loss": None})]).hash() == recipe.hash()
    other = with_fragment(recipe, {"region_loss": {"name": "cross_entropy", "regression": "l1"}})
    assert other.identity()["region_loss"]["beta"] == pytest.approx(1 / 9) and other.hash() != recipe.hash()


def test_detections_equal_torchvisions() -> None:
    detector = detector_of({"name": "faster_rcnn", "proposals": 60}).eval()
    assert isinstance(detector, FasterRCNN)
    unsettle(detector)
    torch.nn.init.normal_(detector.regions.cls.weight, std=3)
    torch.nn.init.normal_(detector.regions.reg.weight, std=0.2)
    pictures, sizes = images(2), torch.tensor([[90, 128], [128, 70]])
    with torch.no_grad():
        found = detector.detect(pictures, sizes, Selection(score_threshold=0.2, pre_nms_top_k=10**6))
        features = detector.features(pictures)
        proposed = detector.propose(detector.first_stage(features), sizes)
        each = [b[r] for b, r in zip(proposed.boxes, proposed.real, strict=True)]
        logits, deltas = detector.second_stage(features, torch.cat(each), proposed.real.sum(1), pictures)
    unused = dict.fromkeys(("box_roi_pool", "box_head", "box_predictor", "batch_size_per_image"))
    heads = RoIHeads(
        **unused,  # type: ignore[arg-type]
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=0.2,
        nms_thresh=0.5,
        detections_per_img=100,
    )
    theirs = torch.cat((torch.zeros(len(logits), 1, 4), deltas), 1).flatten(1)
    shapes = [tuple(s) for s in sizes.tolist()]
    expected = heads.postprocess_detections(logits.roll(1, 1), theirs, each, shapes)
    for own, own_boxes, scores, labels, proposals in zip(found, *expected, each, strict=True):
        assert len(own.boxes) > 3
        torch.testing.assert_close(own.boxes, own_boxes)
        torch.testing.assert_close(own.scores, scores)
        assert torch.equal(own.labels + 1, labels)
        assert own.proposals is not None and torch.equal(own.proposals, proposals)


# ---------------------------------------------------------------------- the whole


def test_the_defaults_are_the_papers() -> None:
    recipe = compose([("test", {"detector": "faster_rcnn"})])
    assert recipe.neck.levels == (2, 6)
    written = compose([("test", {"detector": "faster_rcnn", "neck": {"levels": [2, 6]}})])
    assert recipe.hash() == written.hash()
    assert compose([("test", {"detector": "retinanet"})]).neck.levels == (3, 7)
    pyramid = detector_of("faster_rcnn", neck={"levels": [2, 6]})
    sides = [boxes.area(torch.tensor([[0.0, 0, w, h]])).sqrt() for w, h in _cells(pyramid)]
    torch.testing.assert_close(torch.cat(sides), torch.tensor([32.0, 64, 128, 256, 512]).repeat_interleave(3))
    single = FasterRCNN(
        compose([("test", {"detector": {"name": "faster_rcnn", "fpn": False}, "backbone": "tiny"})]), 3
    )
    assert single.strides == (16,) and single.prior_grid.per_cell == 9
    assert {round((w * h) ** 0.5) for w, h in _cells(single)} == {128, 256, 512}
    assert {round(h / w, 3) for w, h in _cells(single)} == {0.5, 1.0, 2.0}


def _cells(detector: Any) -> list[tuple[float, float]]:
    return [shape for level in detector.prior_grid.level_boxes(detector.levels) for shape in level]


def test_training_is_the_same_again_from_the_same_random_state() -> None:
    detector = detector_of("faster_rcnn")
    sums = []
    for _ in range(2):
        torch.manual_seed(3)
        sums.append(total(detector.training_loss(images(2), targets(BOXES, BOXES[:1]))).item())
    assert sums[0] == sums[1]


def test_proposals_carry_no_gradient_into_the_first_stage() -> None:
    detector = detector_of("faster_rcnn")
    terms = detector.training_loss(images(1), targets(BOXES))
    own = terms["classification"] + terms["regression"]
    head = list(detector.head.parameters())  # type: ignore[union-attr]
    assert all(g is None for g in torch.autograd.grad(own, head, allow_unused=True))


def test_a_stage_of_the_backbone_looks_at_regions_in_its_loaded_and_frozen_state() -> None:
    detector = detector_of(
        {"name": "faster_rcnn", "fpn": False}, backbone={"name": "tiny", "frozen_bn": True}
    )
    assert isinstance(detector, FasterRCNN) and detector.backbone.tail is not None
    assert detector.backbone.levels[-1] == 4
    norms = [m for m in detector.train().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    tail = [m for m in detector.backbone.tail.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert tail and not any(m.training for m in norms)


def test_a_timm_backbone_gives_its_last_stage_to_the_regions() -> None:
    detector = detector_of({"name": "faster_rcnn", "fpn": False}, backbone="resnet18")
    loss = total(detector.training_loss(images(1), targets(BOXES)))
    loss.backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
    assert detector.regions.cls.in_features == 512  # type: ignore[union-attr]


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(RecipeError, match="set fpn: false"):
        detector_of({"name": "faster_rcnn", "region_head": "stage5"})
    with pytest.raises(RecipeError, match="use region_head: mlp"):
        detector_of({"name": "faster_rcnn", "fpn": False}, backbone="mobilenetv2_050")
    with pytest.raises(RecipeError, match="got points; use loss: focal_iou"):
        detector_of("faster_rcnn", priors="points").training_loss(images(1), targets(BOXES))


def test_other_slots_work_on_the_first_stage() -> None:
    for changes in (
        {"assign": "atss"},
        {"assign": "dynamic"},
        {"loss": "focal_smooth_l1"},
        {"loss": "focal_iou"},
    ):
        loss = total(
            detector_of("faster_rcnn", **changes).training_loss(images(2), targets(BOXES, BOXES[:0]))
        )
        assert loss.isfinite()


def test_regions_of_all_images_are_pooled_from_their_own() -> None:
    detector = detector_of("faster_rcnn").eval()
    assert isinstance(detector, FasterRCNN)
    pictures, counts = images(3), torch.tensor([2, 0, 3])
    found = torch.cat((BOXES[:2], BOXES))
    with torch.no_grad():
        together, _ = detector.second_stage(detector.features(pictures), found, counts, pictures)
        bounds = [0, *counts.cumsum(0).tolist()]
        for image, (start, end) in enumerate(pairwise(bounds)):
            alone = pictures[image : image + 1]
            number = torch.tensor([end - start])
            own, _ = detector.second_stage(detector.features(alone), found[start:end], number, alone)
            torch.testing.assert_close(together[start:end], own, atol=1e-5, rtol=1e-4)


def theirs_into_ours(theirs: torch.nn.Module) -> dict[str, torch.Tensor]:
    """torchvision's Faster R-CNN under our names; its background is class 0 and has a box, ours is last."""
    names = (
        (r"backbone\.body\.", "backbone.body."),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral.\1."),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.output.\1."),
        (r"rpn\.head\.conv\.0\.0\.", "head.conv."),
        (r"rpn\.head\.cls_logits\.", "head.cls."),
        (r"rpn\.head\.bbox_pred\.", "head.reg."),
        (r"roi_heads\.box_head\.fc6\.", "regions.body.1."),
        (r"roi_heads\.box_head\.fc7\.", "regions.body.3."),
        (r"roi_heads\.box_predictor\.cls_score\.", "regions.cls."),
        (r"roi_heads\.box_predictor\.bbox_pred\.", "regions.reg."),
    )
    found = {}
    for key, value in theirs.state_dict().items():
        for pattern, own in names:
            key = re.sub(f"^{pattern}", own, key)
        if key.startswith("regions.cls."):
            value = value.roll(-1, 0)
        if key.startswith("regions.reg."):
            value = value[4:]
        found[key] = value
    return found


def test_with_torchvisions_weights_it_finds_what_torchvision_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)
    theirs = TorchvisionFasterRCNN(backbone, 4, box_score_thresh=0.2).eval()
    torch.nn.init.normal_(theirs.rpn.head.cls_logits.weight, std=0.1)
    torch.nn.init.normal_(theirs.roi_heads.box_predictor.cls_score.weight, std=0.1)
    changes = {"backbone": "resnet18", "neck": {"channels": 256, "levels": [2, 6]}}
    ours = detector_of({"name": "faster_rcnn", "width": 1024}, **changes).eval()
    missing, unexpected = ours.load_state_dict(theirs_into_ours(theirs), strict=False)
    assert (missing, unexpected) == ([], [])
    pictures = images(2)
    listed = ImageList(pictures, [(128, 128)] * 2)
    with torch.no_grad():
        features = theirs.backbone(pictures)
        # theirs are rounded to whole pixels and centred on the corners of cells
        anchors = theirs.rpn.anchor_generator(listed, list(features.values()))[0]
        priors = ours.priors
        monkeypatch.setattr(ours, "priors", lambda *given: replace(priors(*given), boxes=anchors))
        proposals, _ = theirs.rpn(listed, features)
        expected, _ = theirs.roi_heads(features, proposals, listed.image_sizes)
    test = Selection(score_threshold=0.2, pre_nms_top_k=10**6)
    for own, other, proposed in zip(
        ours.detect(pictures, torch.tensor([[128, 128]] * 2), test), expected, proposals, strict=True
    ):
        assert len(own.boxes) == len(other["boxes"]) > 5
        assert own.proposals is not None
        torch.testing.assert_close(own.proposals, proposed, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(own.boxes, other["boxes"], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(own.scores, other["scores"], atol=1e-4, rtol=1e-4)
        assert torch.equal(own.labels + 1, other["labels"])
