"""A whole training step with dynamic assignment against the same step with torchvision's own matching and losses.

    python benchmarks/train_step.py                            # RetinaNet-R50 at 800 x 1333, about six minutes
    python benchmarks/train_step.py --backbone mobilenetv1_025 --channels 64 --convs 2 --images 16 --height 192 \
        --width 192 --classes 20 --steps 12                    # a small one, about half a minute
    python benchmarks/train_step.py --ranking --height 512 --width 512 --images 2    # about five minutes

Both sides are one RetinaNet with the same random weights, on the same random images and boxes, in turns, one step
each: forward, assignment, loss, backward, optimiser. Ours assigns with HPS-Det's published counts (positives by level
and aspect ratio) and detsearch's losses; theirs is what torchvision's RetinaNet does: box_iou and Matcher image by
image, then RetinaNetHead.compute_loss (sigmoid_focal_loss against one-hot targets, L1). Ratios are ours over theirs,
medians over the steps, one thread. Exits 1 where our step
takes longer.

--ranking compares losses instead: Parameterized AP Loss over all logits, with its published curves, and the detector's own
assignment on our side; focal loss and GIoU with the same on theirs. Peak memory is what a step adds to a process of its
own. Exits 1 where ours takes more than 1.05 of theirs, of either.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from _kernels import peak_bytes, peak_of
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou

from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.fragments import published
from detsearch_cli.recipe import Recipe, compose, read_fragment, with_fragment
from detsearch_cli.structures import Targets

FOCAL_GIOU = {"loss": {"name": "focal_iou", "iou": "giou"}}
MOST = 1.05  # of a step with focal loss and GIoU, in processor time and in memory
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
    parser.add_argument("--ranking", action="store_true", help="compare losses: a ranking with focal + GIoU")
    parser.add_argument("--peak", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        side, given = sides(args)[args.peak](), batch(args)
        print(peak_of(lambda: side.step(*given)))
        return 0
    ours, theirs = (make() for make in sides(args).values())
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
    if not args.ranking:
        return int(ratios["processor"] > 1)
    memory = {side: peak(side) for side in ("ours", "theirs")}
    ratios["memory"] = memory["ours"] / memory["theirs"]
    shown = ", ".join(f"{side} {value / 2**20:,.0f} MiB" for side, value in memory.items())
    print(f"{name}: peak memory {shown}, ratio {ratios['memory']:.3f}")
    return int(max(ratios["processor"], ratios["memory"]) > MOST)


def sides(args: argparse.Namespace) -> dict[str, Callable[[], Side]]:
    """What makes either side."""
    recipe = compose(
        [
            ("network", {"detector": "retinanet", "backbone": args.backbone}),
            ("size", {"neck": {"channels": args.channels}, "head": {"convs": args.convs}}),
        ]
    )
    if args.ranking:
        ranking = with_fragment(recipe, read_fragment(published()["pap-retinanet"]))
        focal = with_fragment(recipe, FOCAL_GIOU)
        return {"ours": partial(Side, ranking, args.classes), "theirs": partial(Side, focal, args.classes)}
    searched = with_fragment(recipe, read_fragment(RECIPE))
    return {
        "ours": partial(Side, searched, args.classes),
        "theirs": partial(Torchvision, recipe, args.classes),
    }


def peak(side: str) -> int:
    """Bytes that a step of one side adds, measured in a process that gives freed blocks back at once."""
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    return peak_bytes(Path(__file__), *sys.argv[1:], "--peak", side)


if __name__ == "__main__":
    sys.exit(main())
