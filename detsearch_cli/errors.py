"""Errors a user can meet. Each message is one sentence: the rule, the value that broke it, what to do."""

from __future__ import annotations


class DetsearchError(Exception):
    """Root of all errors shown without a traceback; `exit_code` is what the CLI exits with."""

    exit_code = 2


class RecipeError(DetsearchError):
    """A recipe, a fragment or a `--set` that does not validate; names the key."""


class FormulaError(RecipeError):
    """A loss formula that cannot be read; points at the character."""


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
    """A loss became NaN or infinite, or stays where it has no slope; carries the loss table."""

    exit_code = 1


class ProcessLost(DetsearchError):
    """Another process of a distributed training stopped; what it saved is intact."""

    exit_code = 1


class KernelError(DetsearchError):
    """Compiled operators that were asked for and cannot be had."""


class CheckFailed(DetsearchError):
    """A check the user asked for did not hold (`--fail-under`, every trial failed)."""

    exit_code = 1


class ProgramError(DetsearchError):
    """A mistake in this program, made from an error that nobody foresaw; `unforeseen` makes it."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h; not 1, which scripts read as a failed check


def unforeseen(error: BaseException) -> ProgramError:
    """One sentence about an error that no user's mistake explains: its type, its message, and where it arose."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    what = f"{type(error).__name__}: {said}"[:500].removesuffix(": ")
    return ProgramError(
        f"detsearch itself has failed ({what}{_origin(error)}), and not because of anything you gave it; please report "
        "it to those who maintain detsearch, with this command and the traceback that --debug shows"
    )


def _origin(error: BaseException) -> str:
    """`, in detsearch_cli/engine/train.py:12`: the innermost line of this program in the traceback."""
    from pathlib import Path  # the first moment of every command has no time for it

    place, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        packages = [i for i, part in enumerate(file.parts) if part in ("detsearch_cli", "detsearch_kernels")]
        if packages:
            place = f", in {'/'.join(file.parts[packages[-1] :])}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
