"""A study's trials as a file for other programs: CSV, Parquet or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from detsearch_cli.errors import StudyError
from detsearch_cli.files import EXPORT_COLUMNS, SIGNATURE, claim_file, replace_file, write_signed_json
from detsearch_cli.search.study import Study, to_json

if TYPE_CHECKING:
    import pandas as pd

KIND = "export"  # what the file says that it is, so that no other signed JSON is replaced by it


def export(study: Study, path: Path) -> None:
    """Write the study's table to a .csv, .parquet or .json file; json holds every metric and the recipes.

    Raises StudyError for another ending, OutputError for a file of somebody else, StorageError when the disk
    refuses.
    """
    if path.suffix not in (".csv", ".parquet", ".json"):
        raise StudyError(f"a study is exported to a .csv, .parquet or .json file, got {path.name}")
    claim_file(path, KIND)
    if path.suffix == ".json":
        write_signed_json(path, KIND, to_json(study))
        return
    table = study.table()
    if table.empty:  # no trial yet, and so no columns, which sign the file
        table = table.reindex(columns=list(EXPORT_COLUMNS))
    if path.suffix == ".csv":
        replace_file(path, lambda p: table.to_csv(p, index=False))
    else:
        replace_file(path, lambda p: write_parquet(table, p))


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table with our signature in its metadata; not atomic."""
    import pyarrow
    from pyarrow import parquet

    columns = pyarrow.Table.from_pandas(table, preserve_index=False)
    # Pandas' and Arrow's own descriptions of the columns would push the signature away from the end of the file,
    # where `is_ours` looks for it.
    columns = columns.replace_schema_metadata(None)
    with parquet.ParquetWriter(path, columns.schema, store_schema=False) as writer:
        writer.write_table(columns)
        writer.add_key_value_metadata({SIGNATURE: KIND})
