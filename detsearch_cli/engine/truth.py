"""Ground-truth boxes at the precision of the annotation file."""

from __future__ import annotations

import numpy as np

from detsearch_cli.data.types import Record


def boxes_as_written(record: Record) -> np.ndarray:
    """The record's boxes (N, 4) as float64 xyxy px, undoing the rounding to float32.

    Annotation files hold a few decimals; records keep the float32 next to them, up to 3e-5 px off. An IoU
    on a threshold then falls on the other side: on the public COCO fixture this moved AP by 1.6e-4.
    The shortest decimal that reads back as the same float32 is the number the file had (up to 6 digits).
    """
    if record.boxes.dtype != np.float32 or record.boxes.size == 0:
        return record.boxes.astype(np.float64)
    return record.boxes.astype(str).astype(np.float64)
