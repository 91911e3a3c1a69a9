"""Writing files so that a full disk or `kill -9` never damages what was there before."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detsearch_cli.errors import StorageError

# the path's fault, not the disk's: the user can choose a better one
UNFIT_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EPERM)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary sibling, then rename it over `path`. What `write` returns is not used.

    Raises StorageError when the disk refuses; `path` then still holds what it held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise storage_error(path, error) from error
    except Exception as error:
        # safetensors wraps the operating system's error in its own type
        if "os error 28" in str(error).lower() or "no space left" in str(error).lower():
            raise storage_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # no such folder: it would hide why the write failed
            temporary.unlink(missing_ok=True)


def storage_error(path: Path, error: OSError) -> StorageError:
    """One sentence for a write that the disk refused."""
    said = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space" if full else "choose another place"
    refused = StorageError(f"cannot write {path}: {said}; {remedy}, then run it again")
    if error.errno in UNFIT_PATH:
        refused.exit_code = 2
    return refused


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically; NaN and infinity become null, so that any reader can read it."""
    write_text(path, json.dumps(finite(content), indent=1) + "\n")


def finite(content: Any) -> Any:
    """The same with NaN and infinity as None, through dicts, lists and tuples."""
    if isinstance(content, dict):
        return {k: finite(v) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [finite(v) for v in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
