"""Detections of a split: each image once, in order, in the pixels of the original image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from detsearch_cli.data.types import Split
from detsearch_cli.detectors import build
from detsearch_cli.detectors.base import Detector
from detsearch_cli.engine import checkpoint as ckpt
from detsearch_cli.engine import predict
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.predict import detect_split, expand_images, image_split, per_image
from detsearch_cli.engine.score import detect_with, final_split, open_split
from detsearch_cli.engine.trial import load_data
from detsearch_cli.errors import CheckpointError, DataError, EvaluationError
from detsearch_cli.recipe import Data
from detsearch_cli.structures import Detections
from tests.engine.coco_folder import write_coco
from tests.recipes import small

CPU = torch.device("cpu")
UNTRAINED = small(test={"score_threshold": 0.0, "max_detections": 5})


def untrained() -> Detector:
    torch.manual_seed(0)
    return build(UNTRAINED, 5).eval()


class Fixed:
    """Finds the same boxes, in the resized image's pixels, in every image."""

    training = True

    def __init__(self, boxes: list[list[float]]) -> None:
        self.boxes = torch.tensor(boxes)
        self.modes: list[bool] = []

    def eval(self) -> None:
        self.modes.append(False)

    def train(self, mode: bool) -> None:
        self.modes.append(mode)

    def detect(self, images: torch.Tensor, sizes: torch.Tensor, test: Any) -> list[Detections]:
        count = len(self.boxes)
        scores, labels = torch.linspace(1, 0.5, count), torch.zeros(count, dtype=torch.int64)
        return [Detections(self.boxes, scores, labels) for _ in images]


def test_images_come_once_each_in_the_order_of_the_split() -> None:
    split = load_data(UNTRAINED.data).test
    assert split is not None
    table = detect_split(untrained(), split, UNTRAINED, CPU)
    assert table.image.tolist() == [row for row in range(8) for _ in range(5)]
    assert table.boxes.dtype == np.float64 and table.boxes.shape == (40, 4)


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_shares_together_are_the_whole(world: int) -> None:
    split, model = load_data(UNTRAINED.data).val, untrained()
    whole = detect_split(model, split, UNTRAINED, CPU)
    shares = [detect_split(model, split, UNTRAINED, CPU, rank=rank, world=world) for rank in range(world)]
    for rank, share in enumerate(shares):
        assert sorted(set(share.image.tolist())) == list(range(rank, len(split), world))
    joined = DetectionTable.concatenate(shares)
    order = np.argsort(joined.image, kind="stable")
    assert np.array_equal(joined.image[order], whole.image)
    assert np.array_equal(joined.labels[order], whole.labels)
    np.testing.assert_allclose(joined.boxes[order], whole.boxes, atol=1e-3)
    np.testing.assert_allclose(joined.scores[order], whole.scores, atol=1e-5)


