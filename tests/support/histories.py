"""The history of a training, as a bundle has it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.evaluate.history import COLUMNS
from fer_ray.models import bundle


def write_history(folder: Path, **columns: list[Any]) -> None:
    rows = len(next(iter(columns.values())))
    table = {name: list(range(1, rows + 1)) for name in COLUMNS} | columns
    pq.write_table(pa.table(table), folder / bundle.HISTORY_FILE)
