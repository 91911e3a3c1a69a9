"""A training step with the dynamic assigner against the same step with the detector's own.

    python benchmarks/assign_step.py             # about four minutes on one thread
    python benchmarks/assign_step.py --no-large  # without the 512 px rows

A step is forward, assignment, loss, backward and optimiser, on batches prepared beforehand. Both sides start
from the same weights and take turns, one step each. `ratio` is the dynamic assigner's step over the detector's
own on the same batch, the median over all batches, by wall time and by processor time (which a busy machine
changes less); the milliseconds are medians, too, the last two those of the assignment alone. Counts are
HPS-Det's published ones; where the detector's own gives other positives, the loss differs in cost, too, and
the ratio includes it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.source import open_source
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine.train import make_optimizer
from detsearch_cli.recipe import Recipe, compose, read_fragment, with_fragment

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "recipes"
LAPTOP = {"neck": {"channels": 64}, "head": {"convs": 2}, "augment": {"image_size": 192}}
LARGE = {"neck": {"channels": 128}, "head": {"convs": 4}, "augment": {"image_size": 512}}
WARMUP = 2


@dataclass
class Side:
    """One detector in training, and the seconds of its steps: wall, processor, and of the assignment alone."""

    detector: Detector
    optimizer: torch.optim.Optimizer
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    assigning: list[float] = field(default_factory=list)

    @staticmethod
    def of(recipe: Recipe, classes: int) -> Side:
        """A detector with seeded weights."""
        torch.manual_seed(0)
        detector = build(recipe, classes).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        return Side(detector, make_optimizer(recipe.optim, detector, steps=1))

    def step(self, batch: Batch) -> None:
        """One training step, timed."""
        wall, processor = time.perf_counter(), time.process_time()
        losses = self.detector.training_loss(batch.images, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    @torch.no_grad()
    def assign(self, batch: Batch) -> None:
        """The assignment of one batch, timed."""
        dense = self.detector(batch.images).detached()
        began = time.process_time()
        self.detector.assigner(dense, batch.targets)
        self.assigning.append(time.process_time() - began)


def batches_of(size: int, count: int, images: int) -> tuple[list[Batch], int]:
    """Batches of the embedded shapes, rendered at `size` px, and the number of classes."""
    split = open_source(f"shapes:images={count * images},size={size}").load("train")
    augment = compose([("size", {"augment": {"image_size": size}})]).augment
    loader = Loader(split, augment, batch_size=images, train=True, seed=0, device=torch.device("cpu"))
    batches = list(loader.epoch(0))
    for batch in batches:
        object.__setattr__(batch, "images", batch.images.contiguous(memory_format=torch.channels_last))
    return batches, len(split.classes)


def compare(
    name: str, backbone: str, size: dict[str, Any], batches: list[Batch], classes: int
) -> tuple[Side, Side]:
    """(the detector's own, dynamic): steps in turns over all batches, then the assignments alone."""
    own = compose([("size", size), ("detector", {"detector": name, "backbone": backbone})])
    dynamic = with_fragment(own, read_fragment(RECIPES / f"hps_{name}.yaml"))
    sides = Side.of(own, classes), Side.of(dynamic, classes)
    for number, batch in enumerate(batches):
        for side in sides if number % 2 else sides[::-1]:
            side.step(batch)
    for batch in batches[WARMUP:]:
        for side in sides:
            side.assign(batch)
    return sides


def paired(own: list[float], dynamic: list[float]) -> float:
    """Median over the batches of dynamic / own."""
    return statistics.median(d / o for o, d in list(zip(own, dynamic, strict=True))[WARMUP:])


def row(name: str, backbone: str, size: dict[str, Any], batches: list[Batch], classes: int) -> list[str]:
    """One line of the table."""
    sides = compare(name, backbone, size, batches, classes)
    wall = [statistics.median(side.wall[WARMUP:]) for side in sides]
    assign = [statistics.median(s.assigning) for s in sides]
    objects = sum(len(b.targets.boxes) for b in batches) / sum(len(b.images) for b in batches)
    setting = f"{name} {backbone} {size['augment']['image_size']} px x {len(batches[0].images)}"
    return [
        f"{setting:<38}",
        f"{objects:.0f}",
        *(f"{1000 * s:.0f}" for s in wall),
        f"{paired(sides[0].wall, sides[1].wall):.3f}",
        f"{paired(sides[0].processor, sides[1].processor):.3f}",
        *(f"{1000 * s:.1f}" for s in assign),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=22, help="of each side, the first two not counted")
    parser.add_argument("--no-large", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("boxes", "own ms", "dynamic ms", "ratio", "processor", "assign own", "dynamic ms")
    print(f"{'step':<38}  " + "  ".join(f"{c:>10}" for c in columns))
    sizes = [("tiny", LAPTOP, args.steps, 16), ("mobilenetv1_025", LAPTOP, args.steps, 16)]
    if not args.no_large:
        sizes.append(("resnet18", LARGE, 7, 2))
    for backbone, size, steps, images in sizes:
        batches, classes = batches_of(size["augment"]["image_size"], steps, images)
        for name in ("fcos", "retinanet", "atss"):
            cells = row(name, backbone, size, batches, classes)
            print(cells[0] + "  " + "  ".join(f"{c:>10}" for c in cells[1:]), flush=True)


if __name__ == "__main__":
    main()
