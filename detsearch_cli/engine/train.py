"""The training loop: one recipe, one data set, one run folder.

Read it top to bottom: `train` prepares, `_Run.fit` walks epochs and steps, the rest saves, logs and resumes.
Fabric does the plumbing (devices, precision, several processes); everything that decides a result is here.

Randomness: the order and augmentation of images depend on (seed, epoch, image) alone (data/loader.py), the
weights on `seed`; torch's own random state travels in resume.safetensors. A run that was interrupted therefore
continues exactly where it was, and on a CPU ends in the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.types import Split
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import evaluate
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.engine.versions import versions
from detsearch_cli.errors import CheckpointError, Diverged
from detsearch_cli.files import storage_error, write_json, write_text
from detsearch_cli.recipe import Optim, Recipe, Schedule


@dataclass(frozen=True)
class Progress:
    """Where a training run is; given to the caller after every step and every evaluation."""

    step: int
    steps: int
    epoch: int
    epochs: int
    losses: dict[str, float] = field(default_factory=dict)
    ap: float | None = None


Watch = Callable[[Progress], None]


def train(
    recipe: Recipe, data: Split, val: Split, folder: Path, watch: Watch = lambda _: None
) -> dict[str, Any]:
    """Train `recipe` on `data`, score it on `val`, keep everything in `folder`; returns the metrics.

    The same call on the same folder resumes an interrupted run and returns the metrics of a finished one.
    Raises Diverged when a loss stops being finite, CheckpointError when `folder` holds another recipe's run,
    StorageError when the disk refuses, KeyboardInterrupt (after saving) on SIGINT or SIGTERM.
    """
    _claim(folder, recipe)
    finished = ckpt.read_metrics(folder)
    if finished is not None:
        return finished
    fabric = make_fabric(recipe)
    fabric.launch()
    return _Run(recipe, data, val, folder, watch, fabric).fit()


def make_fabric(recipe: Recipe) -> Fabric:
    """Devices, precision and processes of a recipe's runtime."""
    runtime = recipe.runtime
    device = runtime.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("no CUDA device is visible; use --device cpu")
    several = runtime.devices * runtime.num_nodes > 1
    precision = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed", "auto": "32-true"}[
        recipe.optim.precision
    ]
    if recipe.optim.precision == "auto" and kind == "cuda":
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy="ddp" if several else "auto",
        precision=precision,  # type: ignore[arg-type]
    )


