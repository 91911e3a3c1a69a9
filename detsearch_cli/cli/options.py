"""The options every command shares, written once. A dataclass of options becomes parameters of a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from detsearch_cli.discovery import names
from detsearch_cli.option import MOST_JOBS, MOST_MINUTES, MOST_NOISE_SEEDS, MOST_TRIALS

if typing.TYPE_CHECKING:
    from detsearch_cli.recipe import Fragment, Recipe

R = TypeVar("R")
DETECTORS = ", ".join(names("detectors"))
SAMPLERS = ", ".join(names("search.samplers"))
MOST_SEEDS = 1000
EXECUTORS = ", ".join(names("search.executors"))


def with_options(**groups: type[Any]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a command the fields of each dataclass as options; it receives one filled instance a group.

    Of two groups with an option of one name the later one has it: `anchors --init` is where the shapes start, and the
    recipe's own `init` is `--set init=RUN` there.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        hints = typing.get_type_hints(command, include_extras=True)
        own = [
            p.replace(annotation=hints.get(p.name, p.annotation))
            for p in inspect.signature(command).parameters.values()
            if p.name not in groups and p.kind is not p.VAR_KEYWORD
        ]
        taken: dict[str, set[str]] = {}
        for name, group in groups.items():
            for earlier in taken.values():
                earlier -= {f.name for f in dataclasses.fields(group)}
            taken[name] = {f.name for f in dataclasses.fields(group)}
        shared = [p for name, group in groups.items() for p in _parameters(group) if p.name in taken[name]]

        @functools.wraps(command)
        def call(**given: Any) -> R:
            filled = {
                name: group(
                    **{f.name: given.pop(f.name) for f in dataclasses.fields(group) if f.name in taken[name]}
                )
                for name, group in groups.items()
            }
            return command(**given, **filled)

        call.__signature__ = inspect.Signature(own + shared)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in own + shared}
        return call

    return decorate


def _parameters(group: type[Any]) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    found = []
    for f in dataclasses.fields(group):
        default = f.default if f.default is not dataclasses.MISSING else []
        hint = _of_method(group, f, hints[f.name]) if "help" in f.metadata else hints[f.name]
        found.append(
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        )
    return found


def _of_method(group: type[Any], field: dataclasses.Field[Any], hint: Any) -> Any:
    """The annotation of a method's own option, which knows no typer (detsearch_cli/option.py)."""
    about = field.metadata
    # a bare flag: without a name of its own typer would add --no-NAME, which says nothing where off is the default
    flag = [f"--{field.name.replace('_', '-')}"] if hint is bool else []
    limits = {key: about[key] for key in ("min", "max", "metavar") if about[key] is not None}
    panel = group.__module__.split(".")[2].capitalize()
    return Annotated[hint, _option(about["help"], *flag, panel=panel, **limits)]


