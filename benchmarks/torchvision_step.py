"""Images a second in training: RetinaNet-R50 and FCOS-R50 against torchvision's own models of these names.

    python benchmarks/torchvision_step.py --device cuda --json steps.json     # on a GPU with 40 GB, about a minute
    python benchmarks/torchvision_step.py --device cpu --height 64 --width 64 --images 2 --steps 2

Both sides take one step in turn on the same random images and boxes: forward, matching, loss, backward, one SGD step, in
bfloat16 autocast on a GPU and float32 on a CPU, channels last. Theirs is what a user of torchvision runs, so it resizes
and normalises the images on the device as well (the images have its size already); ours gets them from the loader's
batch. ratio: our images a second over theirs, medians over the steps. The last line is a search's step, with HPS-Det's
published counts, against the same detector's own assignment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn
from train_step import RECIPE, batch

from detsearch_cli.detectors import build
from detsearch_cli.engine.machine import autocast
from detsearch_cli.engine.optimise import make_optimizer
from detsearch_cli.recipe import Recipe, compose, read_fragment, with_fragment
from detsearch_cli.structures import Targets

PEERS: dict[str, Callable[..., nn.Module]] = {
    "retinanet": retinanet_resnet50_fpn,
    "fcos": fcos_resnet50_fpn,
}


class Side:
    """A model in training. loss: from nothing to a scalar."""

    def __init__(
        self, model: nn.Module, loss: Callable[[], Tensor], recipe: Recipe, device: torch.device
    ) -> None:
        self.loss, self.recipe, self.device = loss, recipe, device
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6, 0.9)
        self.seconds: list[float] = []

    def step(self) -> None:
        """One training step, timed to the last of its kernels."""
        self._wait()
        begin = time.perf_counter()
        with autocast(self.recipe, self.device):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        self.seconds.append(time.perf_counter() - begin)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ours(recipe: Recipe, args: argparse.Namespace, images: Tensor, targets: Targets) -> Side:
    """Our detector of this recipe; its optimiser's groups are one, as theirs."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    detector = build(recipe, args.classes).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    make_optimizer(recipe.optim, detector, steps=1)  # freezes what the recipe freezes
    return Side(
        detector,
        lambda: torch.stack(list(detector.training_loss(images, targets).values())).sum(),
        recipe,
        device,
    )


def theirs(name: str, recipe: Recipe, args: argparse.Namespace, images: Tensor, targets: Targets) -> Side:
    """torchvision's model, random weights, nothing frozen, as ours."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    sizes = {"min_size": args.height, "max_size": max(args.height, args.width)}
    made = PEERS[name](
        weights=None, weights_backbone=None, num_classes=args.classes, trainable_backbone_layers=5, **sizes
    )
    model = made.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    listed = [image[:, : args.height, : args.width] for image in images]
    spans = pairwise(targets.splits.tolist())
    truths = [{"boxes": targets.boxes[a:b], "labels": targets.labels[a:b]} for a, b in spans]
    return Side(model, lambda: torch.stack(list(model(listed, truths).values())).sum(), recipe, device)


def rate(side: Side, images: int) -> float:
    """Images a second, the median over the steps after the first two, which compile and allocate."""
    return images / statistics.median(side.seconds[2:] or side.seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="resnet50", help="of ours; another one only rehearses")
    parser.add_argument("--images", type=int, default=16, help="of a batch")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=7, help="an image")
    parser.add_argument("--steps", type=int, default=12, help="of each side, the first two are not counted")
    parser.add_argument("--json", type=Path, help="also write the rates here")
    args = parser.parse_args()
    images, targets = batch(args)
    device = torch.device(args.device)
    images, targets = images.to(device), targets.to(device)
    rows = []
    for name in PEERS:
        recipe = compose(
            [("benchmark", {"detector": name, "backbone": args.backbone, "runtime": {"device": args.device}})]
        )
        searched = with_fragment(recipe, read_fragment(RECIPE))
        searched = searched.model_copy(update={"detector": recipe.detector, "priors": recipe.priors})
        own = ours(recipe, args, images, targets)
        pairs = [(f"{name} against torchvision", own, theirs(name, recipe, args, images, targets))]
        pairs.append(
            (
                f"{name} with searched counts against its own assignment",
                ours(searched, args, images, targets),
                own,
            )
        )
        for title, mine, other in pairs:
            for number in range(args.steps):
                for side in (mine, other) if number % 2 else (other, mine):
                    side.step()
            a, b = rate(mine, args.images), rate(other, args.images)
            rows.append({"step": title, "ours": a, "theirs": b, "ratio": a / b})
            print(f"{title}: {a:.1f} images/s against {b:.1f}, ratio {a / b:.2f}", flush=True)
            other.seconds.clear()
            mine.seconds.clear()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
