"""A whole training step with dynamic assignment against the same step with torchvision's own matching and losses.

    python benchmarks/train_step.py                            # RetinaNet-R50 at 800 x 1333, about six minutes
    python benchmarks/train_step.py --backbone mobilenetv1_025 --channels 64 --convs 2 --images 16 --height 192 \
        --width 192 --classes 20 --steps 12                    # a small one, about half a minute

Both sides are one RetinaNet with the same random weights, on the same random images and boxes, in turns, one step
each: forward, assignment, loss, backward, optimiser. Ours assigns with HPS-Det's published counts (positives by level
and aspect ratio) and detsearch's losses; theirs is what torchvision's RetinaNet does: box_iou and Matcher image by
image, then RetinaNetHead.compute_loss (sigmoid_focal_loss against one-hot targets, L1). Ratios are ours over theirs,
medians over the steps, one thread. Exits 1 where our step
takes longer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.recipe import Recipe, compose, read_fragment, with_fragment
from detsearch_cli.structures import Targets

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "recipes" / "hps_retinanet.yaml"


class Side:
    """A detector in training, and the seconds of its steps."""

    def __init__(self, recipe: Recipe, classes: int) -> None:
        torch.manual_seed(0)
        self.detector: Detector = build(recipe, classes).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = make_optimizer(recipe.optim, self.detector, steps=1)
        self.wall: list[float] = []
        self.processor: list[float] = []

    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        """What training minimises, from images to a scalar."""
        return torch.stack(list(self.detector.training_loss(images, targets).values())).sum()

    def step(self, images: Tensor, targets: Targets) -> None:
        """One training step, timed."""
        wall, processor = time.perf_counter(), time.process_time()
        self.loss(images, targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


class Torchvision(Side):
    """The same with torchvision's matching and losses."""

    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    losses = RetinaNetHead(1, 1, 1)

    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        dense = self.detector(images)
        anchors = dense.priors.boxes
        spans = list(pairwise(targets.splits.tolist()))
        truths = [{"boxes": targets.boxes[a:b], "labels": targets.labels[a:b]} for a, b in spans]
        matched = [self.matcher(box_iou(truth["boxes"], anchors)) for truth in truths]
        outputs = {"cls_logits": dense.logits, "bbox_regression": dense.deltas}
        found = self.losses.compute_loss(truths, outputs, [anchors] * len(truths), matched)
        return torch.stack(list(found.values())).sum()


def batch(args: argparse.Namespace) -> tuple[Tensor, Targets]:
    """Random images and boxes of 12 px to most of the image."""
    random = torch.Generator().manual_seed(0)
    height, width = (-(-side // 32) * 32 for side in (args.height, args.width))
    images = torch.randn(args.images, 3, height, width, generator=random)
    boxes, labels = [], []
    for _ in range(args.images):
        sides = torch.exp(torch.rand(args.boxes, 2, generator=random) * 3.5 + 2.5).clamp(
            max=0.8 * args.height
        )
        corner = torch.rand(args.boxes, 2, generator=random) * (torch.tensor([width, height]) - sides)
        boxes.append(torch.cat((corner, corner + sides), 1))
        labels.append(torch.randint(args.classes, (args.boxes,), generator=random))
    return images.contiguous(memory_format=torch.channels_last), Targets.from_lists(boxes, labels)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--convs", type=int, default=4)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--boxes", type=int, default=7, help="an image")
    parser.add_argument("--steps", type=int, default=5, help="of each side; one before is not counted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = compose(
        [
            ("network", {"detector": "retinanet", "backbone": args.backbone}),
            ("size", {"neck": {"channels": args.channels}, "head": {"convs": args.convs}}),
        ]
    )
    ours = Side(with_fragment(recipe, read_fragment(RECIPE)), args.classes)
    theirs = Torchvision(recipe, args.classes)
    images, targets = batch(args)
    for number in range(args.steps + 1):
        for side in (ours, theirs) if number % 2 else (theirs, ours):
            side.step(images, targets)
    name = f"retinanet {args.backbone}, {args.height} x {args.width} x {args.images}, {args.classes} classes"
    ratios = {}
    for clock in ("wall", "processor"):
        pairs = list(zip(getattr(ours, clock)[1:], getattr(theirs, clock)[1:], strict=True))
        ratios[clock] = statistics.median(a / b for a, b in pairs)
        mine, other = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name}: {clock} ours {mine:,.0f} ms, theirs {other:,.0f} ms, ratio {ratios[clock]:.3f}")
    return int(ratios["processor"] > 1)


if __name__ == "__main__":
    sys.exit(main())
