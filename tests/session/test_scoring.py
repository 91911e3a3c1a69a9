"""A search or a comparison that could have no score is refused before anything is trained or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detsearch_cli import api
from detsearch_cli.engine.score import why_no_score
from detsearch_cli.errors import EvaluationError
from tests.engine.scoring_data import record, split_of
from tests.recipes import SMALL


def set_of(folder: Path, **boxes: int) -> dict[str, Any]:
    """A recipe on a COCO set with so many boxes an image in each split of three images."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split, count in boxes.items():
        images = [{"id": i, "file_name": f"{split}{i}.png", "width": 64, "height": 64} for i in range(1, 4)]
        for image in images:
            Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "images" / image["file_name"])
        own = [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [8, 8, 20, 30], "area": 600, "iscrowd": 0}
            for i in range(1, 4)[: 3 * count]
        ]
        content = {"images": images, "annotations": own, "categories": [{"id": 1, "name": "cell"}]}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return {**SMALL, "data": {"source": str(folder)}}


def search(recipe: dict[str, Any], out: Path) -> None:
    api.search("assign", recipe, options={"bins": "1"}, trials=1, name="s", out=out)


@pytest.mark.parametrize(
    "boxes",
    [{"train": 1, "val": 0, "test": 1}, {"train": 1, "val": 0}],
    ids=["val scores", "val is set aside"],
)
def test_a_search_with_an_unlabelled_val_is_refused_before_the_first_trial(
    boxes: dict[str, int], tmp_path: Path
) -> None:
    recipe = set_of(tmp_path / "set", **boxes)
    with pytest.raises(
        EvaluationError, match="AP cannot be computed on val: none of its 3 images has a box;"
    ):
        search(recipe, tmp_path / "studies")
    assert not (tmp_path / "studies").exists()


def test_a_comparison_on_an_unlabelled_test_is_refused_before_the_first_training(tmp_path: Path) -> None:
    a = set_of(tmp_path / "set", train=1, val=1, test=0)
    b = {**a, "optim": {**a["optim"], "lr": 0.001}}
    with pytest.raises(EvaluationError, match="AP cannot be computed on test"):
        api.compare(a, b, seeds=1, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))


def test_a_split_of_crowds_and_difficult_boxes_alone_has_no_score() -> None:
    alone = split_of(record(1, [[0, 0, 9, 9]] * 2, [0, 0], crowd=[True, False], difficult=[False, True]))
    said = "AP cannot be computed on val: none of its 1 images has a box that is neither crowd nor difficult"
    assert why_no_score(alone) == said
    assert why_no_score(split_of(record(1, [], []), record(2, [[0, 0, 9, 9]], [0]))) is None
