"""The HTML page of a search or of one training: a single file that asks nothing of the network.

Both pages are plain data in, text out: `StudyPage(...).render()`, `RunPage(...).write(path)`. Everything
that came from outside (class names, reasons, YAML) is escaped by the template engine, and a content
security policy forbids the page to load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.files import claim_file, replace_file
from detsearch_cli.lettering import visible
from detsearch_cli.report import figures
from detsearch_cli.report.figures import EpochPoint, Figure
from detsearch_cli.report.verdict import SeedComparison, judge
from detsearch_cli.trials import (
    TrialLike,
    baseline_of,
    best_of,
    complete,
    failed,
    known,
    points,
    repeated,
    scored,
    stopped,
)

if TYPE_CHECKING:
    import numpy as np
    from jinja2 import Environment

LONGEST_SIDE = 640  # px; a page of 8 samples stays a few MB
LARGEST_PNG = 120_000  # bytes; photographs above this are embedded as JPEG


@dataclass(frozen=True)
class ClassScore:
    """AP of one class, fractions, None where undefined. `searched` is None on a page without a comparison."""

    name: str
    boxes: int
    baseline: float | None
    searched: float | None = None

    @property
    def difference(self) -> float | None:
        """Searched minus baseline, None where either is undefined."""
        if self.baseline is None or self.searched is None:
            return None
        change = self.searched - self.baseline
        return change if known(change) else None


@dataclass(frozen=True)
class RunClass:
    """One class of a single run: boxes in the split, AP and AP50 as fractions, None where undefined."""

    name: str
    boxes: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class SideBySide:
    """One image shown several ways. pictures: what each shows, and its uint8 (H, W, 3) RGB with boxes drawn."""

    title: str
    pictures: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Table:
    """A table of a method, such as counts by level and aspect. The first cell of a row names it.

    heat: colour number cells by their size.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    heat: bool = True

    def __post_init__(self) -> None:
        wrong = next((r for r in self.rows if len(r) != len(self.columns)), None)
        if wrong is not None:
            raise ValueError(f"a row must have {len(self.columns)} cells like the columns, got {len(wrong)}")

    @property
    def peak(self) -> float:
        """The largest number in absolute value; cells are coloured by their part of it."""
        return max((abs(c) for r in self.rows for c in r[1:] if not isinstance(c, str)), default=0.0)


@dataclass(frozen=True)
class Chart:
    """One chart at two widths, as SVG; the page shows the one that fits."""

    wide: str
    narrow: str

    @staticmethod
    def of(draw: Callable[..., str]) -> Chart:
        """Draw it twice. draw: takes the width and gives SVG text."""
        return Chart(draw(width=figures.WIDE), draw(width=figures.NARROW))


@dataclass(frozen=True, kw_only=True)
class _Page(ABC):
    """What both pages end with: the recipe and everything needed to repeat the result."""

    name: str
    setup: Mapping[str, str] = field(default_factory=dict)  # detector, backbone, data, ... in display order
    recipe_yaml: str = ""
    samples: Sequence[SideBySide] = ()
    figures: Sequence[Figure] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    timing: Mapping[str, float] = field(default_factory=dict)  # what -> seconds
    notes: Sequence[str] = ()
    created: str = ""  # passed in, so that the same input gives the same page

    @abstractmethod
    def render(self) -> str:
        """The page as text; equal input gives equal text."""

    def write(self, path: Path) -> None:
        """Write the page in one step: a reader sees the old page or the new one.

        Raises OutputError where a page of somebody else stands, StorageError when the disk refuses.
        """
        claim_file(path)
        text = self.render()
        # a name that is no Unicode must not cost the page: its bytes become question marks
        replace_file(path, lambda p: p.write_text(text, encoding="utf-8", errors="replace", newline="\n"))


