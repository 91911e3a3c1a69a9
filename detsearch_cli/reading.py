"""Opens, decodes and parses what somebody else wrote: text, YAML and JSON, with limits that no honest file meets.

Every YAML or JSON file and every text that this program did not just make itself is read here, so that a named pipe,
an alias bomb, ten thousand brackets, a number of 5,000 digits or a tag that builds objects ends in one sentence.
What the values mean is checked by whoever asked: with `number`, `whole` and `flag`, or with a schema.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from detsearch_cli.errors import DetsearchError

YAML_CHARACTERS = 8_000_000
"""A list of 100,000 class names has 3 million."""
YAML_NODES = 1_000_000
"""Values after every alias is written out. Aliases of aliases double with each line, so this is what stops them."""
DEPTH = 60
"""Brackets and indentations inside each other. A recipe has 4, a COCO file 5; Python itself fails near 1,000."""


def open_regular(path: Path, error: type[DetsearchError]) -> BinaryIO:
    """Open a regular file for reading. Raises `error` where there is none, or a pipe, device or folder.

    Opening a named pipe would wait for its writer, reading a device may never end.
    """
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "a pipe, a socket or a device"
            raise error(f"{path} is {what}, not a file; name a regular file")
        return path.open("rb")
    except (OSError, ValueError) as refused:  # ValueError: a NUL in the name
        said = getattr(refused, "strerror", None) or str(refused)
        raise error(f"cannot read {path}: {said}; check the path and its permissions") from refused


def read_text(path: Path, error: type[DetsearchError]) -> str:
    """A regular file as UTF-8 text; a byte-order mark is dropped. Raises `error` naming the file."""
    with open_regular(path, error) as file:
        try:
            return file.read().decode("utf-8-sig")
        except OSError as refused:
            raise error(f"cannot read {path}: {refused.strerror}") from refused
        except UnicodeDecodeError as odd:
            raise error(
                f"{path} is not UTF-8 text: byte {odd.start} cannot be decoded; save it as UTF-8"
            ) from odd


def parse_yaml(text: str, name: object, error: type[DetsearchError], as_written: bool = False) -> Any:
    """Plain values (dict, list, str, numbers, None) of a YAML text. Raises `error` saying what is wrong on which line.

    name: what the text is called in the message, such as its file. Tags that build objects are refused.
    as_written: every value stays the text that was written: yes is "yes", 010 is "010", nothing is "".
    """
    if len(text) > YAML_CHARACTERS:
        raise error(f"{name} has {len(text)} characters; YAML of at most {YAML_CHARACTERS} is read")
    try:
        _measure(text, name, error, tags=not as_written)
        return yaml.load(text, Loader=_TEXT_LOADER if as_written else _Loader)
    except yaml.YAMLError as problem:
        raise error(f"{name} is not valid YAML: {_yaml_problem(problem, text)}") from problem
    # what the constructors of dates, numbers and mappings raise: 2020-99-99, 5,000 digits, a list as a key
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        AttributeError,
        KeyError,
        IndexError,
    ) as problem:
        said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise error(
            f"{name} is not valid YAML: {said}; put text that only looks like a value in quotes"
        ) from problem


def read_yaml(path: Path, error: type[DetsearchError]) -> Any:
    """`parse_yaml` of a file. Raises `error` naming the file."""
    return parse_yaml(read_text(path, error), path, error)


def parse_json(
    text: str, name: object, error: type[DetsearchError], remedy: str = "fetch or export it again"
) -> Any:
    """Values of a JSON text. Raises `error` with the place of the first mistake. NaN and Infinity pass: see `number`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(
            pairs
        ):  # json keeps the last one, so that half of a merged file would be lost silently
            first = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise error(f"{name} holds the key {first[:60]!r} twice in one object; join the two, or keep one")
        return built

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as problem:
        cut = "; the file is cut short" if problem.pos >= len(text.rstrip()) - 1 else ""
        raise error(
            f"{name} is not valid JSON: {problem.msg} at line {problem.lineno} column {problem.colno} "
            f"(character {problem.pos} of {len(text)}){cut}; {remedy}"
        ) from problem
    except RecursionError as problem:
        raise error(f"{name} is not valid JSON that can be read: it is nested too deeply") from problem
    except ValueError as problem:  # an integer of more digits than Python converts
        raise error(f"{name} holds a number of more than 4,300 digits; mend or remove it") from problem


def read_json(path: Path, error: type[DetsearchError], remedy: str = "fetch or export it again") -> Any:
    """`parse_json` of a file. Raises `error` naming the file."""
    return parse_json(read_text(path, error), path, error, remedy)


