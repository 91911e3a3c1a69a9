"""Backbones: shapes, freezing, and weights files as they occur in the wild."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from detsearch_cli.detectors import build
from detsearch_cli.detectors._backbones import NAMES, Backbone, build_backbone
from detsearch_cli.detectors._weights import load_backbone_weights, read_state_dict
from detsearch_cli.errors import CheckpointError, RecipeError
from detsearch_cli.recipe import Backbone as Section
from detsearch_cli.recipe import compose

QUICK = (
    "tiny",
    "mobilenetv1_025",
    "shufflenetv2_050",
    "darknet19",
    "mobilenetv2_050",
    "resnet18",
    "swin_tiny",
)


def make(name: str, levels: tuple[int, int] = (3, 7), **options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(Section(name=name, **options), levels)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", QUICK)
def test_features_have_the_stride_of_their_level_at_any_size(name: str) -> None:
    backbone = make(name).eval()
    for height, width in ((96, 160), (128, 64)):
        features = backbone(torch.randn(1, 3, height, width))
        assert [f.shape[1:] for f in features] == [
            (c, height >> level, width >> level)
            for level, c in zip(backbone.levels, backbone.channels, strict=True)
        ]
    assert backbone.levels[-1] == 5


def test_all_named_backbones_exist_in_timm() -> None:
    import timm

    known = set(timm.list_models())
    for name in NAMES:
        assert (
            name in ("tiny", "mobilenetv1_025", "shufflenetv2_050", "darknet19")
            or {
                name,
                f"{name}_patch4_window7_224",
            }
            & known
        )


def test_tiny_has_under_half_a_million_parameters() -> None:
    assert sum(p.numel() for p in make("tiny").parameters()) < 500_000


@pytest.mark.parametrize("name", QUICK)
def test_stages_no_level_needs_are_not_trained(name: str) -> None:
    backbone = make(name, (3, 4))
    features = backbone(torch.randn(2, 3, 64, 64))
    used = [f for f, level in zip(features, backbone.levels, strict=True) if level >= 3]
    assert backbone.levels[-1] == 4
    torch.stack([f.square().mean() for f in used]).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", QUICK)
def test_frozen_stages_and_batch_norms_stay_frozen_in_training_mode(name: str) -> None:
    backbone = make(name, frozen_stages=2, frozen_bn=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert all(not m.training and not m.weight.requires_grad for m in norms)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    stages = backbone.stages()
    assert all(not p.requires_grad for stage in stages[:2] for m in stage for p in m.parameters())
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    assert trainable
    features = backbone(torch.randn(2, 3, 64, 64))[-3:]
    torch.stack([f.square().mean() for f in features]).sum().backward()
    assert all(p.grad is not None for p in trainable)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("name", QUICK)
def test_stages_cover_every_parameter_once(name: str) -> None:
    backbone = make(name)
    listed = [p for stage in backbone.stages() for m in stage for p in m.parameters()]
    assert {id(p) for p in listed} == {id(p) for p in backbone.body.parameters()}  # type: ignore[union-attr]


def test_only_stages_asked_for_are_frozen() -> None:
    free = [n for n, p in make("resnet18", frozen_stages=2).named_parameters() if p.requires_grad]
    assert free and all(n.startswith(("body.layer2", "body.layer3", "body.layer4")) for n in free)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mobilenetv1_025", "mobilenetv1_x025_imagenet.tar"),
        ("mobilenetv1_025", "retinaface_mobilenet025_wider.pth"),
        ("shufflenetv2_050", "shufflenetv2_backbone_imagenet.pth"),
    ],
)
def test_real_weights_load_whole(name: str, file: str, shared_data: Path) -> None:
    backbone = make(name)
    report = load_backbone_weights(backbone, shared_data / "weights" / file)
    state = {k: v for k, v in backbone.body.state_dict().items() if "num_batches" not in k}  # type: ignore[union-attr]
    assert report.loaded == len(state)
    source = read_state_dict(shared_data / "weights" / file)
    key = next(iter(state))
    assert torch.equal(state[key], next(v for k, v in source.items() if k.endswith(key)))


def test_real_weights_make_sense_of_photographs(shared_data: Path) -> None:
    """With the right layout and normalisation, ImageNet's batch statistics fit what a photograph gives."""
    import numpy as np
    from PIL import Image

    file = sorted((shared_data / "voc-animals" / "JPEGImages").glob("*.jpg"))[:8]
    batch = torch.stack(
        [torch.from_numpy(np.array(Image.open(f).convert("RGB").resize((192, 192)))) for f in file]
    )
    x = batch.permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    backbone = make(
        "mobilenetv1_025", weights=shared_data / "weights" / "mobilenetv1_x025_imagenet.tar"
    ).eval()
    deviations: list[float] = []

    def compare(module: nn.Module, inputs: tuple[torch.Tensor], _: object) -> None:
        assert isinstance(module, nn.BatchNorm2d) and module.running_var is not None
        ratio = inputs[0].var((0, 2, 3)) / module.running_var.clamp(min=1e-6)
        deviations.append(ratio.median().item())

    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    with torch.no_grad():
        backbone(x)
    assert all(0.3 < d < 3 for d in deviations), deviations


