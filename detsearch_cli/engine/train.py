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
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from detsearch_cli.data.loader import Batch, Loader
from detsearch_cli.data.types import Split
from detsearch_cli.detectors import build, start
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine import divergence, fingerprint
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import Evaluation, evaluate
from detsearch_cli.engine.interrupt import noting_signals
from detsearch_cli.engine.journal import Journal, open_journal
from detsearch_cli.engine.machine import choose_kernels, make_fabric, micro_batch, own_place, own_rank
from detsearch_cli.engine.optimise import learning_rate, make_average, make_optimizer
from detsearch_cli.engine.predict import detect_split
from detsearch_cli.engine.processes import Place, explain, gathered, held_by_first, together
from detsearch_cli.engine.state import State
from detsearch_cli.engine.versions import versions
from detsearch_cli.errors import CheckpointError, DataError
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


OnProgress = Callable[[Progress], None]


def train(
    recipe: Recipe,
    data: Split,
    val: Split,
    folder: Path,
    on_progress: OnProgress = lambda _: None,
    *,
    until: int | None = None,
    place: Place | None = None,
) -> dict[str, Any]:
    """Train `recipe` on `data`, score it on `val`, keep everything in `folder`; returns the metrics.

    The same call on the same folder resumes an interrupted run and returns the metrics of a finished one.
    until: stop after this epoch of the full schedule, score, and return metrics with `stopped`; a later call with
    more epochs goes on to the weights of a training that never stopped. With several `runtime.devices` the other
    processes load `recipe.data` themselves; `place` is for them.

    Raises OutputError when `folder` holds what no run wrote, CheckpointError when it holds another recipe's run, is
    being trained, or is past `until`; DataError for data without any box, Diverged when a loss stops being finite,
    StorageError when the disk refuses, ProcessLost when another process of a distributed training stopped,
    KeyboardInterrupt (after saving) on SIGINT or SIGTERM.
    """
    ckpt.check(folder, recipe)
    finished = ckpt.read_metrics(folder)
    if finished is not None:  # before the lock: reading a finished run disturbs nobody
        return finished
    _refuse_untrainable(data, until)
    images = micro_batch(recipe)
    place = place or own_place(recipe.runtime)
    fabric = make_fabric(recipe, place)
    choose_kernels(recipe.runtime, fabric.device)
    with held_by_first(ckpt.owned(folder, recipe), own_rank(place), fabric, place):
        finished = ckpt.read_metrics(folder)
        if finished is not None:  # by another process, between our first look and the lock
            return finished
        # not in a trial, which is stopped on its way: its study keeps the data of all of them
        if until is None and own_rank(place) == 0:
            fingerprint.keep(folder, data, val)
        with together(place, recipe, folder, until):
            if place is not None:
                fabric.launch()
            try:
                return _Run(recipe, data, val, folder, on_progress, fabric, images, until).fit()
            except Exception as error:
                if place is None and fabric.world_size > 1:
                    explain(fabric, error)
                raise


def _refuse_untrainable(data: Split, until: int | None) -> None:
    if until is not None and until < 1:
        raise CheckpointError(f"a training stops after at least one epoch, got until={until}")
    if not any(record.trainable.any() for record in data.records):
        raise DataError(
            f"training needs at least one box, none of the {len(data)} images of {data.name!r} has one that is "
            f"neither crowd nor difficult; check the annotations with `detsearch data inspect`"
        )


