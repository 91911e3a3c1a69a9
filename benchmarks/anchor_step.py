"""A training step with anchors that learn against the same step with the same anchors fixed.

    python benchmarks/anchor_step.py                  # some minutes on one thread
    python benchmarks/anchor_step.py --device cuda    # with ResNet-50 at 512 px

A step is forward, assignment, loss, backward and optimiser, on one batch prepared beforehand. Both sides start
from the same weights and shapes, learn so slowly that they also assign alike to the end, and take turns, one step
each. The learning side has all three techniques of the paper on.

What learning adds does not depend on how wide the network is, but on its outputs alone, and on a busy machine it
drowns in a whole step. So it is measured twice. First with as many outputs and hardly a network, whose backbone's
features are kept from one pass: `warm-up` and `after` are the milliseconds that learning adds there, within both
warm-ups and after them, medians over the steps of learning - fixed. Their share of the whole network's fixed step is
the `overhead` of a training, two fifths of which are warm-up. `ratio` is the plain comparison of whole steps after the
warm-ups, and shows how little it can resolve: `+-` is its standard error.

Processor time on the CPU, time to the end of the last kernel on a GPU. Exits with 1 where a whole training costs
more than 1.5% more (the paper's Faster R-CNN: 1.6%).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.source import open_source
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.recipe import Recipe, compose, with_fragment
from detsearch_cli.structures import TrainingStep

LAPTOP: dict[str, Any] = {"neck": {"channels": 64}, "head": {"convs": 2}, "augment": {"image_size": 192}}
LARGE: dict[str, Any] = {"neck": {"channels": 128}, "head": {"convs": 4}, "augment": {"image_size": 512}}
FULL: dict[str, Any] = {"neck": {"channels": 256}, "head": {"convs": 4}, "augment": {"image_size": 512}}
THIN: dict[str, Any] = {"backbone": "tiny", "neck": {"channels": 8}, "head": {"convs": 0}}
THIN_OPTIONS = {"yolov2": {"channels": 8}, "faster_rcnn": {"width": 8, "regions": 8, "proposals": 8}}
LEVELS = (3, 7)  # of every neck
DETECTORS = ("retinanet", "atss", "yolov2", "faster_rcnn")
LIMIT = 0.015
WARMUP_SHARE = 0.4
UNTIMED = 2
EARLY, LATE = TrainingStep(0, 1000, 0), TrainingStep(900, 1000, 10**6)


@dataclass
class Side:
    """One detector in training, and the seconds of its steps."""

    detector: Detector
    optimizer: torch.optim.Optimizer
    device: torch.device
    seconds: list[float] = field(default_factory=list)

    @staticmethod
    def of(recipe: Recipe, classes: int, device: torch.device) -> Side:
        """A detector with seeded weights."""
        torch.manual_seed(0)
        detector = build(recipe, classes).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        return Side(detector, make_optimizer(recipe.optim, detector, steps=1), device)

    def step(self, batch: Batch, step: TrainingStep) -> None:
        """One training step, timed."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        torch.manual_seed(0)  # both sides draw the same samples
        began = clock()
        self.detector.before_step(step)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            losses = self.detector.training_loss(batch.images, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(clock() - began)


def batch_of(size: int, images: int, device: torch.device) -> tuple[Batch, int]:
    """A batch of the embedded shapes, rendered at `size` px, and the number of classes."""
    split = open_source(f"shapes:images={images},size={size}").load("train")
    augment = compose([("size", {"augment": {"image_size": size}})]).augment
    loader = Loader(split, augment, batch_size=images, train=True, seed=0, device=device)
    (batch,) = loader.epoch(0)
    object.__setattr__(batch, "images", batch.images.contiguous(memory_format=torch.channels_last))
    return batch, len(split.classes)


def steps_of(
    recipe: Recipe, batch: Batch, classes: int, step: TrainingStep, steps: int, *, thin: bool = False
) -> tuple[Side, Side]:
    """(fixed, learning), after steps in turns. thin: the backbone runs once."""
    device = batch.images.device
    grid = build(recipe, classes)
    fixed = {"priors": {"name": "shapes", "shapes": grid.prior_grid.level_boxes(grid.levels)}}
    learned = {"priors": {"name": "learned", "lr_factor": 1}}
    sides = tuple(Side.of(with_fragment(recipe, priors), classes, device) for priors in (fixed, learned))
    for side in sides if thin else ():
        features = [feature.detach() for feature in side.detector.backbone(batch.images)]  # type: ignore[operator]
        side.detector.backbone.forward = lambda _, kept=features: kept  # type: ignore[union-attr]
    for number in range(steps + UNTIMED):
        for side in sides if number % 2 else sides[::-1]:
            side.step(batch, step)
    for side in sides:
        del side.seconds[:UNTIMED]
    return sides[0], sides[1]


def added(recipe: Recipe, batch: Batch, classes: int, step: TrainingStep, steps: int) -> float:
    """Milliseconds that learning adds to a step of a thin network: median over the steps."""
    fixed, learning = steps_of(recipe, batch, classes, step, steps, thin=True)
    gaps = [b - a for a, b in zip(fixed.seconds, learning.seconds, strict=True)]
    return 1000 * statistics.median(gaps)


def row(
    name: str, backbone: str, size: dict[str, Any], batch: Batch, classes: int, steps: int
) -> tuple[list[str], float]:
    """One line of the table, and the overhead of a training."""
    about = {"detector": name, "backbone": backbone, "optim": {"name": "sgd", "lr": 1e-7}}
    whole = compose([("size", size), ("detector", about), ("levels", {"neck": {"levels": LEVELS}})])
    thin = with_fragment(with_fragment(whole, THIN), {"detector": THIN_OPTIONS.get(name, {})})
    early, late = (added(thin, batch, classes, step, 10 * steps) for step in (EARLY, LATE))
    fixed, learning = steps_of(whole, batch, classes, LATE, steps)
    step = 1000 * statistics.median(fixed.seconds)
    overhead = (WARMUP_SHARE * early + (1 - WARMUP_SHARE) * late) / step
    ratios = [b / a for a, b in zip(fixed.seconds, learning.seconds, strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    setting = f"{name} {backbone} {size['augment']['image_size']} px x {len(batch.images)}"
    shown = (f"{step:.0f}", f"{early:.2f}", f"{late:.2f}", f"{overhead:.2%}")
    return [f"{setting:<44}", *shown, f"{statistics.median(ratios):.3f}", f"{error:.3f}"], overhead


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--steps", type=int, default=20, help="of each whole network; ten times as many of a thin one"
    )
    parser.add_argument("--detectors", default=",".join(DETECTORS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-large", action="store_true", help="without the 512 px rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    columns = ("fixed ms", "warm-up", "after", "overhead", "ratio", "+-")
    print(f"{'step':<44}  " + "  ".join(f"{c:>8}" for c in columns))
    sizes = [("mobilenetv1_025", LAPTOP, args.steps, 16)]
    if not args.no_large:
        sizes.append(("resnet18", LARGE, max(4, args.steps // 4), 2))
    if device.type == "cuda":
        sizes = [("resnet50", FULL, args.steps, 16)]
    worst = 0.0
    for backbone, size, steps, images in sizes:
        batch, classes = batch_of(size["augment"]["image_size"], images, device)
        for name in args.detectors.split(","):
            cells, overhead = row(name, backbone, size, batch, classes, steps)
            worst = max(worst, overhead)
            print(cells[0] + "  " + "  ".join(f"{c:>8}" for c in cells[1:]), flush=True)
    if worst > LIMIT:
        sys.exit(f"learning shapes costs {worst:.2%} of a training, at most {LIMIT:.1%} is promised")


if __name__ == "__main__":
    main()
