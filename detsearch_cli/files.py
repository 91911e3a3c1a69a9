"""Writing files so that a full disk or `kill -9` never damages what was there before, and nothing of the user's is lost.

Every file that this program writes for a user is signed: `signed_yaml`, `write_signed_json`, `write_png`, the HTML
page's generator, the first columns of an exported table. Only a signed file is ever replaced (`claim_file`), and only
a folder that is empty or holds a signed file is ever written into (`claim_folder`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import math
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detsearch_cli.errors import DetsearchError, OutputError, StorageError

if TYPE_CHECKING:
    import numpy as np

# the path's fault, not the disk's: the user can choose a better one
UNFIT_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES, errno.EPERM)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary sibling, then rename it over `path`. What `write` returns is not used.

    Raises StorageError when the disk refuses; `path` then still holds what it held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{_this_machine()}.tmp")
    _unfinished.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
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
        _unfinished.discard(temporary)


# ---------------------------------------------------------------------- what is half written

_unfinished: set[Path] = set()  # temporary files and drafts that this process is writing, in whatever thread
_searched: set[Path] = set()


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """While inside, `path`, a file or folder of ours under a name that nobody else has, is not whole.

    What ends the process meanwhile removes it (`remove_unfinished`).
    """
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def is_unfinished(path: Path) -> bool:
    """Whether this process is writing it now."""
    return path in _unfinished


def remove_unfinished() -> None:
    """Remove what this process has half written. For a process that ends at once; raises nothing."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                import shutil

                shutil.rmtree(path, ignore_errors=True)  # ours: whoever made it has registered it
            else:
                path.unlink(missing_ok=True)  # ours as well


def is_gone(process: int) -> bool:
    """Whether no process of this machine has the number; one that the system will not tell about counts as there."""
    try:
        os.kill(process, 0)  # signal 0 asks whether the process exists and does nothing to it
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False  # another user's process, or no number that a process can have
    return False