def test_boxes_come_back_in_original_pixels_clipped_to_the_image(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", [[[10, 20, 20, 20]]] * 3, size=(50, 100))
    recipe = small(data={"source": str(tmp_path / "data")}, augment={"image_size": [64, 128]})
    # 50 x 100 becomes 64 x 128, 1.28 times as large
    model = Fixed([[12.8, 25.6, 38.4, 51.2], [-5, -5, 200, 200]])
    table = detect_split(cast(Detector, model), load_data(recipe.data).val, recipe, CPU)
    assert table.image.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(table.boxes[0::2], [[10, 20, 30, 40]] * 3, rtol=1e-6)
    np.testing.assert_array_equal(table.boxes[1::2], [[0, 0, 100, 50]] * 3)
    assert model.modes == [False, True]  # evaluated, and trained on afterwards


def test_a_split_without_detections_gives_an_empty_table() -> None:
    model = Fixed([])
    model.boxes = torch.zeros(0, 4)
    table = detect_split(cast(Detector, model), load_data(UNTRAINED.data).val, UNTRAINED, CPU)
    assert len(table.scores) == 0 and table.boxes.shape == (0, 4)


def test_image_files_are_a_split_and_what_is_no_image_is_refused(tmp_path: Path) -> None:
    for name, size in (("b.png", (30, 20)), ("a.jpg", (40, 10))):
        Image.new("RGB", size, (255, 0, 0)).save(tmp_path / name)
    files = expand_images([tmp_path])
    assert [f.name for f in files] == ["a.jpg", "b.png"]
    split = image_split(files, ("thing",))
    assert [(r.height, r.width) for r in split.records] == [(10, 40), (20, 30)]
    assert split.read(1).shape == (20, 30, 3) and split.read(1)[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(DataError, match=r"no image at .*missing\.png"):
        expand_images([tmp_path / "missing.png"])
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(DataError, match=r"c\.png"):
        image_split([tmp_path / "c.png"], ("thing",))


def test_files_that_are_no_images_are_told_and_the_others_detected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "FILES_AT_ONCE", 2)
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    for file in files:
        Image.new("RGB", (64, 64), (0, 90, 9)).save(file)
    files[1].write_bytes(files[1].read_bytes()[:-40])
    files[2].write_text("no image")
    files[3].unlink()
    parts = list(predict.detect_files(untrained(), files, UNTRAINED, ("a", "b", "c", "d", "e"), CPU))
    assert [[r.image_id for r in part.split.records] for part in parts] == [[1], [], [5]]
    told = [found for part in parts for found in part.unreadable]
    assert [file.name for file, _ in told] == ["b.png", "c.png", "d.png"]
    assert "truncated" in told[0][1] and "no image" in told[1][1] and "no such file" in told[2][1]
    assert [part.table.image.tolist() for part in parts] == [[0] * 5, [], [0] * 5]


def test_a_folder_whose_images_lie_deeper_says_where(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "deep" / "a.png")
    with pytest.raises(DataError, match=r"holds no images itself, but .*deep does"):
        expand_images([tmp_path])
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"no image at .*pipe\.png"):
        expand_images([tmp_path / "pipe.png"])


def test_rows_are_handed_out_image_by_image_in_their_order() -> None:
    table = DetectionTable(
        image=np.array([2, 0, 2, 0]),
        boxes=np.arange(16, dtype=np.float64).reshape(4, 4),
        scores=np.array([0.1, 0.2, 0.3, 0.4]),
        labels=np.array([0, 1, 2, 3]),
    )
    assert [t.labels.tolist() for t in per_image(table, 4)] == [[1, 3], [], [0, 2], []]


# ---------------------------------------------------------------------- score


def saved(folder: Path) -> Path:
    data = load_data(UNTRAINED.data)
    ckpt.save_weights(folder / ckpt.LAST, untrained(), UNTRAINED, data.train.classes)
    return folder


def key(split: Split) -> list[Any]:
    return [record.key for record in split.records]


def test_a_run_is_scored_on_test_unless_asked_otherwise(tmp_path: Path) -> None:
    data = load_data(UNTRAINED.data)
    assert data.test is not None and key(data.test) != key(data.val)
    run = saved(tmp_path)
    for asked, expected in ((None, data.test), ("val", data.val)):
        split, table = detect_with(run, None, asked, ckpt.LAST, "cpu")
        assert key(split) == key(expected)
        alone = detect_split(untrained(), expected, UNTRAINED, CPU)
        assert np.array_equal(table.boxes, alone.boxes) and np.array_equal(table.scores, alone.scores)


def test_what_val_means_is_the_recipes_held_out_part() -> None:
    held = Data(source="shapes:images=24,val=8,test=8,size=64", val_fraction=0.25)
    resolved = load_data(held)
    assert len(resolved.val) == 6 and len(resolved.train) == 18
    assert (
        key(final_split(held)) == key(open_split(held.source, None)) == key(open_split(held.source, "test"))
    )


def test_data_with_other_classes_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", [[[8, 8, 24, 40]]] * 2)
    with pytest.raises(EvaluationError, match=r"knows the classes ellipse, .* the data has thing"):
        detect_with(saved(tmp_path), str(tmp_path / "data"), "val", ckpt.LAST, "cpu")


def test_a_folder_without_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no best\.safetensors"):
        detect_with(saved(tmp_path), None, None, ckpt.BEST, "cpu")
