"""The figures show every class that has objects, the mean, and every cell of the confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detsearch_cli.errors import StorageError
from detsearch_cli.files import is_ours
from detsearch_cli.report import curves


def falling(classes: int) -> np.ndarray:
    """Precision (10, 101, C) that falls with recall, IoU and class number."""
    recall, iou, label = np.linspace(0, 1, 101)[:, None], np.arange(10)[:, None, None], np.arange(classes)
    return np.clip(1 - recall * (0.5 + 0.02 * label) - 0.05 * iou, 0, 1)


def legend(axes: object) -> list[str]:
    return [t.get_text() for t in axes.get_legend().get_texts()]  # type: ignore[attr-defined]


def test_curves_are_named_with_their_ap_best_first_and_the_mean_last() -> None:
    precision = falling(3)
    precision[:, :, 1] = np.nan
    half, three_quarters = curves.precision_recall(precision, ["a", "b", "c"]).axes
    assert (half.get_title(), three_quarters.get_title()) == ("IoU 0.50", "IoU 0.75")
    ap = precision[0].mean(axis=0)
    assert legend(half) == [f"{ap[0]:.3f} a", f"{ap[2]:.3f} c", f"{(ap[0] + ap[2]) / 2:.3f} mean of 2"]
    np.testing.assert_allclose(half.lines[0].get_ydata(), precision[0, :, 0])
    np.testing.assert_allclose(three_quarters.lines[1].get_ydata(), precision[5, :, 2])


def test_many_classes_draw_the_best_and_the_worst_and_the_mean_of_all() -> None:
    axes = curves.precision_recall(falling(30), [f"c{i}" for i in range(30)]).axes[0]
    names = [t.split()[-1] for t in legend(axes)]
    assert names == [f"c{i}" for i in [*range(10), *range(20, 30)]] + ["30"]


def test_one_class_has_one_curve_and_no_class_says_so(tmp_path: Path) -> None:
    assert len(curves.precision_recall(falling(1), ["face"]).axes[0].lines) == 1
    figure = curves.precision_recall(np.full((10, 101, 1), np.nan), ["face"])
    assert figure.axes[0].texts[0].get_text() == "no objects to find"
    curves.save(figure, tmp_path / "empty.png")


def test_confusion_shows_counts_background_and_shares() -> None:
    counts = np.array([[8, 2, 0], [0, 5, 5], [3, 0, 0]])
    axes = curves.confusion(counts, ["cat", "dog"]).axes[0]
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert written == {(0, 0): "8", (0, 1): "2", (1, 1): "5", (1, 2): "5", (2, 0): "3"}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "background"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2, 0], [0, 0.5, 0.5], [1, 0, 0]])


@pytest.mark.parametrize("classes", [1, 80, 150])
def test_figures_save_with_any_number_of_classes_and_any_name(tmp_path: Path, classes: int) -> None:
    names = [f"$x^{i} _weird & <name>" for i in range(classes)]
    path = tmp_path / "deep" / "confusion.png"
    curves.save(curves.confusion(np.eye(classes + 1, dtype=int), names), path)
    curves.save(curves.precision_recall(falling(classes), names, title="val"), tmp_path / "pr.png")
    assert is_ours(path) and is_ours(tmp_path / "pr.png")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(T, 101, 2\), got"):
        curves.precision_recall(falling(3), ["a", "b"])
    with pytest.raises(ValueError, match=r"\(3, 3\), got"):
        curves.confusion(np.eye(2), ["a", "b"])


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        curves.save(curves.confusion(np.eye(2, dtype=int), ["a"]), tmp_path / "file" / "figure.png")
