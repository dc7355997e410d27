"""Users' SQL over the tables: they lie in a database of their own then, and the SQL reaches nothing else, neither files nor settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.browse.runs import read_all
from fer_ray.errors import StorageError, UsageError
from fer_ray.io.storage import Storage, join
from fer_ray.label.incremental.forgotten import Forgotten
from fer_ray.label.views import duckdb_views
from fer_ray.schema import FACES, IMAGES, RUNS, conform

MEMORY = "1GB"  # of DuckDB; what is more goes to disk
ROWS_PER_BATCH = 65_536
_LOCK = "SET python_enable_replacements=false; SET enable_external_access=false; SET lock_configuration=true"
_WITH_DATE = "CREATE TABLE {table} AS SELECT batches.*, runs.run_date FROM batches JOIN runs USING (run_id)"


@contextmanager
def opened(storage: Storage, tables: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the views of the tables, `faces_latest` among them, that can do nothing but answer.

    Raises:
        UsageError: there is no committed run.
        StorageError: the tables cannot be read, or do not fit onto the disk.
    """
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect(str(Path(scratch) / "tables.duckdb")) as connection:
        rows = read_all(storage, tables)
        try:
            connection.execute(f"SET memory_limit='{MEMORY}'")
            connection.register("batches", pa.Table.from_pylist(rows, schema=RUNS))
            connection.execute("CREATE TABLE runs AS SELECT * FROM batches")
            for table, schema in (("images", IMAGES), ("faces", FACES)):
                connection.register("batches", pa.RecordBatchReader.from_batches(schema, _batches(storage, tables, table, schema)))
                connection.execute(_WITH_DATE.format(table=table))
            connection.unregister("batches")
            for statement in duckdb.extract_statements(duckdb_views(tables)):
                if not any(word in statement.query for word in ("read_parquet", "fer_ray_output")):  # those over the files are tables here
                    with suppress(duckdb.CatalogException):  # of what is gone and of films, whose files are left alone here
                        connection.execute(statement)
            connection.execute(_LOCK)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"The tables {tables} cannot be read ({reason}): see to them, and to space in {scratch}.") from error
        yield connection


def select_faces(
    connection: duckdb.DuckDBPyConnection, where: str, order_by: str = "image_uri, face_index", limit: int | None = None
) -> pa.Table:
    """The rows of `faces_latest` that a user asks for.

    Args:
        connection: What `opened` gave.
        where: A condition in SQL, from the user.
        order_by: Expressions in SQL, from the user.
        limit: At most so many.

    Raises:
        UsageError: the SQL is none, or asks for something else.
    """
    kept = "" if limit is None else f"LIMIT {limit:d}"
    query = f"SELECT * FROM faces_latest WHERE (\n{where}\n) ORDER BY {order_by}\n{kept}"  # noqa: S608 - it reaches these tables only
    try:
        statements = duckdb.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise UsageError("The condition of --where or --order-by is more than one: give one, without a semicolon.")
        return connection.sql(query).to_arrow_table()
    except duckdb.Error as error:
        reason = " ".join(str(error).split("LINE")[0].split())[:300].rstrip(".")
        raise UsageError(f"The condition of --where or --order-by cannot be used ({reason}).") from error


def _batches(storage: Storage, tables: str, table: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    forgotten = Forgotten.read(storage, tables)
    for entry in storage.list_files(join(tables, table)):
        if entry.image_uri.endswith(".parquet"):
            with storage.open(entry.image_uri, read_ahead=1 << 20) as file:
                stored = pq.ParquetFile(file)
                columns: Sequence[str] = [name for name in schema.names if name in stored.schema_arrow.names]
                for batch in stored.iter_batches(ROWS_PER_BATCH, columns=columns, use_threads=False):
                    kept = batch.filter(pa.array(~forgotten.mask(batch["image_uri"].to_pylist()))) if forgotten else batch
                    yield from conform(pa.Table.from_batches([kept]), schema).to_batches()