@dataclass(frozen=True, kw_only=True)
class StudyPage(_Page):
    """A search: verdict, comparison, course, what was found, what it costs, how to repeat it.

    rows: every trial; the baseline's candidate is None. split: where candidates were scored, in words.
    comparison: baseline against searched on a split that the search never used. classes: per-class AP on
    class_split. noise: standard deviation of the baseline over seeds; luck: what it means here, a sentence each.
    fragment_yaml: the outcome (`best.yaml`); fragment_path: where it lies.
    """

    rows: Sequence[TrialLike]
    method: str = ""
    metric: str = "AP"
    split: str = "the held-out split"
    comparison: SeedComparison | None = None
    noise: float | None = None
    luck: Sequence[str] = ()
    importances: Mapping[str, float] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    classes: Sequence[ClassScore] = ()
    class_split: str = "the held-out split"
    fragment_yaml: str = ""
    fragment_path: str = "best.yaml"
    usage: Sequence[str] = ()

    def render(self) -> str:
        done = scored(self.rows)
        return _environment().get_template("study.html").render(
            page=self,
            claim=judge(self.rows, self.comparison, self.split, self.metric),
            best=best_of(self.rows),
            baseline=baseline_of(self.rows),
            rows=sorted(self.rows, key=lambda r: r.number),
            done=done,
            broken=[r for r in self.rows if failed(r)],
            early=[r for r in self.rows if stopped(r)],
            repeats=sum(map(repeated, self.rows)),
            median=figures.median([r.seconds for r in done if known(r.seconds)]),
            classes=sorted(self.classes, key=_by_difference),
            largest=max((abs(c.difference) for c in self.classes if c.difference is not None), default=0.0),
            charts=self._charts(),
        )  # fmt: skip

    def _charts(self) -> dict[str, Chart | None]:
        """The three charts of a search, None for each that has nothing to show yet."""
        charts: dict[str, Chart | None] = dict.fromkeys(("trials", "importances", "interval"))
        baseline, c = baseline_of(self.rows), self.comparison
        if scored(self.rows):
            score = baseline.value if baseline else None
            charts["trials"] = Chart.of(
                partial(figures.ap_per_trial, self.rows, score, metric=self.metric, noise=self.noise)
            )
        if self.importances:
            charts["importances"] = Chart.of(partial(figures.importances, self.importances))
        if c is not None and c.bounds is not None:
            charts["interval"] = Chart.of(
                partial(figures.interval, c.difference, *c.bounds, c.differences, side=c.side)
            )
        return charts


@dataclass(frozen=True, kw_only=True)
class RunPage(_Page):
    """One training: the twelve COCO numbers, curves, classes, detections, recipe. Scores are fractions."""

    coco: Mapping[str, float | None] = field(default_factory=dict)
    split: str = "val"
    epochs: Sequence[EpochPoint] = ()
    classes: Sequence[RunClass] = ()

    def render(self) -> str:
        charts = {
            "training": Chart.of(partial(figures.training_curves, self.epochs)) if self.epochs else None
        }
        ranked = sorted(
            self.classes, key=lambda c: (-c.ap if c.ap is not None and known(c.ap) else 1.0, c.name)
        )
        peak = max((c.ap for c in self.classes if c.ap is not None and known(c.ap)), default=0.0)
        template = _environment().get_template("run.html")
        return template.render(page=self, charts=charts, classes=ranked, peak=peak)


def image_uri(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) RGB -> data URI, at most 640 px long; JPEG only where PNG would be large."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype.name != "uint8":
        raise ValueError(f"a picture must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    if len(buffer.getvalue()) <= LARGEST_PNG:
        return _uri("image/png", buffer.getvalue())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, subsampling=0)  # full chroma: box outlines stay crisp
    return _uri("image/jpeg", buffer.getvalue())


def duration(seconds: float | None) -> str:
    """`0.8 s`, `43 s`, `12 min 05 s`, `3 h 02 min`."""
    if seconds is None or not known(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _by_difference(row: ClassScore) -> tuple[bool, float, str]:
    """Largest gain first, undefined last."""
    return row.difference is None, -(row.difference or 0.0), row.name


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _script_hash(text: str) -> str:
    """What the content security policy names: only our own script may run."""
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode("ascii")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # names come from elsewhere, and control characters turn or hide what stands beside them
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        points=points,
        duration=duration,
        value=_value,
        mean=_mean,
        image_uri=image_uri,
        png_uri=partial(_uri, "image/png"),
        script_hash=_script_hash,
    )
    environment.tests["failed"] = failed
    environment.tests["stopped"] = stopped
    environment.tests["complete"] = complete
    environment.tests["score"] = lambda v: isinstance(v, int | float) and known(v)
    return environment