def classifier_of(name: str) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(1)
    return timm.create_model(name, pretrained=False).state_dict()


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("resnet18", "resnet18"),
        ("mobilenetv2_050", "mobilenetv2_050"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
    ],
)
def test_a_timm_classifier_loads(name: str, timm_name: str, tmp_path: Path) -> None:
    state = classifier_of(timm_name)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    backbone = make(name)
    report = load_backbone_weights(backbone, tmp_path / "w.safetensors")
    assert any(key.startswith(("fc.", "classifier.", "head.")) for key in report.ignored)


def test_a_torchvision_classifier_loads_and_computes_the_same(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    model = resnet18(weights=None).eval()
    torch.save({"epoch": 3, "acc": torch.zeros(()), "state_dict": model.state_dict()}, tmp_path / "w.pth")
    backbone = make("resnet18", weights=tmp_path / "w.pth").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        stem = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        expected = model.layer4(model.layer3(model.layer2(model.layer1(stem))))
        torch.testing.assert_close(backbone(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_swins_own_key_names_load(tmp_path: Path) -> None:
    state = classifier_of("swin_tiny_patch4_window7_224")
    official = {
        k.replace("layers.1.downsample", "layers.0.downsample")
        .replace("layers.2.downsample", "layers.1.downsample")
        .replace("layers.3.downsample", "layers.2.downsample"): v
        for k, v in state.items()
    }
    torch.save({"model": official}, tmp_path / "w.pth")
    backbone = make("swin_tiny", weights=tmp_path / "w.pth")
    key = "layers_2.downsample.reduction.weight"
    assert torch.equal(backbone.body.state_dict()[key], state["layers.2.downsample.reduction.weight"])  # type: ignore[union-attr]


def test_a_run_of_ours_gives_its_backbone(tmp_path: Path) -> None:
    recipe = compose([("t", {"backbone": "tiny", "neck": {"channels": 16, "levels": [3, 5]}})])
    detector = build(recipe, 2)
    save_file(detector.state_dict(), tmp_path / "last.safetensors")
    backbone = make("tiny", (3, 5))
    load_backbone_weights(backbone, tmp_path / "last.safetensors")
    expected = detector.backbone.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "no weights that can be read"),
        (b"", "no weights that can be read"),
        ({"epoch": 3}, "no state dict"),
        ({"fc.weight": torch.zeros(3, 3)}, "fits 0 of the backbone's"),
    ],
)
def test_files_that_do_not_fit_are_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        make("tiny", weights=path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    state = make("tiny").body.state_dict()  # type: ignore[union-attr]
    state["stage3.0.0.weight"] = torch.zeros(7, 7, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"stage3\.0\.0\.weight has shape \(7, 7, 3, 3\)"):
        make("tiny", weights=tmp_path / "w.pth")


def test_a_missing_file_and_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none at"):
        make("tiny", weights=tmp_path / "nowhere.pth")
    with pytest.raises(RecipeError, match="none of tiny"):
        make("resnet19")
    with pytest.raises(RecipeError, match="timm has no model"):
        make("timm/no_such_model")


def test_any_timm_model_with_features_is_accepted() -> None:
    backbone = make("timm/resnet10t")
    assert backbone.levels == (2, 3, 4, 5)
    assert len(backbone(torch.zeros(1, 3, 64, 64))) == 4
