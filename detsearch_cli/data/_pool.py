"""Decoded images kept in memory or on a GPU, shared by all loaders of a process.

A search trains many trials on the same images in one process; decoding them again for each would be the
largest waste. An image is found again by what its pixels depend on: its file's path, size and modification
time (or a rendered image's key), and the rule it was resized by. A pool never grows past its limit: images
that do not fit push out those only earlier loaders used, and else are decoded each time, with one warning.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable, Hashable
from functools import cache

import torch
from torch import Tensor

from detsearch_cli.data.types import Record
from detsearch_cli.errors import DataError

LIMIT_VARIABLE = "DETSEARCH_CACHE_GB"
_MOST_GIGABYTES = 1e6


class Pool:
    """Images by key, at most `limit` bytes of them, on `device`. Safe to fill from several threads."""

    def __init__(self, device: torch.device, limit: int) -> None:
        self.device, self.limit, self.used = device, limit, 0
        self._images: dict[Hashable, tuple[Tensor, int]] = {}
        self._lock = threading.Lock()
        self._generation = 0
        self._warned = False

    def enter(self) -> int:
        """A number for a new loader, higher than all before."""
        with self._lock:
            self._generation += 1
            return self._generation

    def get(self, key: Hashable, generation: int, make: Callable[[], Tensor]) -> Tensor:
        """The image under `key`, made, moved to the device and, if it fits, kept when it is new."""
        with self._lock:
            found = self._images.get(key)
            if found is not None:
                if generation > found[1]:
                    self._images[key] = (found[0], generation)
                return found[0]
        image = make().to(self.device)
        with self._lock:
            if key not in self._images and self._make_room(image.nbytes, generation):
                self._images[key] = (image, generation)
                self.used += image.nbytes
        return image

    def _make_room(self, size: int, generation: int) -> bool:
        if self.used + size <= self.limit:
            return True
        # Only images of earlier loaders may go: a loader that goes round and round must not drop its own.
        for key, (image, used_by) in list(self._images.items()):
            if used_by < generation:
                del self._images[key]
                self.used -= image.nbytes
            if self.used + size <= self.limit:
                return True
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the image cache on {self.device} is full at {self.limit / 1e9:.1f} GB; further images are"
                f" decoded each time (set {LIMIT_VARIABLE} to allow more)",
                stacklevel=2,
            )
        return False

    def __len__(self) -> int:
        return len(self._images)


@cache
def pool(device: torch.device) -> Pool:
    """The process's pool on a device, of $DETSEARCH_CACHE_GB, else half of the memory free at first use."""
    return Pool(device, _limit(device))


def _limit(device: torch.device) -> int:
    text = os.environ.get(LIMIT_VARIABLE)
    if text is not None:
        try:
            gigabytes = float(text)
        except ValueError:
            gigabytes = math.nan
        if not 0 <= gigabytes <= _MOST_GIGABYTES:
            raise DataError(f"{LIMIT_VARIABLE} must be a number of gigabytes such as 8, got {text!r}")
        return int(gigabytes * 1e9)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # neither macOS nor Windows tells how much is free
        return 2 * 10**9


def identity(record: Record) -> Hashable | None:
    """What the record's pixels depend on; None when that is unknown and the image must not be shared."""
    if record.key is not None:
        return record.key
    if record.file is None:
        return None
    try:
        status = record.file.stat()
    except OSError:
        return None
    return str(record.file), status.st_size, status.st_mtime_ns
