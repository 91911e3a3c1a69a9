"""What a person sees: tables and progress on stderr, one JSON document on stdout where asked for."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from detsearch_cli.cli import ending
from detsearch_cli.lettering import visible as visible
from detsearch_cli.reading import whole

_NUMBER = re.compile(r"[-+]?[\d.,]*%?")
_LONG = re.compile(r"\S{400,}")


@cache
def err() -> Console:
    """Console on stderr; silent on every rank but the first of a distributed run."""
    # a rank that is no number is for a training to refuse, and it needs a console to say so
    rank = whole(os.environ.get("RANK", os.environ.get("LOCAL_RANK"))) or 0
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Visible())
    # emoji off: `:car:` in a file's name is no picture
    return Console(stderr=True, quiet=rank > 0, highlight=False, emoji=False)


def say(text: str) -> None:
    """One line for a person, also where a file's name holds a line break."""
    err().print(_one_line(text), markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """One sentence about what went wrong."""
    # a path has at most 4,096 characters; what is longer is no name that anyone would recognise by its middle
    short = _LONG.sub(lambda word: f"{word[0][:150]}...{word[0][-30:]}", text)
    err().print(f"[bold red]error:[/] {_escape(_one_line(short))}", soft_wrap=True)


def _one_line(text: str) -> str:
    return visible(text).replace("\n", "\\n")


class _Visible(logging.Formatter):
    """Log lines, which name files too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _escape(text: str) -> str:
    """Text that rich shows as it is, in a place where it reads markup."""
    from rich.markup import escape

    return escape(visible(text))


def emit_json(content: Any) -> None:
    """One machine-readable document on stdout; NaN becomes null."""
    from detsearch_cli.files import finite

    sys.stdout.write(json.dumps(finite(content), indent=1) + "\n")
    sys.stdout.flush()  # a document that cannot be written is an error of this command, not of the interpreter's end


def set_resume_hint(text: str) -> None:
    """What Ctrl-C tells the user about going on."""
    ending.set_resume_hint(visible(text))


def command_line() -> str:
    """This command as it was typed, the program by its bare name."""
    return shlex.join(["detsearch", *sys.argv[1:]])


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A titled table on stderr; columns of numbers are right-aligned, text folds where the line ends."""
    made = Table(header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        numeric = all(_NUMBER.fullmatch(row[number]) for row in rows)
        made.add_column(
            _escape(column), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric
        )
    for row in rows:
        made.add_row(*(_escape(cell) for cell in row))
    if title:  # not the table's own title, which would fold at the width of the table
        err().print(f"[bold cyan]{_escape(title)}[/]", soft_wrap=True)
    err().print(made)


def percent(value: float | None) -> str:
    """A fraction as the field prints AP: 100 x, one decimal; a dash where undefined."""
    if value is None or math.isnan(value):
        return "-"
    return f"{100 * value:.1f}"


@contextmanager
def training_bar(title: str) -> Iterator[Any]:
    """A progress bar of a training run, or a line an epoch where stderr is no terminal.

    Gives the function that the training calls at every step.
    """
    # not Console.is_terminal, which FORCE_COLOR sets: a log would be filled with cursor movements
    if not err().file.isatty() or err().is_dumb_terminal:
        lines = EpochLines(title)
        try:
            yield lines
        finally:
            lines.flush()
        return
    one_line = partial(Column, no_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=one_line(min_width=min(len(title), 30))),
        BarColumn(bar_width=20, table_column=one_line(min_width=10)),
        MofNCompleteColumn(table_column=one_line(min_width=7)),
        TimeRemainingColumn(table_column=one_line(min_width=7)),
        TextColumn("{task.fields[note]}", markup=False, table_column=one_line(overflow="ellipsis")),
    )
    progress = Progress(*columns, console=err())
    task = progress.add_task(visible(title), total=None, note="")
    last_ap = ""

    def watch(at: Any) -> None:
        nonlocal last_ap
        progress.start()  # at the first step, so that an error before it leaves no empty bar behind
        if at.ap is not None:
            last_ap = f"AP {percent(at.ap)} "
        losses = " ".join(f"{name} {value:.3f}" for name, value in at.losses.items())
        note = f"epoch {at.epoch}/{at.epochs} {last_ap}{losses}"
        progress.update(task, total=at.steps, completed=at.step, note=visible(note))

    try:
        yield watch
    finally:
        if progress.live.is_started:
            progress.stop()


class EpochLines:
    """Progress of a training in a log: one line an epoch, with its mean losses, AP where it was scored, time left."""

    def __init__(self, title: str) -> None:
        self.title, self.line = title, ""
        self.sums: dict[str, float] = {}
        self.steps, self.first, self.started = 0, 0, 0.0

    def __call__(self, at: Any) -> None:
        """Called at every step, with its losses, and after every evaluation, with its AP."""
        if at.losses:
            self._step(at)
        if at.ap is not None:
            # a run that had only to be scored has no line yet
            self.line = f"{self.line or self._epoch(at)}  AP {percent(at.ap)}"
            self.flush()

    def flush(self) -> None:
        """Print the line of the last epoch, unless it has been."""
        if self.line:
            say(self.line)
        self.line = ""

    def _step(self, at: Any) -> None:
        self.flush()  # the epoch before was not scored
        if not self.started:
            # from the first step's end: before it the kernels are compiled and the images read
            self.started, self.first = time.monotonic(), at.step
        self.steps += 1
        for name, value in at.losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if at.step % (at.steps // at.epochs) == 0:
            terms = "  ".join(f"{name} {value / self.steps:.4g}" for name, value in self.sums.items())
            total = sum(self.sums.values()) / self.steps
            self.line = f"{self._epoch(at)}  loss {total:.4g} ({terms}){self._left(at)}"
            self.sums, self.steps = {}, 0

    def _epoch(self, at: Any) -> str:
        return f"{self.title}  epoch {at.epoch}/{at.epochs}"

    def _left(self, at: Any) -> str:
        """Time left at the pace so far, evaluations counted in; nothing before a pace is known."""
        if at.step == self.first or at.step == at.steps:
            return ""
        each = (time.monotonic() - self.started) / (at.step - self.first)
        return f"  {timedelta(seconds=round(each * (at.steps - at.step)))} left"


@cache
def announce_load() -> None:
    """One line, once a process, where this machine already computes more than it has cores for."""
    if not hasattr(os, "getloadavg"):
        return
    # what this process may use: a container or a batch system often gives fewer than the machine has
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load > cores:
        say(
            f"note: this machine is busy (load {load:.1f} on {cores} {'core' if cores == 1 else 'cores'}): "
            "times, not results, suffer"
        )


def announce_data(resolved: Any) -> None:
    """One line for the sizes of the splits, one for each decision about them, one for the defects of train."""
    parts = [("train", resolved.train), ("val", resolved.val), ("test", resolved.test)]
    sizes = ", ".join(f"{len(split)} {name}" for name, split in parts if split is not None)
    say(f"data: {sizes} images, {len(resolved.train.classes)} classes")
    for note in resolved.notes:
        say(f"note: {note}")
    if resolved.train.defects:
        kinds = Counter(d.kind for d in resolved.train.defects)
        listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(4))
        say(f"note: handled in {resolved.train.name}: {listed}; `detsearch data inspect` lists them")


def announce_changes(folder: Path, resolved: Any) -> None:
    """One line for data that is not what the run or study in the folder began with."""
    from detsearch_cli.engine.fingerprint import changes

    changed = changes(folder, resolved.train, resolved.val)
    if changed is not None:
        say(f"note: {changed}")


def announce_scoring(split: Any, then: str = "the training goes on without a score") -> None:
    """One line where AP on this split will be undefined; then: what happens all the same."""
    from detsearch_cli.engine.score import why_no_score

    reason = why_no_score(split)
    if reason is not None:
        say(f"warning: {reason}; {then}")


def announce_start(recipe: Any, classes: Any) -> None:
    """One line for what a training takes over from the weights of `init`, if it has any."""
    if recipe.init is None:
        return
    from detsearch_cli.detectors import build, start

    say(f"note: {start(build(recipe, len(classes)), recipe, classes)}")


def coco_table(title: str, coco: dict[str, float | None]) -> None:
    """The twelve COCO numbers in one line."""
    table(title, list(coco), [[percent(value) for value in coco.values()]])


def proposal_table(recall: dict[str, float | None]) -> None:
    """Recall of a first stage's best 50, 100 and 1000 boxes: mean over IoU .5:.95, and at .5."""
    table("recall of the proposals", list(recall), [[percent(value) for value in recall.values()]])


def class_table(rows: list[dict[str, Any]], limit: int | None = None) -> None:
    """Per-class results, best AP first."""
    shown = sorted(rows, key=lambda r: -(r["AP"] if r["AP"] is not None and not math.isnan(r["AP"]) else -1))[
        :limit
    ]
    cells = [
        [r["name"], str(r["images"]), str(r["boxes"]), percent(r["AP"]), percent(r["AP50"])] for r in shown
    ]
    table("per class", ["class", "images", "boxes", "AP", "AP50"], cells)


def interval_text(comparison: Any) -> str:
    """`+2.1 AP [+0.4, +3.9]`, from fractions."""
    return (
        f"{100 * comparison.difference:+.1f} {comparison.metric} "
        f"[{100 * comparison.low:+.1f}, {100 * comparison.high:+.1f}]"
    )
