"""COCO numbers against pycocotools run by hand and the public fixture; results files of other frameworks."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.data.types import Split
from detsearch_cli.engine.coco import EVALUATORS
from detsearch_cli.engine.detections import DetectionTable
from detsearch_cli.engine.evaluate import COCO_KEYS, evaluate
from detsearch_cli.errors import EvaluationError
from tests.engine.scoring_data import coco_fixture, random_case, record, split_of, table_of

PUBLISHED = (
    0.503647,
    0.696973,
    0.571667,
    0.593252,
    0.557991,
    0.489363,
    0.386813,
    0.593680,
    0.595353,
    0.654764,
    0.603130,
    0.553744,
)


def pycocotools_by_hand(split: Split, table: DetectionTable, folder: Path) -> np.ndarray:
    """pycocotools through files only, as its users run it; for splits without difficult objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {"id": 1000 * r.image_id + k, "image_id": r.image_id, "category_id": split.category_ids[r.labels[k]],
         "bbox": [*map(float, b[:2]), float(b[2] - b[0]), float(b[3] - b[1])],
         "area": float(r.area[k]), "iscrowd": int(r.crowd[k])}
        for r in split.records for k, b in enumerate(r.boxes)
    ]  # fmt: skip
    content = {
        "images": [{"id": r.image_id} for r in split.records],
        "categories": [{"id": c, "name": n} for c, n in zip(split.category_ids, split.classes, strict=True)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(content))
    table.save(folder / "found.json", split)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        run = COCOeval(truth, truth.loadRes(str(folder / "found.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.where(run.stats < 0, np.nan, run.stats)


def without_difficult(split: Split) -> Split:
    return replace(
        split, records=tuple(replace(r, difficult=np.zeros(len(r.labels), bool)) for r in split.records)
    )


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twelve_numbers_agree_with_the_published_fixture(
    shared_data: Path, evaluator: str, dtype: type
) -> None:
    split, table = coco_fixture(shared_data, dtype)
    found = evaluate(split, table, evaluator).coco
    assert tuple(found) == COCO_KEYS
    np.testing.assert_allclose(list(found.values()), PUBLISHED, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_both_evaluators_equal_pycocotools_run_by_hand(seed: int, tmp_path: Path) -> None:
    split, table = random_case(seed, ties=seed % 2 == 1)
    split = without_difficult(split)
    expected = pycocotools_by_hand(split, table, tmp_path)
    for evaluator in EVALUATORS:
        found = list(evaluate(split, table, evaluator).coco.values())
        np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=evaluator)


@pytest.mark.parametrize("seed", range(3))
def test_evaluators_agree_where_objects_are_difficult(seed: int) -> None:
    split, table = random_case(seed)
    assert any(r.difficult.any() for r in split.records)
    faster, reference = (evaluate(split, table, e) for e in EVALUATORS)
    np.testing.assert_allclose(list(faster.coco.values()), list(reference.coco.values()), atol=1e-12)
    np.testing.assert_allclose(faster.precision, reference.precision, atol=1e-12)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_difficult_object_is_neither_found_nor_missed(evaluator: str) -> None:
    easy, hard = [10, 10, 110, 110], [300, 100, 400, 200]
    split = split_of(record(1, [easy, hard], [0, 0], difficult=[0, 1]))
    only_easy = evaluate(split, table_of((0, easy, 0.5, 0)), evaluator)
    both = evaluate(split, table_of((0, easy, 0.5, 0), (0, hard, 0.9, 0)), evaluator)
    assert only_easy.coco["AP"] == both.coco["AP"] == pytest.approx(1.0)
    assert only_easy.per_class[0].boxes == 1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_difficult_object_excuses_by_iou_and_a_crowd_by_share_of_the_detection(evaluator: str) -> None:
    easy, region, inside = [10, 10, 110, 110], [200, 100, 600, 400], [300, 200, 350, 250]
    detections = table_of((0, easy, 0.5, 0), (0, inside, 0.9, 0))
    hard = split_of(record(1, [easy, region], [0, 0], difficult=[0, 1]))
    crowd = split_of(record(1, [easy, region], [0, 0], crowd=[0, 1]))
    assert evaluate(hard, detections, evaluator).coco["AP"] == pytest.approx(0.5)
    assert evaluate(crowd, detections, evaluator).coco["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_sizes_follow_the_area_of_the_annotation_not_of_the_box(evaluator: str) -> None:
    box = [10, 10, 60, 60]
    split = split_of(record(1, [box], [0], area=[900.0]))  # a mask of 900 px^2 in a box of 2500
    found = evaluate(split, table_of((0, box, 0.9, 0)), evaluator).coco
    assert found["ARs"] == pytest.approx(1.0)
    assert np.isnan(found["ARm"])


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_evaluators_print_nothing(evaluator: str, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(*random_case(0, 5), evaluator)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections_score_zero(evaluator: str) -> None:
    split = split_of(record(1, [[0, 0, 50, 50]], [0]), record(2, [], []))
    found = evaluate(split, DetectionTable.empty(), evaluator)
    assert found.coco["AP"] == found.coco["AR100"] == found.voc["voc_mAP50"] == 0.0


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_class_without_objects_is_undefined_and_null_in_json(evaluator: str) -> None:
    box = [0, 0, 50, 50]
    found = evaluate(split_of(record(1, [box], [0])), table_of((0, box, 0.9, 0), (0, box, 0.9, 1)), evaluator)
    empty = found.per_class[1]
    assert np.isnan([empty.AP, empty.AP50, empty.voc07_AP50, empty.voc_AP50]).all()
    assert found.coco["AP"] == pytest.approx(1.0)
    row = json.loads(json.dumps(found.to_json(), allow_nan=False))["per_class"][1]
    assert row == {"name": "class1", "images": 0, "boxes": 0} | dict.fromkeys(
        ("AP", "AP50", "voc07_AP50", "voc_AP50", "F1", "F1_score")
    )


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_split_without_objects_is_undefined_everywhere(evaluator: str) -> None:
    for table in (DetectionTable.empty(), table_of((0, [0, 0, 9, 9], 0.5, 0))):
        found = evaluate(split_of(record(1, [], [])), table, evaluator)
        assert np.isnan([*found.coco.values(), *found.voc.values()]).all()


def test_mean_over_classes_of_the_rows_is_the_total() -> None:
    found = evaluate(*random_case(3))
    assert np.nanmean([r.AP for r in found.per_class]) == pytest.approx(found.coco["AP"], abs=1e-12)
    assert np.nanmean([r.AP50 for r in found.per_class]) == pytest.approx(found.coco["AP50"], abs=1e-12)
    assert np.nanmean([r.voc_AP50 for r in found.per_class]) == pytest.approx(found.voc["voc_mAP50"])


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (table_of((5, [0, 0, 9, 9], 0.5, 0)), "has 1 images"),
        (table_of((0, [0, 0, 9, 9], 0.5, 2)), "2 classes"),
        (table_of((0, [0, 0, 9, 9], np.nan, 0)), "diverged"),
        (table_of((0, [0, 0, np.inf, 9], 0.5, 0)), "every box must be finite"),
        (table_of((0, [9, 0, 0, 9], 0.5, 0)), "x1 <= x2"),
    ],
)
def test_detections_that_do_not_fit_are_refused(broken: DetectionTable, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        evaluate(split_of(record(1, [[0, 0, 9, 9]], [0])), broken)


def test_unknown_evaluator_and_empty_split_are_refused() -> None:
    with pytest.raises(EvaluationError, match="faster, pycocotools"):
        evaluate(split_of(record(1, [], [])), DetectionTable.empty(), "coco")
    with pytest.raises(EvaluationError, match="no images"):
        evaluate(split_of(), DetectionTable.empty())


# ---------------------------------------------------------------------- results files

DATA = split_of(record(7, [[0, 0, 9, 9]], [0]), record(9, [], []), classes=3, category_ids=(1, 2, 5))
GOOD = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}


def write(folder: Path, content: object) -> Path:
    path = folder / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_saved_detections_load_as_they_were(tmp_path: Path) -> None:
    split, table = random_case(0)
    table.save(tmp_path / "detections.json", split)
    loaded = DetectionTable.load(tmp_path / "detections.json", split)
    for name in ("image", "scores", "labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(table, name))
    np.testing.assert_allclose(loaded.boxes, table.boxes, rtol=0, atol=1e-12)


def test_no_detections_save_and_load(tmp_path: Path) -> None:
    DetectionTable.empty().save(tmp_path / "none.json", DATA)
    assert len(DetectionTable.load(tmp_path / "none.json", DATA)) == 0


def test_results_are_read_by_id_and_by_file_name(tmp_path: Path) -> None:
    entries = [GOOD, {**GOOD, "image_id": "000009"}, {**GOOD, "image_id": "000009.jpg", "extra": None}]
    table = DetectionTable.load(write(tmp_path, entries), DATA)
    assert table.image.tolist() == [0, 1, 1]
    assert table.labels.tolist() == [2, 2, 2]
    assert table.boxes[0].tolist() == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_id": 8}, "image_id must be one of split 'val' .2 images: 7, 9."),
        ({"image_id": "nothing.jpg"}, "got 'nothing.jpg'"),
        ({"image_id": None}, "integer or a file name"),
        ({"category_id": 4}, "1 class0, 2 class1, 5 class2.*got 4"),
        ({"category_id": 1.5}, "category_id must be an integer"),
        ({"category_id": True}, "category_id must be an integer"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": [1, 2, "3", 4]}, "four finite numbers"),
        ({"bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "four finite numbers"),
        ({"bbox": None}, "four finite numbers"),
        ({"bbox": [9, 9, -3, 4]}, "must not be negative.*x1, y1, x2, y2"),
        ({"score": float("nan")}, "score must be a finite number, got nan"),
        ({"score": "high"}, "score must be a finite number"),
        ({"score": None}, "score must be a finite number"),
    ],
)
def test_a_bad_entry_is_named_with_its_rule(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = write(tmp_path, [GOOD, {**GOOD, **change}])
    with pytest.raises(EvaluationError, match=f"results.json, entry 1: .*{says}"):
        DetectionTable.load(path, DATA)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps([GOOD, GOOD])[:-9], "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ({"annotations": []}, "must hold a list"),
        ("3", "must hold a list.*a number"),
        ([GOOD, 3], "entry 1: must be an object"),
        ([{"image_id": 7, "bbox": [1, 2, 3, 4]}], "entry 0: .*category_id, score missing"),
    ],
)
def test_a_bad_file_is_named_with_its_rule(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(EvaluationError, match=says):
        DetectionTable.load(write(tmp_path, content), DATA)


def test_a_missing_or_binary_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="No such file"):
        DetectionTable.load(tmp_path / "nowhere.json", DATA)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(EvaluationError, match="not UTF-8 text"):
        DetectionTable.load(tmp_path / "binary.json", DATA)


def test_zero_based_labels_are_refused_not_shifted(tmp_path: Path) -> None:
    entries = [{**GOOD, "category_id": c} for c in (1, 2, 0)]
    with pytest.raises(EvaluationError, match=r"entry 2: .*got 0 \(the file has 0, 1, 2\).*0-based labels"):
        DetectionTable.load(write(tmp_path, entries), DATA)
