"""Deformable DETR against transformers' own model; its layers, priors, rates, selection, and what it must not do."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detsearch_cli.detectors import build
from detsearch_cli.detectors.deformable_detr import DeformableDETR, decode, query_priors
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.errors import RecipeError
from detsearch_cli.recipe import Optim, compose
from detsearch_cli.recipe import Test as Selection
from detsearch_cli.structures import Dense, Targets
from tests.recipes import skip_without_extra

TRUTH = Targets.from_lists(
    [torch.tensor([[10.0, 20, 60, 80], [50, 10, 120, 60]]), torch.zeros(0, 4)],
    [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
)
OF_POINTS = ("hungarian", "fcos", "atss", "max_iou", "dynamic", "simota")


def detector_of(options: dict[str, Any] | None = None, **changes: Any) -> DeformableDETR:
    base = {
        "detector": {"name": "deformable_detr", "queries": 40, "layers": 2, **(options or {})},
        "backbone": "tiny",
        "neck": {"channels": 32},
    }
    recipe = compose([("base", base), ("changes", changes)])
    skip_without_extra(recipe)
    torch.manual_seed(0)
    found = build(recipe, 3)
    assert isinstance(found, DeformableDETR)
    return found


def images(count: int = 2, height: int = 128, width: int = 128) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


class Features(nn.Module):
    """Our backbone as transformers' model wants one: features with masks in which all is valid."""

    def __init__(self, detector: DeformableDETR) -> None:
        super().__init__()
        self.own, self.levels = detector.backbone, detector.feature_levels

    def forward(self, images: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        known = zip(self.own.levels, self.own(images), strict=True)
        used = [f for level, f in known if level in self.levels]
        return [(f, torch.ones(len(f), *f.shape[2:], dtype=torch.bool)) for f in used]


def unsettle(detector: DeformableDETR) -> None:
    """Give every parameter that starts at a constant another value, as if trained."""
    for parameter in detector.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)


@pytest.mark.parametrize("levels", [(3, 6), (5, 5), (3, 7)])
def test_the_network_is_that_of_transformers(levels: tuple[int, int]) -> None:
    detector = detector_of(neck={"levels": levels}).eval()
    unsettle(detector)
    from transformers import DeformableDetrForObjectDetection

    config = type(detector.encoder.config)(  # type: ignore[operator]
        **{**detector.encoder.config.to_dict(), "num_labels": 3, "auxiliary_loss": True, "num_queries": 40}
    )
    whole = DeformableDetrForObjectDetection(config).eval()
    whole.model.backbone = Features(detector)
    whole.model.input_proj = detector.project
    whole.model.level_embed = detector.level_embedding
    whole.model.query_position_embeddings = detector.queries
    whole.model.reference_points = detector.reference
    whole.model.encoder, whole.model.decoder = detector.encoder, detector.decoder
    with torch.no_grad():
        for head in whole.bbox_embed:
            head.layers = nn.ModuleList(m for m in detector.head.reg if isinstance(m, nn.Linear))
        whole.class_embed = nn.ModuleList([detector.head.cls] * 2)
        theirs, ours = whole(images(2, 96, 160)), detector(images(2, 96, 160))
    center, size = theirs.pred_boxes.split(2, -1)
    wanted = torch.cat((center - size / 2, center + size / 2), -1) * torch.tensor([160.0, 96, 160, 96])
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.boxes, wanted, rtol=1e-4, atol=2e-3)


