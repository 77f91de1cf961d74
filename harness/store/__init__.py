"""The store: append rows as Parquet shards, ingest them into DuckDB, read the public views."""

from harness.store._query import Format, format_rows, run_sql
from harness.store._schema import TABLES, Column, Table
from harness.store._store import Store
from harness.store._views import VIEWS, View

__all__ = ["TABLES", "VIEWS", "Column", "Format", "Store", "Table", "View", "format_rows", "run_sql"]