def learning_rate(optim: Optim, schedule: Schedule, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step (from 0): linear warm-up over at most a tenth of the run, then the schedule."""
    total = schedule.epochs * steps_per_epoch
    warmup = min(schedule.warmup_steps, total // 10)
    factor = 1.0
    if schedule.name == "step":
        passed = sum(step >= round(m * schedule.epochs) * steps_per_epoch for m in schedule.milestones)
        factor = schedule.gamma**passed
    elif schedule.name == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / total))
    if step < warmup:
        factor *= schedule.warmup_factor + (1 - schedule.warmup_factor) * step / warmup
    return optim.lr * factor


def make_optimizer(optim: Optim, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW. Weights decay; biases, norms and scales (one axis or none) do not,

    as in the code base of the paper (maskrcnn-benchmark, WEIGHT_DECAY_BIAS 0).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


class _Run:
    """State of one training run."""

    def __init__(
        self, recipe: Recipe, data: Split, val: Split, folder: Path, watch: Watch, fabric: Fabric
    ) -> None:
        self.recipe, self.val, self.folder, self.watch, self.fabric = recipe, val, folder, watch, fabric
        self.classes = data.classes
        torch.manual_seed(recipe.seed)
        self.model: Detector = build(recipe, len(data.classes))
        memory = torch.channels_last if recipe.runtime.channels_last else torch.contiguous_format
        self.model.to(fabric.device, memory_format=memory)  # type: ignore[call-overload]
        self.memory = memory
        self.optimizer = make_optimizer(recipe.optim, self.model)
        self.ema = self._make_ema()
        self.loader = Loader(
            data,
            recipe.augment,
            batch_size=self._micro_batch(),
            train=True,
            seed=recipe.seed,
            device=fabric.device,
            workers=recipe.runtime.workers,
            cache=recipe.runtime.cache,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        self.steps_per_epoch = math.ceil(len(self.loader) / recipe.optim.accumulate)
        self.steps = self.steps_per_epoch * recipe.schedule.epochs
        self.step = 0
        self.best_ap = -1.0
        self.seconds = 0.0
        self.interrupted = False

    def _micro_batch(self) -> int:
        optim, world = self.recipe.optim, self.fabric.world_size
        if optim.batch_size % (optim.accumulate * world):
            raise CheckpointError(
                f"optim.batch_size {optim.batch_size} must be a multiple of accumulate x processes, "
                f"{optim.accumulate} x {world}; change one of them"
            )
        return optim.batch_size // (optim.accumulate * world)

    def _make_ema(self) -> AveragedModel | None:
        if self.recipe.optim.ema is None:
            return None
        return AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.optim.ema), use_buffers=True
        )

    @property
    def final_model(self) -> Detector:
        """The weights that are scored and kept: averaged ones where they exist."""
        return self.model if self.ema is None else cast(Detector, self.ema.module)

    # ------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        wrapped, optimizer = self.fabric.setup(self.model, self.optimizer)
        wrapped.mark_forward_method("training_loss")
        self._resume()
        table = None
        with self._log() as log, self._saves_on_interrupt():
            for epoch in range(self.step // self.steps_per_epoch, self.recipe.schedule.epochs):
                self.model.train()
                started = time.monotonic()
                for batches in self._epoch_batches(epoch):
                    losses = self._train_step(wrapped, optimizer, batches)
                    log({"step": self.step, "epoch": epoch + 1, "lr": self._lr(self.step - 1), **losses})
                    self.watch(
                        Progress(self.step, self.steps, epoch + 1, self.recipe.schedule.epochs, losses)
                    )
                    if self.interrupted:
                        self.seconds += time.monotonic() - started
                        self._save_resume()
                        raise KeyboardInterrupt
                self.seconds += time.monotonic() - started
                table = self._end_of_epoch(epoch + 1, log)
        return self._finish(table)

    def _train_step(self, model: Any, optimizer: Any, batches: list[Batch]) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            images = batch.images.contiguous(memory_format=self.memory)
            with self.fabric.no_backward_sync(model, enabled=i + 1 < len(batches)):
                losses = model.training_loss(images, batch.targets)
                self.fabric.backward(sum(losses.values()) / len(batches))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        self._stop_if_diverged(sums, batches)
        if self.recipe.optim.clip_norm is not None:
            self.fabric.clip_gradients(model, optimizer, max_norm=self.recipe.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        return {name: value.item() for name, value in sums.items()}

    def _stop_if_diverged(self, losses: dict[str, Tensor], batches: list[Batch]) -> None:
        total = torch.stack(list(losses.values())).sum()
        if self.fabric.world_size > 1:
            # every rank must see the same verdict, or the others would wait for the one that stopped
            total = self.fabric.all_reduce(total, reduce_op="sum")  # type: ignore[assignment]
        if torch.isfinite(total):
            return
        records = self.loader.split.records
        images = [records[i].image_id for b in batches for i in b.index.tolist()]
        table = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        write_json(
            self.folder / "diverged.json",
            {
                "step": self.step + 1,
                "losses": {k: str(v.item()) for k, v in losses.items()},
                "image_ids": images,
            },
        )
        raise Diverged(
            f"the loss is not finite at step {self.step + 1} ({table}; image ids {images}); "
            f"try a lower optim.lr, optim.clip_norm, or look at those images"
        )

    def _epoch_batches(self, epoch: int) -> Iterator[list[Batch]]:
        done = (self.step - epoch * self.steps_per_epoch) * self.recipe.optim.accumulate
        batches = self.loader.epoch(epoch, start=done)
        while group := list(itertools.islice(batches, self.recipe.optim.accumulate)):
            yield group

    def _lr(self, step: int) -> float:
        return learning_rate(self.recipe.optim, self.recipe.schedule, step, self.steps_per_epoch)

    # ------------------------------------------------------------------ after an epoch, and at the end

    def _end_of_epoch(self, epoch: int, log: Callable[[dict[str, Any]], None]) -> DetectionTable | None:
        schedule = self.recipe.schedule
        last = epoch == schedule.epochs
        table = None
        if last or (schedule.eval_every and epoch % schedule.eval_every == 0):
            started = time.monotonic()
            table = self._detect()
            ap = evaluate(self.val, table).coco["AP"] if self.fabric.is_global_zero else 0.0
            ap = self.fabric.broadcast(ap)
            log(
                {
                    "epoch": epoch,
                    "AP": ap,
                    "eval_seconds": time.monotonic() - started,
                    "seconds": self.seconds,
                }
            )
            self.watch(Progress(self.step, self.steps, epoch, schedule.epochs, {}, ap))
            if ap > self.best_ap and schedule.eval_every:
                self.best_ap = ap
                self._save_weights(ckpt.BEST)
        self._save_weights(ckpt.LAST)
        self._save_resume()
        return table

    def _detect(self) -> DetectionTable:
        with self.fabric.autocast():
            table = detect_split(
                self.final_model,
                self.val,
                self.recipe,
                self.fabric.device,
                rank=self.fabric.global_rank,
                world=self.fabric.world_size,
            )
        if self.fabric.world_size == 1:
            return table
        parts: list[DetectionTable | None] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(parts, table)
        return DetectionTable.concatenate([p for p in parts if p is not None])

    def _finish(self, table: DetectionTable | None) -> dict[str, Any]:
        if table is None:  # killed between the last checkpoint and metrics.json
            table = self._detect()
        metrics: dict[str, Any] = {}
        if self.fabric.is_global_zero:
            result = evaluate(self.val, table)
            table.save(self.folder / ckpt.DETECTIONS, self.val)
            metrics = {
                "AP": result.coco["AP"],
                **result.to_json(),
                "split": self.val.name,
                "images": len(self.loader.split),
                "val_images": len(self.val),
                "epochs": self.recipe.schedule.epochs,
                "seed": self.recipe.seed,
                "recipe_hash": self.recipe.hash(),
                "train_seconds": round(self.seconds, 3),
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "versions": versions(),
            }
            write_json(self.folder / ckpt.METRICS, metrics)
            (self.folder / ckpt.RESUME).unlink(missing_ok=True)
        self.fabric.barrier()
        return dict(self.fabric.broadcast(metrics))

    # ------------------------------------------------------------------ saving, logging, resuming

    def _save_weights(self, name: str) -> None:
        if self.fabric.is_global_zero:
            ckpt.save_weights(self.folder / name, self.final_model, self.recipe, self.classes)

    def _save_resume(self) -> None:
        if not self.fabric.is_global_zero:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        optim, groups = ckpt.pack_optimizer(self.optimizer)
        tensors |= optim
        tensors["random.cpu"] = torch.get_rng_state()
        if self.fabric.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        about = {
            "step": self.step,
            "best_ap": self.best_ap,
            "seconds": self.seconds,
            "precision": self.fabric.strategy.precision.state_dict(),
        }
        ckpt.save_tensors(self.folder / ckpt.RESUME, tensors, {"about": json.dumps(about), "optim": groups})

    def _resume(self) -> None:
        path = self.folder / ckpt.RESUME
        if not path.is_file():
            return
        tensors, text = ckpt.load_tensors(path)
        about = json.loads(text["about"])
        self.model.load_state_dict(_under("model.", tensors))
        if self.ema is not None:
            self.ema.load_state_dict(_under("ema.", tensors))
        ckpt.unpack_optimizer(self.optimizer, tensors, text["optim"])
        torch.set_rng_state(tensors["random.cpu"])
        if self.fabric.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], self.fabric.device)
        self.fabric.strategy.precision.load_state_dict(about["precision"])
        self.step, self.best_ap, self.seconds = about["step"], about["best_ap"], about["seconds"]

    @contextlib.contextmanager
    def _log(self) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Append JSON lines; lines after the checkpoint that is resumed from are dropped first."""
        if not self.fabric.is_global_zero:
            yield lambda _: None
            return
        path = self.folder / ckpt.LOG
        kept = [line for line in _lines(path) if self._is_done(line)]
        write_text(path, "".join(kept))
        board = _tensorboard(self.folder) if self.recipe.runtime.tensorboard else None
        with path.open("a", encoding="utf-8") as file:

            def log(entry: dict[str, Any]) -> None:
                try:
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                except OSError as error:
                    raise storage_error(path, error) from error
                if board is not None:
                    for name, value in entry.items():
                        board.add_scalar(name, value, entry.get("step", self.step))

            yield log
        if board is not None:
            board.close()

    def _is_done(self, line: str) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:
            return False
        if "step" in entry:
            return bool(entry["step"] <= self.step)
        return bool(entry["epoch"] * self.steps_per_epoch <= self.step)

    @contextlib.contextmanager
    def _saves_on_interrupt(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step, save, then raise KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(*_: Any) -> None:
            self.interrupted = True

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.interrupted:  # the signal came during an evaluation: everything is saved already
            raise KeyboardInterrupt


def _claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder this recipe's. Raises CheckpointError when it already is another's."""
    path = folder / ckpt.RECIPE
    if path.is_file():
        there = ckpt.read_recipe(folder)
        if there.hash() != recipe.hash():
            raise CheckpointError(
                f"{folder} holds the run of another recipe ({_first_difference(there, recipe)}); choose another --out"
            )
        return
    if folder.is_dir() and any(
        p for p in folder.iterdir() if p.name in (ckpt.METRICS, ckpt.RESUME, ckpt.LAST)
    ):
        raise CheckpointError(f"{folder} holds a run without its {ckpt.RECIPE}; choose another --out")
    write_text(path, recipe.to_yaml())


def _first_difference(a: Recipe, b: Recipe) -> str:
    flat_a, flat_b = (dict(_flatten(r.identity())) for r in (a, b))
    for key in flat_a.keys() | flat_b.keys():
        if flat_a.get(key) != flat_b.get(key):
            return f"{key} is {flat_a.get(key)} there, {flat_b.get(key)} here"
    return "no difference"


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flatten(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), content


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))
