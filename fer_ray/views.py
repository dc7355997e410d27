"""SQL for analysts: views over the committed runs, for DuckDB and for Athena."""

from __future__ import annotations

from fer_ray.storage import Storage


def write_views(storage: Storage, output: str) -> None:
    """Leave `views/duckdb.sql` and `views/athena.sql` beside the tables, unless they are there as they should be."""
    del storage, output
