"""Parses one label file of Pascal VOC: any encoding that it declares, any order, with or without a namespace.

What is not read is counted or named in `Annotation.problems`, so that nothing is dropped without a word.
"""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from detsearch_cli import reading
from detsearch_cli.errors import DataError

Box = tuple[float, float, float, float]
MOST_BYTES = 8_000_000
"""An object has 300 bytes. Elements take 40 times their text in memory, so this is what bounds it."""

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)["']""")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LEFT_OUT, _NOT_DIFFICULT = "object left out", "taken as not difficult"
# Chinese tools declare gb2312 and write the characters of its successors too; the last one decodes them all.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}
# Python's own notations, no encodings of text; decoding punycode takes time that grows with the square
_NO_CHARSET = frozenset({"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-7"})


@dataclass(frozen=True)
class Object:
    """One object. box: as written, xyxy, 1-based and inclusive; difficult None: the file does not say."""

    name: str
    box: Box
    difficult: bool | None


@dataclass(frozen=True)
class Annotation:
    """What a label file says. size: (width, height) px; filename: the image's, without folders.

    problems: (what is wrong, what was done) for everything in it that was not read.
    """

    size: tuple[int, int] | None
    filename: str
    objects: tuple[Object, ...]
    problems: tuple[tuple[str, str], ...]


def is_annotation(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a label file of VOC."""
    return re.search(rb"<([\w.-]+:)?annotation[\s>/]", start.replace(b"\0", b"")) is not None


def parse(data: bytes) -> Annotation:
    """Read a label file. Raises DataError with the reason, without the file's name, when it cannot be read."""
    root = _root(_decode(data))
    problems: list[tuple[str, str]] = []
    objects: list[Object] = []
    nodes = root.findall("object")
    for node in nodes:
        item = _object(node, problems)
        if item is not None:
            objects.append(item)
    _misplaced(root, nodes, problems)
    filename = (root.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    return Annotation(_size(root), filename, tuple(objects), tuple(problems))


def _decode(data: bytes) -> str:
    if len(data) > MOST_BYTES:
        raise DataError(f"{len(data)} bytes; a label file of at most {MOST_BYTES} is read")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = "utf-16"
    elif data.startswith((b"<\0", b"\0<")):
        name = "utf-16-le" if data.startswith(b"<\0") else "utf-16-be"
    else:
        name = _declared(data)
    try:
        return data.decode(name)
    except (ValueError, LookupError) as odd:  # LookupError: a codec that makes no text, such as hex
        raise DataError(f"not text in the encoding {name}: {odd}") from odd


def _declared(data: bytes) -> str:
    """The encoding a file declares, UTF-8 where it does not. Raises DataError for one that Python does not know."""
    match = _DECLARED.match(data.removeprefix(codecs.BOM_UTF8))
    if match is None:
        return "utf-8-sig"
    written = match[1].decode("ascii", "replace")
    try:
        name = codecs.lookup(written).name
    except (LookupError, ValueError) as unknown:  # ValueError: a NUL in the name
        raise DataError(f"unknown encoding {written[:40]!r}; save it as UTF-8") from unknown
    if name in _NO_CHARSET:
        raise DataError(f"{written!r} is no encoding of XML; save it as UTF-8")
    # A declaration that reads as ASCII is not UTF-16, whatever it says: .NET declares it in UTF-8 files.
    wrong = name.startswith(("utf-16", "utf-32", "utf-8"))
    return "utf-8-sig" if wrong else _WIDER.get(name, name)


def _root(text: str) -> ET.Element:
    # Entities that name entities grow without end, and no tool that writes labels declares any.
    if "<!ENTITY" in text:
        raise DataError("declares entities, which are not read; write the text itself")
    try:
        # text instead of bytes: expat itself knows no encoding of several bytes but UTF-8 and UTF-16
        root = ET.fromstring(text.lstrip())
    except (ET.ParseError, ValueError) as error:  # ValueError: half of a surrogate pair
        raise DataError(f"not valid XML: {error}") from error
    if "xmlns" in text:
        for node in root.iter():
            node.tag = node.tag.rpartition("}")[2]
    return root


def _object(node: ET.Element, problems: list[tuple[str, str]]) -> Object | None:
    full_name = (node.findtext("name") or "").strip()
    name = full_name[:60]  # in messages
    boxes = node.findall("bndbox")
    if not name or not boxes:
        missing = "bndbox" if name else "name"
        problems.append((f"object {name or 'without name'} has no {missing}", _LEFT_OUT))
        return None
    if len(boxes) > 1:
        problems.append((f"{name} has {len(boxes)} bndbox", "the first one taken"))
    corners = [boxes[0].findtext(corner) for corner in _CORNERS]
    x1, y1, x2, y2 = map(_number, corners)
    if x1 is None or y1 is None or x2 is None or y2 is None:
        problems.append((f"bndbox of {name} needs four numbers, got {_show(corners)}", _LEFT_OUT))
        return None
    written = (node.findtext("difficult") or "").strip()
    difficult = reading.flag(written) if written else None
    if written and difficult is None:
        problems.append((f"difficult of {name} is {written[:40]!r}, neither 0 nor 1", _NOT_DIFFICULT))
        difficult = False
    _repeated(node, ("name", "difficult"), name, problems)
    _repeated(boxes[0], _CORNERS, name, problems)
    return Object(full_name, (x1, y1, x2, y2), difficult)


def _repeated(node: ET.Element, tags: Sequence[str], name: str, problems: list[tuple[str, str]]) -> None:
    present = [child.tag for child in node]
    for tag in tags:
        count = present.count(tag)
        if count > 1:
            problems.append((f"{name} has {count} {tag}", "the first one taken"))


def _misplaced(root: ET.Element, nodes: list[ET.Element], problems: list[tuple[str, str]]) -> None:
    """Boxes that are neither an object's own nor a part's: an object in another element, a box without object."""
    known = sum(len(node.findall("bndbox")) + len(node.findall("part/bndbox")) for node in nodes)
    lost = sum(1 for _ in root.iter("bndbox")) - known
    if lost:
        problems.append((f"{lost} bndbox in other places than an object of the annotation", "left out"))
    inner = sum(1 for _ in root.iter("object")) - len(nodes)
    if inner:
        problems.append((f"{inner} objects inside other elements", "left out"))


def _size(root: ET.Element) -> tuple[int, int] | None:
    width, height = (reading.whole(_number(root.findtext(f"size/{side}"))) for side in ("width", "height"))
    return None if width is None or height is None else (width, height)


def _number(text: str | None) -> float | None:
    return reading.decimal((text or "").strip())


def _show(values: Sequence[str | None]) -> str:
    return ", ".join("nothing" if v is None or not v.strip() else repr(v.strip()[:20]) for v in values)
