"""Reading the annotations of a large set: this tree against another one, on the same generated files.

    python benchmarks/read_annotations.py                          # 100,000 images in COCO and in YOLO, seconds
    python benchmarks/read_annotations.py --against ../before      # the same, and the ratio to the tree in ../before
    python benchmarks/read_annotations.py --images 10000 --formats coco

Each image has 7 boxes, as in COCO. The images are hard links to a few tiny files, of which only headers are read.
`annotations` leaves the headers out, `whole` is what `Source.load` takes. Processor seconds, the least of `--repeats`
runs, each in a process of its own, the two trees by turns: other programs change little of it. With `--against` it
exits with 1 where a ratio of `whole` or `annotations` is above 1.1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

LIMIT = 1.10
BOXES = 7
WIDTH, HEIGHT = 640, 480
CLASSES = 80
LINKS = 30_000
"""Hard links to one file; common file systems allow 65,000."""
# Run in the tree that is measured: it prints the processor seconds of one load, and what was read.
CHILD = """
import sys, time
from detsearch_cli.data import checks
from detsearch_cli.data.source import open_source
folder, headers, where = sys.argv[1], sys.argv[2] == "whole", sys.argv[3]
assert checks.__file__.startswith(where), f"{checks.__file__} is not in {where}"
if not headers:
    read, first = checks.read_header, []
    checks.read_header = lambda path: first[0] if first else first.append(read(path)) or first[0]
source = open_source(folder)
started = time.process_time()
split = source.load("train")
print(time.process_time() - started, len(split), sum(len(r.boxes) for r in split.records), len(split.defects))
"""


def pictures(folder: Path, images: int) -> list[str]:
    """Make the images and return their names."""
    folder.mkdir(parents=True)
    names = [f"{number:012}.jpg" for number in range(images)]
    for start in range(0, images, LINKS):
        first = folder / names[start]
        Image.new("L", (WIDTH, HEIGHT)).convert("RGB").save(first, quality=10)
        for name in names[start + 1 : start + LINKS]:
            os.link(first, folder / name)
    return names


def boxes(rng: random.Random) -> list[tuple[int, float, float, float, float]]:
    """Objects of one image: class, x, y, width, height in px, inside it."""
    rows = []
    for _ in range(BOXES):
        width, height = rng.uniform(8, 200), rng.uniform(8, 200)
        x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
        rows.append((rng.randrange(CLASSES), *(round(v, 2) for v in (x, y, width, height))))
    return rows


def write_coco(folder: Path, images: int) -> None:
    rng = random.Random(0)
    names = pictures(folder / "train", images)
    rows = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)]
    annotations = [
        {
            "id": i * BOXES + k,
            "image_id": i,
            "category_id": label + 1,
            "bbox": box,
            "area": round(box[2] * box[3] * 0.7, 2),
            "iscrowd": 0,
            "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]],
        }
        for i in range(images)
        for k, (label, *box) in enumerate(boxes(rng))
    ]
    categories = [{"id": i + 1, "name": f"class {i}", "supercategory": "thing"} for i in range(CLASSES)]
    (folder / "annotations").mkdir()
    text = json.dumps({"images": rows, "annotations": annotations, "categories": categories})
    (folder / "annotations" / "instances_train.json").write_text(text)


def write_yolo(folder: Path, images: int) -> None:
    rng = random.Random(0)
    names = pictures(folder / "images" / "train", images)
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for name in names:
        lines = [
            f"{label} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"
            for label, x, y, w, h in boxes(rng)
        ]
        (labels / name.replace(".jpg", ".txt")).write_text("".join(lines))
    listed = "".join(f"  {i}: class {i}\n" for i in range(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nnames:\n{listed}")


WRITERS: dict[str, Callable[[Path, int], None]] = {"coco": write_coco, "yolo": write_yolo}


def seconds(tree: Path, folder: Path, what: str) -> tuple[float, str]:
    """(processor seconds of one load in that tree, what was read)."""
    with tempfile.TemporaryDirectory() as place:
        # links, because the compiled part of the package is called otherwise in a checkout
        for name, target in (("detsearch_cli", "detsearch_cli"), ("detsearch_kernels", "kernels")):
            Path(place, name).symlink_to(tree / target)
        environment = {**os.environ, "PYTHONPATH": place, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHILD, str(folder), what, place]
        # cwd: python -c looks for packages in it first
        done = subprocess.run(
            command, env=environment, cwd=place, check=True, stdout=subprocess.PIPE, text=True
        )
    took, *read = done.stdout.split()
    return float(took), "{} images, {} boxes, {} defects".format(*read)


def measure(trees: list[Path], folder: Path, repeats: int) -> list[float]:
    """Print the rows of one set; returns the ratios of the first tree to the second, none for one tree."""
    ratios = []
    for what in ("annotations", "whole"):
        took: list[list[float]] = [[] for _ in trees]
        read = ""
        for _ in range(repeats):
            for times, tree in zip(took, trees, strict=True):
                second, read = seconds(tree, folder, what)
                times.append(second)
        least = [min(times) for times in took]
        row = [folder.name, what, *(f"{t:.2f}" for t in least)]
        if len(least) == 2:
            ratios.append(least[0] / least[1])
            row.append(f"{ratios[-1]:.3f}")
        print("  ".join(f"{v:>12}" for v in row), f"  {read}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--against", type=Path, help="root of another checkout")
    parser.add_argument("--formats", default="coco,yolo")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--keep", type=Path, help="folder for the generated sets, used again where it has them"
    )
    options = parser.parse_args()
    trees = [Path(__file__).resolve().parents[1]]
    if options.against:
        trees.append(options.against.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        ratios = []
        columns = ("set", "what", "seconds", "before s", "ratio")
        print("  ".join(f"{c:>12}" for c in columns[: 5 if options.against else 3]))
        for name in options.formats.split(","):
            folder = Path(options.keep or temporary, str(options.images), name)
            if not folder.exists():
                started = time.perf_counter()
                WRITERS[name](folder, options.images)
                print(f"{name}: {options.images} images made in {time.perf_counter() - started:.0f} s")
            ratios += measure(trees, folder, options.repeats)
    sys.exit(int(max(ratios, default=0) > LIMIT))


if __name__ == "__main__":
    main()
