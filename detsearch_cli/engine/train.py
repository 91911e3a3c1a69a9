"""The training loop: one recipe, one data set, one run folder.

Read it top to bottom: `train` prepares, `_Run.fit` walks the epochs, `_Run._step` is one step. Devices and
processes are in machine.py, learning rate and optimiser in optimise.py, what is saved in state.py.

Randomness: the order and augmentation of images depend on (seed, epoch, image) alone (data/loader.py), the
weights on `seed`, what a step draws on (seed, step, rank). An interrupted run therefore goes on exactly where it
was, and on a CPU ends in the same weights, bit for bit.

Several processes: each computes its share of every batch. Losses are divided by normalisers averaged over the
ranks, so the averaged gradient is that of the whole batch in one process, exactly but for batch norm (each rank
uses its own share's statistics) and padding (each share is padded to its own largest image).
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.types import Record, Split
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import Evaluation, evaluate
from detsearch_cli.engine.journal import Journal, open_journal
from detsearch_cli.engine.machine import choose_kernels, make_fabric, micro_batch, own_place
from detsearch_cli.engine.optimise import learning_rate, make_average, make_optimizer
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.engine.processes import Place, is_lost_peer, is_out_of_memory, together
from detsearch_cli.engine.state import State
from detsearch_cli.engine.versions import versions
from detsearch_cli.errors import DataError, Diverged, ProcessLost
from detsearch_cli.files import write_json
from detsearch_cli.recipe import Recipe
from detsearch_cli.structures import TrainingStep


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
    recipe: Recipe,
    data: Split,
    val: Split,
    folder: Path,
    watch: Watch = lambda _: None,
    place: Place | None = None,
) -> dict[str, Any]:
    """Train `recipe` on `data`, score it on `val`, keep everything in `folder`; returns the metrics.

    The same call on the same folder resumes an interrupted run and returns the metrics of a finished one.
    With several `runtime.devices` the other processes load `recipe.data` themselves; `place` is for them.
    Raises DataError for data without any box, Diverged when a loss stops being finite, CheckpointError when
    `folder` holds another recipe's run, StorageError when the disk refuses, ProcessLost when another process
    of a distributed training stopped, KeyboardInterrupt (after saving) on SIGINT or SIGTERM.
    """
    ckpt.claim(folder, recipe)
    finished = ckpt.read_metrics(folder)
    if finished is not None:
        return finished
    if not any(_has_objects(record) for record in data.records):
        raise DataError(
            f"training needs at least one box, none of the {len(data)} images of {data.name!r} has one that is "
            f"neither crowd nor difficult; check the annotations with `detsearch data inspect`"
        )
    images = micro_batch(recipe)
    place = place or own_place(recipe.runtime)
    fabric = make_fabric(recipe, place)
    choose_kernels(recipe.runtime, fabric.device)
    with together(place, recipe, folder):
        fabric.launch()
        try:
            return _Run(recipe, data, val, folder, watch, fabric, images).fit()
        except Exception as error:
            if place is None and fabric.world_size > 1:
                _explain(fabric, error)
            raise


class _Run:
    """One training run."""

    def __init__(
        self,
        recipe: Recipe,
        data: Split,
        val: Split,
        folder: Path,
        watch: Watch,
        fabric: Fabric,
        images: int,
    ) -> None:
        self.recipe, self.val, self.folder, self.watch, self.fabric = recipe, val, folder, watch, fabric
        self.classes = data.classes
        torch.manual_seed(recipe.seed)
        self.model: Detector = build(recipe, len(data.classes))
        self.memory = torch.channels_last if recipe.runtime.channels_last else torch.contiguous_format
        self.model.to(fabric.device, memory_format=self.memory)  # type: ignore[call-overload]
        self.average = make_average(recipe.optim, self.model)
        self.loader = Loader(
            data,
            recipe.augment,
            batch_size=images,
            train=True,
            seed=recipe.seed,
            device=fabric.device,
            workers=recipe.runtime.workers,
            cache=recipe.runtime.cache,
            rank=fabric.global_rank,
            world=fabric.world_size,
            accumulate=recipe.optim.accumulate,
        )
        self.epochs = recipe.schedule.epochs
        self.steps_per_epoch = math.ceil(len(self.loader) / recipe.optim.accumulate)
        optimizer = make_optimizer(recipe.optim, self.model, self.epochs * self.steps_per_epoch)
        self.state = State(self.model, self.average, optimizer, fabric)
        # the wrapper synchronises gradients over ranks, but only of methods that it is told about
        self.wrapped, self.optimizer = fabric.setup(self.model, optimizer)
        self.wrapped.mark_forward_method("training_loss")
        self.interrupted = False
        self.stopping = False

    @property
    def final_model(self) -> Detector:
        """The weights that are scored and kept: averaged ones where they exist."""
        return self.model if self.average is None else cast(Detector, self.average.module)

    # ------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        if (self.folder / ckpt.RESUME).is_file():
            self.state.load(self.folder / ckpt.RESUME)
        table, result = DetectionTable.empty(), None
        every = self.recipe.schedule.eval_every
        with self._journal() as journal:
            if self.state.step == 0 and not journal.past:
                self._log_learned(0, journal)
            # a run saved at the end of an epoch starts with that epoch's evaluation
            for epoch in range(max(1, math.ceil(self.state.step / self.steps_per_epoch)), self.epochs + 1):
                if self.state.step < epoch * self.steps_per_epoch:
                    self._train_epoch(epoch, journal)
                if epoch == self.epochs or (every and epoch % every == 0):
                    table, result = self._score(epoch, journal)
        return self._finish(table, result)

    def _train_epoch(self, epoch: int, journal: Journal) -> None:
        self.model.train()
        before, started = self.state.seconds, time.monotonic()
        with self._saves_on_interrupt():
            for batches in self._batches(epoch):
                step, lr = self.state.step + 1, self._learning_rate()
                losses = self._step(batches)
                self.state.seconds = before + time.monotonic() - started
                journal.write(step, {"step": step, "epoch": epoch, "lr": lr, **losses})
                self.watch(Progress(step, self.epochs * self.steps_per_epoch, epoch, self.epochs, losses))
                if self.stopping:
                    break
            self._agree_to_stop()
            if self.state.step == epoch * self.steps_per_epoch:
                self._log_learned(epoch, journal)
                self._save_weights(ckpt.LAST)
            if self.fabric.is_global_zero:
                self.state.save(self.folder / ckpt.RESUME)

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One step of the optimiser over the micro-batches; returns the losses."""
        self.model.before_step(self._training_step())
        self.state.seed_step(self.recipe.seed)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group.get("lr_factor", 1.0)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            images = batch.images.contiguous(memory_format=self.memory)
            with self.fabric.no_backward_sync(self.wrapped, enabled=i + 1 < len(batches)):
                with self.fabric.autocast():  # Fabric does it for DDP's forward alone
                    losses = self.wrapped.training_loss(images, batch.targets)
                self.fabric.backward(sum(losses.values()) / len(batches))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        agreed = self._agree(sums, batches)
        if self.recipe.optim.clip_norm is not None:
            # gradients that overflowed in float16 are the scaler's business; others show in the next loss
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=self.recipe.optim.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.state.step += 1
        return agreed

    def _agree(self, losses: dict[str, Tensor], batches: list[Batch]) -> dict[str, float]:
        """Mean of the losses over ranks. Raises Diverged, on all ranks alike, when one is not finite.

        Whether to stop is decided together too: the others would wait for ever for a rank that stopped alone.
        """
        own = torch.stack([*losses.values()]).float()
        own = torch.cat([own, own.new_tensor([float(self.interrupted)])])
        # a clone: Fabric reduces in place, and a rank that diverges must know whether it was the one
        *means, interrupted = cast(Tensor, self.fabric.all_reduce(own.clone(), reduce_op="mean")).tolist()
        self.stopping = interrupted > 0
        if not all(map(math.isfinite, means)):
            self._diverge(dict(zip(losses, own.tolist(), strict=False)), batches)
        return dict(zip(losses, means, strict=True))

    def _agree_to_stop(self) -> None:
        """A signal after the last exchange of losses: without asking, one rank would stop alone."""
        interrupted = torch.tensor(float(self.interrupted), device=self.fabric.device)
        self.stopping = float(cast(Tensor, self.fabric.all_reduce(interrupted, reduce_op="sum"))) > 0

    def _diverge(self, losses: dict[str, float], batches: list[Batch]) -> None:
        records = self.loader.split.records
        told = (losses, [records[i].image_id for b in batches for i in b.index.tolist()])
        ranks = _gathered(told, self.fabric)
        bad = [rank for rank in ranks if not all(map(math.isfinite, rank[0].values()))]
        losses, images = (bad or ranks)[0]
        step = self.state.step + 1
        if self.fabric.is_global_zero:
            texts = {name: str(value) for name, value in losses.items()}
            write_json(self.folder / "diverged.json", {"step": step, "losses": texts, "image_ids": images})
        table = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        raise Diverged(
            f"the loss is not finite at step {step} ({table}; image ids {images}); "
            f"try a lower optim.lr, optim.clip_norm, or look at those images"
        )

    def _batches(self, epoch: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step of the epoch that is still to be done."""
        accumulate = self.recipe.optim.accumulate
        done = self.state.step - (epoch - 1) * self.steps_per_epoch
        batches = self.loader.epoch(epoch - 1, start=done * accumulate)
        while group := list(itertools.islice(batches, accumulate)):
            yield group

    def _training_step(self) -> TrainingStep:
        epochs, steps = divmod(self.state.step, self.steps_per_epoch)
        images = epochs * len(self.loader.split) + steps * self.recipe.optim.batch_size
        return TrainingStep(self.state.step, self.epochs * self.steps_per_epoch, images)

    def _learning_rate(self) -> float:
        return learning_rate(self.recipe.optim, self.recipe.schedule, self.state.step, self.steps_per_epoch)

    # ------------------------------------------------------------------ scoring

    def _score(self, epoch: int, journal: Journal) -> tuple[DetectionTable, Evaluation | None]:
        """Detections on the validation split and, on rank 0, what they are worth."""
        started = time.monotonic()
        table, result, ap = self._detect(), None, math.nan
        if self.fabric.is_global_zero:
            result = evaluate(self.val, table)
            ap = result.coco["AP"]
            if self.recipe.schedule.eval_every and ap > journal.best_ap:
                self._save_weights(ckpt.BEST)
            spent = {"eval_seconds": time.monotonic() - started, "seconds": self.state.seconds}
            if not journal.evaluated(epoch):
                journal.write(self.state.step, {"epoch": epoch, "AP": ap, **spent})
        self.watch(Progress(self.state.step, self.epochs * self.steps_per_epoch, epoch, self.epochs, {}, ap))
        return table, result

    def _detect(self) -> DetectionTable:
        """Detections of all ranks, each image's exactly once."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if world > 1:  # rank 0's batch norm statistics are the ones that are saved
            for buffer in self.final_model.buffers():
                torch.distributed.broadcast(buffer, 0)
        table = detect_split(
            self.final_model.deployed(), self.val, self.recipe, self.fabric.device, rank=rank, world=world
        )
        return DetectionTable.concatenate(_gathered(table, self.fabric))

    def _finish(self, table: DetectionTable, result: Evaluation | None) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if result is not None:
            table.save(self.folder / ckpt.DETECTIONS, self.val)
            metrics = {
                "AP": result.coco["AP"],
                **result.to_json(),
                "split": self.val.name,
                "images": len(self.loader.split),
                "val_images": len(self.val),
                "epochs": self.epochs,
                "seed": self.recipe.seed,
                "recipe_hash": self.recipe.hash(),
                "train_seconds": round(self.state.seconds, 3),
                "parameters": sum(p.numel() for p in self.model.deployed().parameters()),
                "versions": versions(),
            }
            self._save_fragment()
            write_json(self.folder / ckpt.METRICS, metrics)
            (self.folder / ckpt.RESUME).unlink(missing_ok=True)
        return dict(self.fabric.broadcast(metrics))

    # ------------------------------------------------------------------ saving

    def _save_weights(self, name: str) -> None:
        if self.fabric.is_global_zero:
            model, recipe = self.final_model.deployed(), self.final_model.deployed_recipe(self.recipe)
            ckpt.save_weights(self.folder / name, model, recipe, self.classes)

    def _save_fragment(self) -> None:
        """best.yaml: what the best weights that were kept have learned, ready for --recipe."""
        learned = self.model.learned_parts()
        if learned:
            name = ckpt.BEST if (self.folder / ckpt.BEST).is_file() else ckpt.LAST
            ckpt.save_fragment(self.folder / ckpt.FRAGMENT, self.folder / name, learned)

    def _log_learned(self, epoch: int, journal: Journal) -> None:
        """What is learned beside the weights, as it is after an epoch; 0: before the first."""
        for part in self.final_model.learned_parts():
            journal.write(self.state.step, {"epoch": epoch, **part.log_entry()})

    def _journal(self) -> Any:
        if not self.fabric.is_global_zero:
            return nullcontext(Journal([]))
        board = self.recipe.runtime.tensorboard
        return open_journal(self.folder / ckpt.LOG, self.state.step, self.steps_per_epoch, board)

    @contextmanager
    def _saves_on_interrupt(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the step and save before they raise KeyboardInterrupt."""
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
        if self.interrupted or self.stopping:
            raise KeyboardInterrupt


def _has_objects(record: Record) -> bool:
    whole = (record.boxes[:, 2:] > record.boxes[:, :2]).all(1)
    return bool((whole & ~record.crowd & ~record.difficult).any())


def _gathered(own: Any, fabric: Fabric) -> list[Any]:
    """Every rank's object, in the order of the ranks."""
    if fabric.world_size == 1:
        return [own]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, own)
    return parts


def _explain(fabric: Fabric, error: Exception) -> None:
    """Under torchrun or srun one rank's error ends the training of all; each knows only its own.

    The command line is silent on ranks other than 0.
    """
    if isinstance(error, Diverged):  # known to all
        return
    if is_lost_peer(error):
        raise ProcessLost(
            "another process of this training stopped, so this one did too; its own message is above, and the "
            "same command goes on from the last checkpoint"
        ) from error
    if not fabric.is_global_zero:
        logging.getLogger("detsearch").error("error in process %d: %s", fabric.global_rank, error)
    if is_out_of_memory(error):  # a rank that trained on with smaller batches would be alone
        raise ProcessLost(
            f"process {fabric.global_rank} ran out of memory; raise optim.accumulate or lower optim.batch_size"
        ) from error