# libyaml where PyYAML was built with it: ten times faster, the same values
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SAFE):
    """YAML 1.1 but for its numbers in base 60, which nobody means: 1:30 stays text instead of becoming 90."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is yaml.ScalarNode and ":" in value and tag.endswith((":int", ":float")):
            return self.DEFAULT_SCALAR_TAG
        return tag


_TEXT_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


@dataclass
class _Open:
    """A list or mapping that the parser is in. nodes: so far; keys: of a mapping; children: keys and values so far."""

    nodes: int
    anchor: str | None = None
    keys: set[str] | None = None
    children: int = 0

    def add(self, size: int, event: yaml.Event) -> str | None:
        """Count a child of so many nodes; the key that it repeats, of which YAML's loaders silently keep the last."""
        self.nodes += size
        self.children += 1
        if self.keys is None or self.children % 2 == 0 or not isinstance(event, yaml.ScalarEvent):
            return None
        if event.value in self.keys and event.value != "<<":  # several mappings may be merged
            return str(event.value)
        self.keys.add(event.value)
        return None


def _measure(text: str, name: object, error: type[DetsearchError], tags: bool) -> None:
    """Refuse what would not fit, from the parser's events alone: nothing is built and nothing recurses yet.

    tags: whether the loader judges tags. The one that keeps text passes over them, so they are refused here.
    """
    sizes: dict[str, int] = {}  # nodes of every anchored value, aliases written out
    open_nodes = [_Open(0)]
    for event in yaml.parse(text, Loader=_Loader):
        where = f" line {event.start_mark.line + 1}" if event.start_mark else ""
        tag = None if tags else getattr(event, "tag", None)
        if tag:
            raise error(f"{name}{where}: the tag {tag!r} has no meaning here; only plain values are read")
        if isinstance(event, yaml.CollectionEndEvent):
            ended = open_nodes.pop()
            size, anchor = ended.nodes, ended.anchor
        elif isinstance(event, yaml.CollectionStartEvent):
            keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
            open_nodes.append(_Open(1, event.anchor, keys))
            if len(open_nodes) > DEPTH:
                raise error(f"{name} is nested deeper than {DEPTH} levels; no such YAML is read")
            continue
        elif isinstance(event, yaml.AliasEvent):
            size, anchor = sizes.get(event.anchor or "", 1), None
        elif isinstance(event, yaml.ScalarEvent):
            size, anchor = 1, event.anchor
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        twice = open_nodes[-1].add(size, event)
        if twice is not None:
            raise error(f"{name}{where}: the key {twice!r} is there twice; keep one")
        if open_nodes[-1].nodes > YAML_NODES:
            raise error(f"{name} holds more than {YAML_NODES} values once its aliases are written out")


def _yaml_problem(problem: yaml.YAMLError, text: str) -> str:
    """What a YAML parser found wrong, in one line, with the place."""
    mark = getattr(problem, "problem_mark", None)
    # what is missing at the end is missed by libyaml in the line after the last
    where = f"line {min(mark.line + 1, len(text.splitlines()))}: " if mark is not None else ""
    said = getattr(problem, "problem", None) or str(problem).splitlines()[0]
    hint = ""
    if "escape" in said or "hexdec" in said:  # "C:\data" and "C:\Users"; libyaml itself writes hexdecimal
        hint = "; in double quotes a backslash starts an escape, so write / or leave the quotes out"
    elif "could not determine a constructor" in said:
        hint = "; only plain values are read"
    return f"{where}{said}{hint}"


# ---------------------------------------------------------------------- single values

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
LARGEST = 2**53
"""Whole numbers beyond it are not exact as floats, and 2^63 does not fit the arrays they go to."""


def number(value: Any) -> float | None:
    """A finite number as float; None for text, true and false, NaN, infinity and what no float holds."""
    if type(value) is float:
        return value if math.isfinite(value) else None
    if type(value) is int:
        return float(value) if -LARGEST <= value <= LARGEST else None
    return None


def whole(value: Any) -> int | None:
    """A whole number: 3, 3.0 or "3", which tools write for one id; None for everything else, true included."""
    if type(value) is int:
        return value if -LARGEST <= value <= LARGEST else None
    if type(value) is float:
        return int(value) if abs(value) <= LARGEST and value.is_integer() else None
    # ASCII digits: int() also takes the digits of every other script, and underscores
    if type(value) is str and _WHOLE.fullmatch(value.strip()):
        return whole(int(value))
    return None


_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def decimal(text: str) -> float | None:
    """A finite number written in a text file, such as -1.5 or 2e-3; None for everything else.

    float() also takes nan, inf, 1_000 and the digits of every other script.
    """
    return number(float(text)) if _DECIMAL.fullmatch(text) else None


def decimals(line: str) -> list[float] | None:
    """The numbers of a line such as "0 .5 1e-3", each by the rule of `decimal`; None where one word is no such number.

    Made for label files: one call a line, and none a number.
    """
    if not line.isascii() or "_" in line:
        return None
    try:
        values = list(map(float, line.split()))
    except ValueError:
        return None
    # a sum is finite only when every term is
    return values if math.isfinite(sum(values)) else None


def flag(value: Any) -> bool | None:
    """Whether a flag is set: 1, true, yes (also as text) are; 0, false, no, nothing are not; None for anything else."""
    if value is None:
        return False
    if isinstance(value, bool | int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        return _FLAGS.get(value.strip().casefold())
    return None


_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
