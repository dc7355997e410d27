"""Tables with kept crops for as many images as wanted: those of a labeled run, repeated under other names."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.schema import image_id

ROWS_PER_GROUP = 512  # as many as the parts of a run have


def multiply(output: Path, run_id: str, times: int) -> None:
    """Give the run each of its images so many times; its row in `runs` keeps its counts."""
    (images,) = output.glob(f"images/*/{run_id}-0.parquet")
    uris = {image_id(uri): uri for uri in pq.read_table(images, columns=["image_uri"])["image_uri"].to_pylist()}
    for table in ("images", "faces", "crops"):
        (file,) = output.glob(f"{table}/*/{run_id}-0.parquet")
        rows = pq.read_table(file)
        owners = [uris[one] for one in rows["image_id"].to_pylist()]
        step = ROWS_PER_GROUP // max(1, len(rows)) + 1
        with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
            for first in range(0, times, step):
                writer.write_table(pa.concat_tables(_renamed(rows, owners, number) for number in range(first, min(first + step, times))))


def _renamed(rows: pa.Table, owners: list[str], number: int) -> pa.Table:
    uris = [f"{uri}.{number}" for uri in owners]
    renamed = {"image_uri": uris, "image_id": list(map(image_id, uris))}
    columns = [pa.array(renamed[field.name]) if field.name in renamed else rows[field.name] for field in rows.schema]
    return pa.table(columns, schema=rows.schema)
