"""A data set on disk whose boxes a test chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image


def write_coco(
    folder: Path,
    boxes: Sequence[Sequence[Sequence[float]]],
    *,
    size: tuple[int, int] = (64, 64),
    same: bool = False,
) -> None:
    """A COCO folder of one image (height, width) for each list of boxes (xywh), for train and val alike.

    Noise with white boxes; `same`: the noise too is that of the first image.
    """
    generator = torch.Generator().manual_seed(0)
    annotations: list[dict[str, Any]] = []
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
    for image, own in enumerate(boxes, 1):
        if same:
            generator.manual_seed(0)
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
        for x, y, w, h in own:
            pixels[int(y) : int(y + h), int(x) : int(x + w)] = 255
            about = {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": 0}
            annotations.append({**about, "bbox": [x, y, w, h], "area": w * h})
        for split in ("train", "val"):
            Image.fromarray(pixels.numpy()).save(folder / split / f"{image}.png")
    images = [
        {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]}
        for i in range(1, len(boxes) + 1)
    ]
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
