"""Errors a user can meet. Each message is one sentence: the rule, the value that broke it, what to do."""


class DetsearchError(Exception):
    """Root of all errors shown without a traceback; `exit_code` is what the CLI exits with."""

    exit_code = 2


class RecipeError(DetsearchError):
    """A recipe, a fragment or a `--set` that does not validate; names the key."""


class DataError(DetsearchError):
    """A data set that cannot be found, recognised or read; names the file."""


class DataLost(DataError):
    """Data or weights that were there when a search began cannot be read any more: no candidate's fault."""


class SpaceError(DetsearchError):
    """A search space that cannot hold a candidate, or a candidate outside its space."""


class StudyError(DetsearchError):
    """A ledger that cannot be opened, or does not belong to the search that was asked for."""


class CheckpointError(DetsearchError):
    """A run folder or a weights file that cannot be used."""


class EvaluationError(DetsearchError):
    """Detections that cannot be scored against the given data."""


class StorageError(DetsearchError):
    """The disk refused a write (full, read-only, gone); what was there before is intact."""

    exit_code = 1


class OutputError(DetsearchError):
    """A place to write to that holds what this program did not write."""


class Diverged(DetsearchError):
    """A loss became NaN or infinite; carries the loss table and the images of the batch."""

    exit_code = 1


class ProcessLost(DetsearchError):
    """Another process of a distributed training stopped; what it saved is intact."""

    exit_code = 1


class KernelError(DetsearchError):
    """Compiled operators that were asked for and cannot be had."""


class CheckFailed(DetsearchError):
    """A check the user asked for did not hold (`--fail-under`, every trial failed)."""

    exit_code = 1
