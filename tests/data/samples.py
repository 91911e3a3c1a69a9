"""Writes tiny data sets in every format: two images of 40 x 30 px a split, one box each or more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30


def picture(
    path: Path, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), **options: object
) -> Path:
    """Save an image of smooth noise, the same for the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(path.name.encode()).digest()[:4], "little")
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def voc_xml(
    objects: list[tuple[str, tuple[float, float, float, float]]],
    size: tuple[int, int] | None = (WIDTH, HEIGHT),
    difficult: str = "<difficult>0</difficult>",
) -> str:
    """A VOC label file; boxes in VOC's own 1-based inclusive pixels."""
    head = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    body = "".join(
        f"<object><name>{name}</name>{difficult}<bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
        f"<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
        for name, b in objects
    )
    return f"<annotation>{head}{body}</annotation>"


def write(path: Path, text: str) -> Path:
    """Write a text file, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def voc(root: Path) -> Path:
    """cat and dog; the box (10, 5, 30, 25) in continuous pixels."""
    for split in ("train", "val"):
        names = [f"{split}{i}" for i in range(2)]
        for name, label in zip(names, ("cat", "dog"), strict=True):
            picture(root / "JPEGImages" / f"{name}.jpg")
            write(root / "Annotations" / f"{name}.xml", voc_xml([(label, (11, 6, 30, 25))]))
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names) + "\n")
    return root


def coco_json(split: str, first_id: int = 1) -> dict[str, list[dict[str, object]]]:
    """Two images and the box (10, 5, 30, 25) in each; category ids 3 cat and 7 dog."""
    ids = (first_id, first_id + 1)
    size = {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": n, "file_name": f"{split}{i}.jpg", **size} for i, n in enumerate(ids)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": c, "bbox": [10, 5, 20, 20], "area": 300.0, "iscrowd": 0}
            for n, c in zip(ids, (3, 7), strict=True)
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def coco(root: Path) -> Path:
    """COCO's own layout, with train2017 and val2017."""
    for split, first_id in (("train", 1), ("val", 1)):
        for i in range(2):
            picture(root / f"{split}2017" / f"{split}{i}.jpg")
        write(root / "annotations" / f"instances_{split}2017.json", json.dumps(coco_json(split, first_id)))
    return root


def yolo(root: Path) -> Path:
    """data.yaml with cat and dog; the box (10, 5, 30, 25)."""
    for split in ("train", "val"):
        for i in range(2):
            picture(root / "images" / split / f"{split}{i}.jpg")
            write(root / "labels" / split / f"{split}{i}.txt", f"{i} 0.5 0.5 0.5 {20 / 30:.8f}\n")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n")
    return root


def wider(root: Path) -> Path:
    """Faces; the first image of each split also has an invalid one."""
    for split in ("train", "val"):
        lines = []
        for i in range(2):
            picture(root / f"WIDER_{split}" / "images" / "0--Parade" / f"{split}{i}.jpg")
            faces = ["10 5 20 20 0 0 0 0 0 0"] + ["1 1 4 4 0 0 0 1 0 0"] * (i == 0)
            lines += [f"0--Parade/{split}{i}.jpg", str(len(faces)), *faces]
        write(root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt", "\n".join(lines) + "\n")
    return root


def fddb(root: Path) -> Path:
    """Two folds with an upright circle of radius 10 around (20, 15)."""
    for i in range(2):
        picture(root / "images" / "2002" / f"img_{i}.jpg")
        text = f"2002/img_{i}\n1\n10 10 0 20 15  1\n"
        write(root / "FDDB-folds" / f"FDDB-fold-0{i + 1}-ellipseList.txt", text)
    return root


def brainwash(root: Path) -> Path:
    """Heads in three splits; the last line of a list ends with a full stop."""
    for split in ("train", "val", "test"):
        for i in range(2):
            picture(root / "shots" / f"{split}{i}.png")
        text = f'"shots/{split}0.png": (10.0, 5.0, 30.0, 25.0), (1.0, 1.0, 5.0, 5.0);\n'
        write(root / f"brainwash_{split}.idl", text + f'"shots/{split}1.png": (30.0, 25.0, 10.0, 5.0).\n')
    return root


def bdd100k(root: Path) -> Path:
    """det_20: a car in each image, a crowd of pedestrians in the first, a frame's labels may be null."""
    box = {"x1": 10, "y1": 5, "x2": 30, "y2": 25}
    for split in ("train", "val"):
        frames: list[dict[str, object]] = []
        for i in range(2):
            picture(root / "images" / "100k" / split / f"{split}{i}.jpg")
            labels = [{"id": "1", "category": "car", "box2d": box, "attributes": {"occluded": True}}]
            frames.append({"name": f"{split}{i}.jpg", "labels": labels})
        crowd = {"id": "2", "category": "pedestrian", "box2d": {"x1": 1, "y1": 1, "x2": 5, "y2": 5}}
        frames[0]["labels"] += [{**crowd, "attributes": {"crowd": True}}]  # type: ignore[operator]
        picture(root / "images" / "100k" / split / "empty.jpg")
        frames.append({"name": "empty.jpg", "labels": None})
        write(root / "labels" / "det_20" / f"det_{split}.json", json.dumps(frames))
    return root


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "bdd100k": bdd100k,
    "brainwash": brainwash,
    "coco": coco,
    "fddb": fddb,
    "voc": voc,
    "wider": wider,
    "yolo": yolo,
}


def fingerprint(folder: Path) -> str:
    """Hash over names and contents of every file below the folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.relative_to(folder).as_posix().encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
