"""Opening the ledger's database safely, and turning what databases and disks throw into our errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from detsearch_cli.errors import StorageError, StudyError
from detsearch_cli.files import locked, storage_error

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
_DISK = ("disk is full", "disk i/o error", "readonly database", "unable to open database", "no space left")
_CORRUPT = ("malformed", "not a database", "no such table", "no such column", "corrupt")


def is_disk_error(error: BaseException) -> bool:
    """True when the error, or one that caused it, says that the disk refused a write."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, StorageError) or (isinstance(seen, OSError) and seen.errno in _FULL):
            return True
        if isinstance(seen, sqlite3.Error) and any(word in str(seen).lower() for word in _DISK):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def guarded(target: str) -> Iterator[None]:
    """Raises StorageError for a refused write to `target`, StudyError for a damaged or unreachable database."""
    try:
        yield
    except (StorageError, StudyError):
        raise
    except Exception as error:
        if is_disk_error(error):
            raise StorageError(
                f"cannot write {target}: {root_cause(error)}; free some space, then give the same command again: "
                "it goes on from the last trial recorded"
            ) from error
        if isinstance(error, OSError):
            raise storage_error(Path(target), error) from error
        if _is_database_error(error):
            raise StudyError(_damaged(target, root_cause(error))) from error
        raise


@contextmanager
def reading_rows(target: str) -> Iterator[None]:
    """`guarded` around nothing but Optuna's own reading: what a damaged row makes it throw becomes StudyError, too."""
    with guarded(target):
        try:
            yield
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError) as error:
            raise StudyError(_damaged(target, root_cause(error))) from error


def root_cause(error: BaseException) -> str:
    """First line of the innermost error's message."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_database_error(error: BaseException) -> bool:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    kinds = (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError)
    return isinstance(error, kinds) or any(word in str(error).lower() for word in _CORRUPT)


def _damaged(target: str, cause: str) -> str:
    if "://" in target:
        return f"{target} cannot be used as a ledger ({cause}); check --storage and that its server runs"
    return (
        f"{target} cannot be read as a ledger of trials ({cause}); it was left untouched: "
        "restore it from a copy, or start another --name"
    )


_SQLITE = "sqlite:///"


def database_url(folder: Path, storage: str | None) -> str:
    """SQLAlchemy URL of the ledger: `storage`, else folder/study.db."""
    return storage if storage is not None else f"{_SQLITE}{folder.absolute() / 'study.db'}"


def sqlite_file(url: str) -> Path | None:
    """The file of a ledger in SQLite: all that follows sqlite:///, as it stands. None for another database.

    Raises StudyError for a database in memory, which ends with the process.
    """
    if not url.startswith("sqlite:"):
        return None
    name = url.removeprefix(_SQLITE)
    if name in ("", ":memory:", url):
        raise StudyError(
            f"--storage must name a file that keeps the ledger, such as sqlite:///FILE, got {url}"
        )
    return Path(name)


def check_sqlite(path: Path) -> None:
    """Raises StudyError when the file is not a whole SQLite ledger; creates and changes nothing."""
    if not path.is_file():  # SQLite would wait for ever for the writer of a named pipe
        raise StudyError(_damaged(str(path), "it is no regular file"))
    if path.stat().st_size == 0:
        raise StudyError(_damaged(str(path), "the file is empty"))
    # rw, not ro: a killed writer may have left a journal that SQLite has to roll back before anyone can read
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    try:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}", uri=True, timeout=30
        )
        try:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            pages, page_size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
            )
            tables = {
                row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            }
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StudyError(_damaged(str(path), str(error))) from error
    # the check reads what lies beyond the end of a file that was cut short as zeros, and may find nothing wrong
    lost = pages * page_size - path.stat().st_size
    if lost > 0:
        raise StudyError(_damaged(str(path), f"its last {lost} bytes are missing"))
    if verdict != "ok":
        raise StudyError(_damaged(str(path), verdict.splitlines()[-1]))
    if not {"studies", "trials", "version_info"} <= tables:
        raise StudyError(_damaged(str(path), "it holds other tables"))


def connect(url: str, create: bool) -> RDBStorage:
    """Optuna's storage at the URL. Without `create`, an SQLite file must be there and whole."""
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = sqlite_file(url)
    if path is not None and not create:
        if not path.exists():
            raise StudyError(
                f"there is no ledger at {path}; `detsearch study list` shows the studies there are"
            )
        check_sqlite(path)
    if path is not None:
        # the file is opened by its path: in a URL, `?` would end it, and versions of SQLAlchemy differ on %
        # the coordinator is the only writer, but `study show` may hold a read lock for a moment
        options: dict[str, Any] = {
            "creator": lambda: sqlite3.connect(path, timeout=60, check_same_thread=False)
        }
        address = f"{_SQLITE}study.db"
    else:
        options = {"pool_pre_ping": True}
        address = url.replace("{", "{{").replace("}", "}}")  # Optuna fills it in by str.format
    with guarded(display_name(url)):
        try:
            return RDBStorage(address, engine_kwargs=options)
        except ImportError as error:
            raise StudyError(
                f"{display_name(url)} needs the database driver {error.name}; install it with pip, or leave out --storage"
            ) from error
        except (ValueError, ArgumentError) as error:
            raise StudyError(
                "--storage must be a database URL such as sqlite:///FILE or postgresql://HOST/NAME, "
                f"got {display_name(url)} ({root_cause(error)})"
            ) from error


def display_name(url: str) -> str:
    """The URL for a message: a plain path for SQLite, never with a password."""
    path = sqlite_file(url)
    if path is not None:
        return str(path)
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def sole_writer(folder: Path) -> AbstractContextManager[None]:
    """Hold the folder for this process alone. Raises StudyError naming the process that holds it."""
    return locked(
        folder,
        StudyError,
        f"only one search may write a study, and {folder} is being written by {{holder}}; "
        "wait for it, stop it, or use another --name",
    )