class _Run:
    """One training run."""

    def __init__(
        self,
        recipe: Recipe,
        data: Split,
        val: Split,
        folder: Path,
        on_progress: OnProgress,
        fabric: Fabric,
        images: int,
        until: int | None,
    ) -> None:
        self.recipe, self.val, self.folder, self.fabric = recipe, val, folder, fabric
        self.on_progress, self.classes = on_progress, data.classes
        # right before `build`: the first weights depend on the seed alone, not on what this process drew before
        torch.manual_seed(recipe.seed)
        self.model: Detector = build(recipe, len(data.classes))
        # an interrupted run has weights of its own, and what it started from may be gone by now
        if not (folder / ckpt.RESUME).is_file():
            start(self.model, recipe, data.classes)
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
        self.until = self.epochs if until is None else min(until, self.epochs)
        # rounded up: the last step of an epoch may have fewer micro-batches than the others
        self.steps_per_epoch = math.ceil(len(self.loader) / recipe.optim.accumulate)
        # of the full length, also with `until`: learning rates and warm-ups depend on it
        self.total_steps = self.epochs * self.steps_per_epoch
        optimizer = make_optimizer(recipe.optim, self.model, self.total_steps)
        self.state = State(self.model, self.model.losses(), self.average, optimizer, fabric)
        # the wrapper synchronises gradients over ranks, but only of methods that it is told about
        self.wrapped, self.optimizer = fabric.setup(self.model, optimizer)
        self.wrapped.mark_forward_method("training_loss")
        self.interrupted = self.stopping = False

    @property
    def final_model(self) -> Detector:
        """The weights that are scored and kept: averaged ones where they exist."""
        return self.model if self.average is None else cast(Detector, self.average.module)

    # ------------------------------------------------------------------ the loop

    def fit(self) -> dict[str, Any]:
        if (self.folder / ckpt.RESUME).is_file():
            self.state.load(self.folder / ckpt.RESUME)
        if self.state.step > self.until * self.steps_per_epoch:
            raise CheckpointError(
                f"{self.folder} is trained beyond epoch {self.until} already, and training does not go back; ask for "
                f"more epochs, of {self.epochs} at most"
            )
        table, result = DetectionTable.empty(), None
        with self._journal() as journal:
            if self.state.step == 0 and not journal.past:
                self._log_learned(0, journal)
            # a run saved at the end of an epoch starts with that epoch's evaluation
            for epoch in range(max(1, math.ceil(self.state.step / self.steps_per_epoch)), self.until + 1):
                if self.state.step < epoch * self.steps_per_epoch:
                    self._train_epoch(epoch, journal)
                if epoch == self.until or self._scheduled(epoch):
                    table, result = self._score(epoch, journal)
        return self._finish(table, result)

    def _scheduled(self, epoch: int) -> bool:
        """Whether a training that never stops is scored after this epoch."""
        every = self.recipe.schedule.eval_every
        return epoch == self.epochs or (every > 0 and epoch % every == 0)

    def _train_epoch(self, epoch: int, journal: Journal) -> None:
        self.model.train()
        # added to what earlier processes spent: the seconds are those of the run, not of this call
        before, started = self.state.seconds, time.monotonic()
        with noting_signals(self._interrupt):
            for batches in self._batches(epoch):
                step, lr = self.state.step + 1, self._learning_rate()
                losses = self._step(batches)
                self.state.seconds = before + time.monotonic() - started
                journal.write(step, {"step": step, "epoch": epoch, "lr": lr, **losses})
                self.on_progress(Progress(step, self.total_steps, epoch, self.epochs, losses))
                if self.stopping:
                    break
            self._agree_to_stop()
            if self.state.step == epoch * self.steps_per_epoch:
                # before log and weights: what was saved earlier stays
                self._refuse_diverged(epoch, batches)
                self._log_learned(epoch, journal)
                self._save_weights(ckpt.LAST)
            # after log and weights: a kill before this line repeats the epoch, one after it has nothing to repeat
            if self.fabric.is_global_zero:
                self.state.save(self.folder / ckpt.RESUME)
        if self.interrupted or self.stopping:
            raise KeyboardInterrupt

    def _interrupt(self) -> None:
        self.interrupted = True

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        """One step of the optimiser over the micro-batches; returns the losses."""
        self.model.before_step(self._training_step())
        self.state.seed_step(self.recipe.seed)
        # set in every step and never by a scheduler object: nothing of it need be saved to go on exactly
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group.get("lr_factor", 1.0)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            images = batch.images.contiguous(memory_format=self.memory)
            # gradients are exchanged once a step, with the last micro-batch
            with self.fabric.no_backward_sync(self.wrapped, enabled=i + 1 < len(batches)):
                with self.fabric.autocast():  # Fabric does it for DDP's forward alone
                    losses = self.wrapped.training_loss(images, batch.targets)
                self.fabric.backward(sum(losses.values()) / len(batches))
            # detached and not .item(): reading a number would wait for the GPU after every micro-batch
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batches)
        # before the step: a loss that is not finite must not reach the weights
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
        self.state.stuck = self.state.stuck + 1 if self.model.stuck(agreed) else 0
        if self.state.stuck >= divergence.MOST_STUCK:
            divergence.refuse_stuck(agreed, self.state.step)
        return agreed

    def _agree(self, losses: dict[str, Tensor], batches: list[Batch]) -> dict[str, float]:
        """Mean of the losses over ranks. Raises Diverged on every rank when a loss of one is not finite.

        The ranks also agree here whether to stop: if one stopped alone, the others would wait for it for ever.
        """
        own = torch.stack([*losses.values()]).float()
        # one exchange for both: each costs a round trip between the processes in every step
        own = torch.cat([own, own.new_tensor([float(self.interrupted)])])
        # a clone: Fabric reduces in place, and a rank that diverges must know whether it was the one
        *means, interrupted = cast(Tensor, self.fabric.all_reduce(own.clone(), reduce_op="mean")).tolist()
        self.stopping = interrupted > 0
        if not all(map(math.isfinite, means)):
            self._diverge(dict(zip(losses, own.tolist(), strict=False)), batches, self.state.step + 1)
        return dict(zip(losses, means, strict=True))

    def _agree_to_stop(self) -> None:
        """Agree once more at the end of an epoch: a signal may have come after the last exchange of losses."""
        interrupted = torch.tensor(float(self.interrupted), device=self.fabric.device)
        self.stopping = float(cast(Tensor, self.fabric.all_reduce(interrupted, reduce_op="sum"))) > 0

    def _refuse_diverged(self, epoch: int, batches: list[Batch]) -> None:
        """Raise Diverged where the epoch's last step, of `batches`, broke the weights: no later loss may show it."""
        # such weights find nothing, and an AP of 0 would look like a score
        found = {"weights": divergence.of_weights(self.final_model)}
        if epoch == self.until or self._scheduled(epoch):
            found |= divergence.outcome(self.final_model, batches[-1], self.memory, self.fabric)
        if not divergence.all_finite(found, self.fabric):
            self._diverge({name: float(value) for name, value in found.items()}, batches, self.state.step)

    def _diverge(self, losses: dict[str, float], batches: list[Batch], step: int) -> None:
        images = [self.loader.split.records[i].image_id for b in batches for i in b.index.tolist()]
        divergence.diverge(losses, images, step, self.folder, self.fabric)

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
        return TrainingStep(self.state.step, self.epochs * self.steps_per_epoch, images, epochs)

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
            if self._scheduled(epoch):
                self._note_score(epoch, ap, time.monotonic() - started, journal)
        self.on_progress(Progress(self.state.step, self.total_steps, epoch, self.epochs, {}, ap))
        return table, result

    def _note_score(self, epoch: int, ap: float, seconds: float, journal: Journal) -> None:
        """Keep a scheduled score: the best weights and the log.

        A score that only `until` asked for is not kept, so that a run that stopped on its way ends with the same log
        and the same best weights as one that did not.
        """
        # weights before log: after a kill between the two the score is not in the log, and the weights are saved again
        if self.recipe.schedule.eval_every and ap > journal.best_ap:
            self._save_weights(ckpt.BEST)
        if not journal.evaluated(epoch):
            spent = {"eval_seconds": seconds, "seconds": self.state.seconds}
            journal.write(self.state.step, {"epoch": epoch, "AP": ap, **spent})

    def _detect(self) -> DetectionTable:
        """Detections of all ranks, each image's exactly once."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if world > 1:  # rank 0's batch norm statistics are the ones that are saved
            for buffer in self.final_model.buffers():
                torch.distributed.broadcast(buffer, 0)
        table = detect_split(
            self.final_model.deployed(), self.val, self.recipe, self.fabric.device, rank=rank, world=world
        )
        return DetectionTable.concatenate(gathered(table, self.fabric))

    def _finish(self, table: DetectionTable, result: Evaluation | None) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if result is not None:
            metrics = {
                "AP": result.coco["AP"],
                **result.to_json(),
                "split": self.val.name,
                "images": len(self.loader.split),
                "val_images": len(self.val),
                "epochs": self.until,
                **({"stopped": True} if self.until < self.epochs else {}),
                "seed": self.recipe.seed,
                "recipe_hash": self.recipe.hash(),
                "train_seconds": round(self.state.seconds, 3),
                "parameters": sum(p.numel() for p in self.model.deployed().parameters()),
                "versions": versions(),
                **({"started_from": self.recipe.init.model_dump(mode="json")} if self.recipe.init else {}),
            }
        if result is not None and "stopped" not in metrics:
            table.save(self.folder / ckpt.DETECTIONS, self.val)
            self._save_fragment()
            # after all the rest: its presence says that the run is finished and that nothing is missing
            write_json(self.folder / ckpt.METRICS, metrics)
            # ours: the folder is claimed and locked, and the name is of RUN_FILES
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