@functools.cache
def _this_machine() -> str:
    """Eight digits for the machine's name, short enough for the name of a file."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in `folder`.

    Once a process and folder: a folder of a hundred thousand pictures takes a tenth of a second to list.
    """
    if folder in _searched:
        return
    _searched.add(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            named = _LEFT.fullmatch(entry.name)
            # the numbers of another machine's processes, on a shared disk, mean nothing here
            if (
                named is None
                or named["machine"] != _this_machine()
                or not entry.is_file(follow_symlinks=False)
            ):
                continue
            number = int(named["process"])
            # our own number: of an earlier process that had it; in a container every run may have the same
            if is_gone(number) or (number == os.getpid() and folder / entry.name not in _unfinished):
                with contextlib.suppress(OSError):
                    (folder / entry.name).unlink()  # ours: only `replace_file` makes such a name


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


# ---------------------------------------------------------------------- what is ours

SIGNATURE = "detsearch"
EXPORT_COLUMNS = ("number", "state", "baseline", "value", "seconds")
"""The first columns of an exported table of trials; they sign it."""
_SIGNED = re.compile(
    rb"\A# written by detsearch: (?P<yaml>[^\n]*)"  # "# detsearch" alone is how a user heads his own notes
    rb'|\A\{\s*"detsearch":\s*"(?P<json>[^"]*)"'
    rb"|\A\x89PNG.{0,200}Software\0detsearch"
    rb'|\A<!doctype html>.{0,600}<meta name="generator" content="detsearch"'
    rb"|\A" + ",".join(EXPORT_COLUMNS).encode() + rb"[,\r\n]"  # CSV
    # Parquet: a key and its value in the metadata at the end, each after its field's number and its length
    rb"|\APAR1.*\x18\x09detsearch\x18\x06export",
    re.DOTALL | re.IGNORECASE,
)
_LEFT = re.compile(r"\..+\.(?P<process>[0-9]{1,10})\.(?P<machine>[0-9a-f]{8})\.tmp")
# the machine is missing where a version before 0.2 was killed
_TEMPORARY = re.compile(r"\..+\.\d+(\.[0-9a-f]{8})?\.tmp")
_HEAD, _TAIL = (
    1 << 12,
    1 << 16,
)  # bytes: a folder of a hundred thousand foreign pictures is still refused at once


def is_ours(path: Path, kind: str = "") -> bool:
    """Whether this program wrote the file: it carries our signature. False where there is no file.

    kind: how the words begin that a signed JSON or YAML file says about itself.
    """
    if not path.is_file():  # opening a named pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            looked_at = file.read(_HEAD)
            if looked_at.startswith(b"PAR1"):
                size = file.seek(0, os.SEEK_END)
                file.seek(max(len(looked_at), size - _TAIL))
                looked_at += file.read()
            signed = _SIGNED.match(looked_at)
    except OSError:
        return False
    if signed is None:
        return False
    about = signed["yaml"] or signed["json"]
    return about is None or about.startswith(kind.encode())


def claim_file(path: Path, kind: str = "") -> None:
    """Called before anything is written: may `path` be written? Raises OutputError for what a user put there.

    kind: what a JSON or YAML file to replace must say that it is, as for `is_ours`: a table must not replace the
    settings of a study, which are signed as well.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if path.is_symlink():  # writing replaces the link itself, and this program makes none
        raise OutputError(f"{path} is a link; name the file that is meant")
    if path.exists() and not is_ours(path, kind):
        raise OutputError(
            f"{path} exists and was not written by detsearch{f' as {kind}' if kind else ''}, so it is not "
            "replaced; name another file"
        )


LOCK = "lock"


def resolved(path: Path) -> Path:
    """The absolute path behind all links. Not Path.resolve, which ends in a RuntimeError at a link to itself."""
    return Path(os.path.realpath(path))


def claim_folder(folder: Path, mark: str | None, kind: str, beside: str | None = None) -> None:
    """Called before anything is written: may this program write into `folder`?

    It may where there is nothing, or the signed file `mark` (None: any signed picture), which is the first that is
    written there. kind: what such a folder is, for the message. beside: a second file without which the mark must be
    alone: a signed file may have been copied. Raises OutputError for any other folder or file.
    """
    if not folder.exists():
        if folder.is_symlink():
            raise OutputError(f"{folder} is a link that leads nowhere; name a new folder for the {kind}")
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; name a new folder for the {kind}")
    marks = [folder / mark] if mark is not None else sorted(folder.glob("*.png"))
    ours = list(filter(is_ours, marks))
    if ours and (beside is None or (folder / beside).exists()):
        return
    # what a kill left before the first file was whole is nobody's
    free = [p for p in folder.iterdir() if not (_TEMPORARY.fullmatch(p.name) or _is_lock(p) or p in ours)]
    held = sorted(p.name for p in free)
    if held:
        raise OutputError(
            f"{folder} holds {held[0]} and is no {kind} of detsearch, so nothing is written there; "
            "name a new or empty folder"
        )


def _is_lock(path: Path) -> bool:
    """Whether the file is one that `locked` made: empty, or naming a process."""
    if path.name != LOCK or not path.is_file():
        return False
    with path.open("rb") as file:
        return re.fullmatch(rb"(process \d+ on \S+)?", file.read(200)) is not None


def signed_yaml(about: str, body: str) -> str:
    """YAML text with a first line that signs it and says what it is."""
    return f"# written by {SIGNATURE}: {about}\n{body}"


def write_signed_json(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """`write_json` of a mapping, signed by its first key."""
    write_json(path, {SIGNATURE: kind, **content})


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W, 3) uint8 RGB as a signed PNG, atomically."""
    from PIL import Image, PngImagePlugin

    about = PngImagePlugin.PngInfo()
    about.add_text("Software", SIGNATURE)
    image = Image.fromarray(pixels)
    replace_file(path, lambda p: image.save(p, format="PNG", pnginfo=about))


# ---------------------------------------------------------------------- one writer a folder


@contextlib.contextmanager
def locked(folder: Path, error: type[DetsearchError], busy: str) -> Iterator[None]:
    """Hold `folder`, made where it is not there, for this process alone; the system lets go however it ends.

    Raises `error` with the sentence `busy`, in which {holder} is filled in, while another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as refused:
        raise storage_error(folder, refused) from refused
    _LOCKS.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            # not str.format: the sentence names a folder, which may hold braces
            raise error(busy.replace("{holder}", holder)) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as refused:
            raise storage_error(folder / LOCK, refused) from refused
        yield
    finally:
        _LOCKS.discard(descriptor)
        os.close(descriptor)


_LOCKS: set[int] = set()


def _let_go() -> None:
    """A forked child shares the lock: a data loader's worker would hold it for seconds after its parent is killed."""
    while _LOCKS:
        os.close(_LOCKS.pop())


os.register_at_fork(after_in_child=_let_go)