ALONE = """
import socket, sys
def closed(*given, **more):
    raise OSError("closed")
for name in ("connect", "connect_ex", "bind", "sendto"):
    setattr(socket.socket, name, closed)
socket.getaddrinfo = socket.create_connection = closed
import detsearch_kernels, torch
from detsearch_cli.detectors import build
from detsearch_cli.recipe import compose
from detsearch_cli.structures import Targets
detsearch_kernels.use("off")  # to compile them is another's matter
recipe = compose([("test", {
    "detector": {"name": "deformable_detr", "queries": 10, "layers": 1}, "backbone": "tiny", "neck": {"channels": 96}})])
assert "transformers" not in sys.modules, "imported before it is needed"
detector = build(recipe, 2)
truth = Targets.from_lists([torch.tensor([[4.0, 4, 40, 50]])], [torch.tensor([1])])
torch.stack([*detector.training_loss(torch.rand(1, 3, 64, 64), truth).values()]).sum().backward()
"""


def test_it_neither_asks_the_network_nor_speaks_nor_is_imported_early(tmp_path: Path) -> None:
    skip_without_extra(compose([("test", {"detector": "deformable_detr"})]))
    hub = ("HF_", "HUGGINGFACE", "TRANSFORMERS", "XDG_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hub)}
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**environment, "PYTHONPATH": path, "HOME": str(tmp_path)},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_transformers_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.deformable_detr", None)
    recipe = compose([("test", {"detector": "deformable_detr", "backbone": "tiny"})])
    with pytest.raises(
        RecipeError, match=r"deformable_detr needs transformers.*pip install 'detsearch\[detr\]'$"
    ):
        build(recipe, 3)


def test_at_first_every_class_has_the_prior_probability_and_boxes_lie_around_their_reference_points() -> None:
    detector = detector_of()
    torch.testing.assert_close(detector.head.cls.bias.sigmoid(), torch.full((3,), 0.01))
    for dense in detector.every_layer(images()):
        centers = (dense.boxes[..., :2] + dense.boxes[..., 2:]) / 2
        torch.testing.assert_close(centers, dense.priors.points.expand_as(centers), rtol=1e-4, atol=1e-2)
        side = 128 / (1 + math.exp(2))
        torch.testing.assert_close(
            dense.boxes[..., 2:] - dense.boxes[..., :2], torch.full_like(centers, side)
        )


def test_boxes_are_parts_of_the_padded_batch() -> None:
    reference = torch.tensor([[0.0, math.log(3)]])
    deltas = torch.tensor([[[math.log(3), 0.0, 0.0, -math.log(3)]]])
    # center (.75, .75), size (.5, .25) of 200 x 100 px
    (found,) = decode(query_priors(reference.sigmoid(), (100, 200)), reference, deltas)[0].tolist()
    assert found == pytest.approx([100, 62.5, 200, 87.5])


def test_priors_are_the_reference_points_with_cells_that_would_cover_the_image() -> None:
    priors = detector_of()(images(1, 96, 160)).priors
    assert (priors.counts, priors.per_cell, priors.num_levels) == ((40,), 1, 1)
    areas = (priors.boxes[:, 2:] - priors.boxes[:, :2]).prod(1)
    assert areas.sum().item() == pytest.approx(96 * 160)
    torch.testing.assert_close(areas.sqrt(), priors.strides.expand(40))
    assert not priors.points.requires_grad


@pytest.mark.parametrize("loss", [None, "parameterized_ap", "rank_sort"])
def test_every_layer_has_the_whole_loss_with_its_own_assignment(loss: str | None) -> None:
    detector = detector_of({"layers": 3}, loss=loss).eval()
    terms = detector.training_loss(images(), TRUTH)
    each = [
        detector.loss(dense, detector.assigner(dense.detached(), TRUTH), TRUTH)
        for dense in detector.every_layer(images())
    ]
    assert len(each) == 3 and terms.keys() == {f"{n}{end}" for n in each[0] for end in ("", ".earlier")}
    for name in each[0]:
        torch.testing.assert_close(terms[name], each[2][name])
        torch.testing.assert_close(terms[f"{name}.earlier"], each[0][name] + each[1][name])


