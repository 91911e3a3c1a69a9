"""Whatever stands in a field of a VOC or YOLO set: a value that is read, a defect, or one DataError of one line."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from detsearch_cli.data.source import open_source
from detsearch_cli.data.types import Split
from detsearch_cli.errors import DataError

from .samples import voc, voc_xml, yolo

ODD = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "1.5",
    "1e30",
    "1e400",
    "nan",
    "-inf",
    "9" * 5000,
    "٣",
    "1,5",
    "1_0",
    "0x1",
    "../x",
)
ODD += ("yes", "null", "true", "\u2028", "a\\b", "C:\\x", "/dev/zero", "q" * 5000, "💀", "\x1b[31m")
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=12))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=4,
)
FIELDS = ("filename", "size", "size/width", "size/height", "object", "object/name", "object/difficult")
FIELDS += ("object/bndbox", "object/bndbox/xmin", "object/bndbox/ymax")


def read(root: Path) -> list[Split]:
    """Every split that is offered; none where the set is refused in one line."""
    try:
        source = open_source(str(root))
        found = [source.load(name) for name in source.splits]
    except DataError as error:
        assert "\n" not in str(error)
        return []
    for split in found:
        for r in split.records:
            assert np.isfinite(r.boxes).all() and (r.boxes[:, 2:] > r.boxes[:, :2]).all()
            assert ((r.labels >= 0) & (r.labels < len(split.classes))).all()
    return found


@settings(max_examples=40, derandomize=True, deadline=None)
@given(field=st.sampled_from(FIELDS), value=TEXTS, how=st.sampled_from(("text", "child", "twice", "gone")))
def test_any_field_of_a_voc_file(field: str, value: str, how: str) -> None:
    root = ET.fromstring(voc_xml([("cat", (11, 6, 30, 25)), ("dog", (1, 1, 9, 9))]))
    ET.SubElement(root, "filename").text = "train0.jpg"
    above, _, tag = field.rpartition("/")
    parent = root.find(above) if above else root
    assert parent is not None
    node = parent.find(tag)
    assert node is not None
    if how == "gone":
        parent.remove(node)
    elif how == "text":
        node[:] = []
        node.text = value
    else:
        ET.SubElement(node if how == "child" else parent, tag).text = value
    with tempfile.TemporaryDirectory() as folder:
        path = voc(Path(folder)) / "Annotations" / "train0.xml"
        path.write_bytes(ET.tostring(root, encoding="utf-8"))
        splits = read(Path(folder))
        assert splits, "one label file refuses no set"
        train = splits[0]
        boxes = sum(len(r.boxes) for r in train.records)
        # the other image's box, and the two of this file, unless a line says otherwise
        assert boxes == 3 or train.defects or (field, how) == ("object", "gone")


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    words=st.lists(st.one_of(TEXTS, st.floats().map(str), st.sampled_from(["0", "1", ".5"])), max_size=9),
    column=st.integers(0, 4),
    value=TEXTS,
)
def test_any_line_of_a_yolo_file(words: list[str], column: int, value: str) -> None:
    sound = ["1", ".5", ".5", ".2", ".2"]
    mutated = [*sound[:column], value, *sound[column + 1 :]]
    with tempfile.TemporaryDirectory() as folder:
        path = yolo(Path(folder)) / "labels" / "train" / "train0.txt"
        text = f"{' '.join(mutated)}\n{' '.join(words)}\n"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read(Path(folder))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    key=st.sampled_from(("names", "train", "val", "test", "path", "nc", "kpt_shape", "valid")), value=VALUES
)
def test_any_value_of_a_data_yaml(key: str, value: Any) -> None:
    content = {"train": "images/train", "val": "images/val", "nc": 2, "names": ["cat", "dog"], key: value}
    with tempfile.TemporaryDirectory() as folder:
        (yolo(Path(folder)) / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        read(Path(folder))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    name=st.sampled_from(("data.yaml", "classes.txt", "obj.data", "obj.names", "train.txt")), text=st.text()
)
def test_any_text_as_a_file_of_a_yolo_set(name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = yolo(Path(folder))
        (root / "data.yaml").rename(root / "spare.yml" if len(text) % 2 else root / "none")
        (root / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        read(root)