def _option(help: str, *names: str, panel: str = "Recipe", **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclass
class RecipeOptions:
    """What is trained. Fragments first, then the named options, then --set; later wins."""

    detector: Annotated[str | None, _option(f"{DETECTORS}.")] = None
    backbone: Annotated[
        str | None, _option("resnet50, mobilenetv2_050, swin_tiny, tiny, mobilenetv1_025, ... or timm/NAME.")
    ] = None
    backbone_weights: Annotated[
        str | None,
        _option("`pretrained` (timm's), or a file: safetensors or state dict.", metavar="FILE"),
    ] = None
    init: Annotated[
        str | None,
        _option("Start from a run, a weights file, or torchvision's fcos_resnet50_fpn, ...", metavar="RUN"),
    ] = None
    data: Annotated[
        str | None, _option("Folder (format detected) or name: shapes, faces, voc, coco, ...")
    ] = None
    val_fraction: Annotated[float | None, _option("Hold out this part of the training images.")] = None
    subset: Annotated[float | None, _option("Train on this many images; below 1, on this part of them.")] = (
        None
    )
    epochs: Annotated[int | None, _option("Length of a training.")] = None
    image_size: Annotated[str | None, _option("Side limit in pixels, or SHORT,LONG as in 800,1333.")] = None
    batch_size: Annotated[int | None, _option("Images a step.")] = None
    recipe: Annotated[
        list[Path], _option("YAML recipe or fragment; repeat, later over earlier.", metavar="FILE")
    ] = field(default_factory=list)
    set: Annotated[list[str], _option("One key, such as optim.lr=0.02; repeat.", metavar="KEY=VALUE")] = (
        field(default_factory=list)
    )
    seed: Annotated[int | None, _option("Seed of weights, order and augmentation.")] = None
    device: Annotated[str | None, _option("auto, cpu, cuda or cuda:1.", panel="Machine")] = None
    devices: Annotated[int | None, _option("GPUs (or CPU processes) a node.", panel="Machine")] = None
    num_nodes: Annotated[int | None, _option("Machines, through torchrun or Slurm.", panel="Machine")] = None
    workers: Annotated[int | None, _option("Data loading processes.", panel="Machine")] = None
    cache: Annotated[
        str | None, _option("off, ram or device: where decoded images stay.", panel="Machine")
    ] = None
    kernels: Annotated[str | None, _option("Compiled operators: auto, required or off.", panel="Machine")] = (
        None
    )

    def fragments(self) -> list[tuple[str, Fragment]]:
        """(origin, fragment) in the order they are laid over each other."""
        from detsearch_cli.recipe import parse_set, read_fragment

        named = [(str(path), read_fragment(path)) for path in self.recipe]
        options = [(f"--{key.replace('_', '-')}", fragment) for key, fragment in self._named()]
        return named + options + [("--set", parse_set(item)) for item in self.set]

    def _named(self) -> list[tuple[str, Fragment]]:
        keys: dict[str, tuple[str, ...]] = {
            "detector": ("detector",),
            "backbone": ("backbone", "name"),
            "backbone_weights": ("backbone", "weights"),
            "init": ("init",),
            "data": ("data", "source"),
            "val_fraction": ("data", "val_fraction"),
            "subset": ("data", "subset"),
            "epochs": ("schedule", "epochs"),
            "image_size": ("augment", "image_size"),
            "batch_size": ("optim", "batch_size"),
            "seed": ("seed",),
            "device": ("runtime", "device"),
            "devices": ("runtime", "devices"),
            "num_nodes": ("runtime", "num_nodes"),
            "workers": ("runtime", "workers"),
            "cache": ("runtime", "cache"),
            "kernels": ("runtime", "kernels"),
        }
        found: list[tuple[str, Fragment]] = []
        for name, path in keys.items():
            value = getattr(self, name)
            if value is None:
                continue
            nested: Any = self._plain(name, value)
            for part in reversed(path):
                nested = {part: nested}
            found.append((name, nested))
        return found

    @staticmethod
    def _plain(name: str, value: Any) -> Any:
        from detsearch_cli.files import resolved

        if name == "image_size":
            return image_size(value)
        if name == "subset":  # a fraction above 1 is left as it is, for the recipe's rule to refuse
            return int(value) if value >= 1 and value.is_integer() else value
        if name == "data":
            return absolute(value)
        # by name they are looked up when the recipe is composed; a worker finds a file from any folder
        if name == "init" and Path(value).exists():
            return str(resolved(Path(value)))
        if name == "backbone_weights" and value != "pretrained":
            return str(resolved(Path(value)))
        if isinstance(value, Path):
            return str(resolved(value))
        return value

    def compose(self, below: Fragment | None = None) -> Recipe:
        """The recipe these options describe, laid over `below`. Raises RecipeError naming the key.

        Says what weights that are given by name set in the recipe.
        """
        from detsearch_cli.cli import console
        from detsearch_cli.recipe import DEFAULTS, compose

        return compose(
            [(DEFAULTS, below or {}), *self.fragments()], lambda text: console.say(f"note: {text}")
        )


def absolute(data: str) -> str:
    """The folder in a data option as an absolute path, so that workers and later commands find it; names stay."""
    from detsearch_cli.data.source import EMBEDDED, NAMED
    from detsearch_cli.errors import RecipeError

    if not data:
        raise RecipeError("--data takes a folder or a name such as shapes, got an empty text")
    if data.partition(":")[0] in names(EMBEDDED) or data in NAMED:
        return data
    if Path(data).exists():
        return str(Path(data).resolve())
    format, colon, folder = data.partition(":")
    return f"{format}:{Path(folder).resolve()}" if colon and Path(folder).is_dir() else data


def image_size(text: str) -> tuple[int, int]:
    """`192` -> (192, 192); `800,1333` or `800x1333` -> (800, 1333). Raises RecipeError."""
    from detsearch_cli.errors import RecipeError
    from detsearch_cli.fragments import shown
    from detsearch_cli.reading import whole

    numbers = [whole(part) for part in text.lower().replace("x", ",").split(",")]
    short, long = numbers[0], numbers[-1]
    if len(numbers) > 2 or short is None or long is None:
        raise RecipeError(f"--image-size takes pixels such as 512 or 800,1333, got {shown(text)}")
    return (short, long)


@dataclass
class SearchOptions:
    """How a search runs; the same in every method."""

    trials: Annotated[
        int, _option("Trainings besides the baseline's first.", panel="Search", min=1, max=MOST_TRIALS)
    ] = 100
    noise_seeds: Annotated[
        int | None,
        _option(
            "Trainings of the baseline, which tell what is luck; default: 3, below 10 trials 1.",
            panel="Search",
            min=1,
            max=MOST_NOISE_SEEDS,
        ),
    ] = None
    early_stop: Annotated[
        bool | None,
        _option(
            "End where no candidate can overtake the best any more; default: with --repeats auto.",
            panel="Search",
        ),
    ] = None
    repeats: Annotated[
        str,
        _option(
            "auto: a quarter of the trials trains the leaders again, with further seeds; 1: none.",
            panel="Search",
        ),
    ] = "auto"
    time_budget: Annotated[
        float | None,
        _option("Hand out no new trial after this many minutes.", panel="Search", min=0, max=MOST_MINUTES),
    ] = None
    sampler: Annotated[
        str | None,
        _option(f'{SAMPLERS}; with options as "{{name: tpe, startup: 5}}".', panel="Search"),
    ] = None
    jobs: Annotated[int, _option("Trials at a time.", panel="Search", min=1, max=MOST_JOBS)] = 1
    executor: Annotated[str, _option(f"{EXECUTORS}.", panel="Search")] = "local"
    storage: Annotated[
        str | None, _option("Ledger database URL; default: study.db in the study's folder.", panel="Search")
    ] = None
    name: Annotated[str | None, _option("Name of the study; the same name resumes it.", panel="Search")] = (
        None
    )
    out: Annotated[Path, _option("Folder that holds the studies.", panel="Search")] = Path("studies")
    json: Annotated[bool, _option("One JSON document on stdout.", "--json", panel="Search")] = False


@dataclass
class RunsOptions:
    """Several trainings with the same seeds, alone or compared; the same in every method."""

    baseline: Annotated[
        bool,
        _option("Train the recipe as given too, same seeds, and compare.", "--baseline", panel="Train"),
    ] = False
    against: Annotated[
        list[str],
        _option(
            "Train with this fragment over the recipe too, a file or the name of a published one; repeat.",
            metavar="FILE|NAME",
            panel="Train",
        ),
    ] = field(default_factory=list)
    seeds: Annotated[
        int,
        _option(
            "Trainings of each side, from SEED on, or the next that the search has not used.",
            panel="Train",
            min=1,
            max=MOST_SEEDS,
        ),
    ] = 1
    jobs: Annotated[int, _option("Trainings at a time.", panel="Train", min=1, max=MOST_JOBS)] = 1
    executor: Annotated[str, _option(f"{EXECUTORS}.", panel="Train")] = "local"
    out: Annotated[
        Path | None, _option("Folder of the runs; default: by the recipe, or in the study.", panel="Train")
    ] = None
    json: Annotated[bool, _option("One JSON document on stdout.", "--json", panel="Train")] = False

    def fragments_against(self) -> dict[str, Fragment]:
        """The fragments of --against by the names of their files. Raises RecipeError for two of one name."""
        from detsearch_cli.errors import RecipeError
        from detsearch_cli.fragments import find_fragment

        fragments: dict[str, Fragment] = {}
        for given in self.against:
            name = Path(given).stem
            if name in fragments:
                raise RecipeError(
                    f"two files of --against would both be called {name!r} in the comparison; rename one of them"
                )
            fragments[name] = find_fragment(given)
        return fragments


@dataclass
class StudyOptions:
    """Where a method that searches finds what it has found."""

    study: Annotated[
        Path | None,
        _option(
            "Take recipe and best.yaml from this study; other options lie over the recipe.", panel="Study"
        ),
    ] = None
    trial: Annotated[
        str | None,
        _option(
            "In the place of best.yaml: the candidate of the trial of this number, or of the `leader`.",
            panel="Study",
        ),
    ] = None


@dataclass
class ShowOptions:
    """What `show` looks at and where it draws; the same in every method."""

    run: Annotated[
        list[Path],
        _option("Look through this trained run; repeat. Default: untrained weights.", panel="Show"),
    ] = field(default_factory=list)
    out: Annotated[Path | None, _option("Folder for the pictures; default: METHOD-show.", panel="Show")] = (
        None
    )
    json: Annotated[bool, _option("One JSON document on stdout.", "--json", panel="Show")] = False