def test_it_is_stuck_where_every_layer_is() -> None:
    detector = detector_of({"layers": 3}, loss="parameterized_ap")
    assert detector.stuck({"ap": 1.0, "ap.earlier": 2.0})
    assert not detector.stuck({"ap": 1.0, "ap.earlier": 1.9})
    assert not detector.stuck({"ap": 0.9, "ap.earlier": 2.0})
    assert detector_of({"layers": 1}, loss="parameterized_ap").stuck({"ap": 1.0})


@pytest.mark.parametrize("assign", OF_POINTS)
@pytest.mark.parametrize("loss", ["focal_l1_giou", "focal_iou", "parameterized_ap"])
def test_any_assigner_of_points_trains_it(assign: str, loss: str) -> None:
    detector = detector_of({"queries": 100, "layers": 1}, assign=assign, loss=loss)
    dense = detector(images())
    matched = detector.assign(dense, TRUTH).matched
    found = set(matched.unique().tolist()) - {-1, -2}
    # cells that lie inside a large box overlap it alike, which ATSS's mean plus deviation may leave without any
    assert found == {0, 1} or (assign == "atss" and found)
    assert not (matched[1] >= 0).any()
    torch.stack([*detector.training_loss(images(), TRUTH).values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_what_does_not_fit_is_refused_when_it_is_built() -> None:
    with pytest.raises(RecipeError, match="assign: yolo compares shapes of anchors; use assign: hungarian"):
        detector_of(assign="yolo")
    for priors in ("points", "anchors", "learned"):
        with pytest.raises(
            RecipeError, match=f"reference points .* got priors: {priors}; set priors to null"
        ):
            detector_of(priors=priors)
    with pytest.raises(RecipeError, match=r"a multiple of 8, .* got 20; set it to 16"):
        detector_of(neck={"channels": 20})
    with pytest.raises(RecipeError, match=r"begin at one of the backbone's \(3, 4, 5\), got 2"):
        detector_of(backbone="mobilenetv1_025", neck={"levels": [2, 5]})


def test_nothing_is_suppressed_unless_the_recipe_says_so() -> None:
    detector = detector_of().eval()
    same = torch.tensor([20.0, 20, 60, 60]).expand(1, 40, 4)
    priors = detector(images(1)).priors
    detector.forward = lambda _: Dense((torch.zeros(1, 40, 3),), same, same, priors)  # type: ignore[method-assign]
    size = torch.tensor([[128, 128]])
    assert len(detector.detect(images(1), size, Selection())[0].boxes) == 100
    assert len(detector.detect(images(1), size, Selection(nms_iou=0.9))[0].boxes) == 3  # one a class


def test_backbone_sampling_offsets_and_reference_points_learn_at_a_tenth() -> None:
    detector = detector_of()
    optimizer = make_optimizer(Optim(name="adamw", lr=0.1), detector, 10)
    factor = {id(p): g.get("lr_factor", 1.0) for g in optimizer.param_groups for p in g["params"]}
    slow = {n for n, p in detector.named_parameters() if factor[id(p)] == 0.1}
    assert set(factor.values()) == {0.1, 1.0} and len(factor) == len(list(detector.parameters()))
    assert {n for n in slow if not n.startswith("backbone.")} == {
        "reference.weight",
        "reference.bias",
        *(f"{side}.layers.{i}.{attention}.sampling_offsets.{kind}"
          for side, attention in (("encoder", "self_attn"), ("decoder", "encoder_attn"))
          for i in (0, 1) for kind in ("weight", "bias")),
    }  # fmt: skip
    assert {n for n, _ in detector.named_parameters() if n.startswith("backbone.")} <= slow


def test_the_batch_norms_of_the_backbone_learn() -> None:
    detector = detector_of(backbone="mobilenetv1_025")
    norms = [m for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]  # type: ignore[union-attr]
    torch.stack([*detector.training_loss(images(), TRUTH).values()]).sum().backward()
    assert norms and all(m.weight.grad is not None for m in norms)
    assert all(not torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))  # type: ignore[arg-type]
