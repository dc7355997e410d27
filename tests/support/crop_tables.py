"""Tables with kept crops for as many images as wanted: those of a labeled run, repeated under other names."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.schema import image_id


def multiply(output: Path, run_id: str, times: int) -> None:
    """Give the run each of its images so many times; its row in `runs` keeps its counts."""
    (images,) = output.glob(f"images/*/{run_id}-0.parquet")
    uris = {image_id(uri): uri for uri in pq.read_table(images, columns=["image_uri"])["image_uri"].to_pylist()}
    for table in ("images", "faces", "crops"):
        (file,) = output.glob(f"{table}/*/{run_id}-0.parquet")
        rows = pq.read_table(file)
        owners = [uris[one] for one in rows["image_id"].to_pylist()]
        with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
            for number in range(times):
                renamed = {"image_uri": [f"{uri}.{number}" for uri in owners], "image_id": [image_id(f"{uri}.{number}") for uri in owners]}
                columns = [pa.array(renamed[field.name]) if field.name in renamed else rows[field.name] for field in rows.schema]
                writer.write_table(pa.table(columns, schema=rows.schema))
