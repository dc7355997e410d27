"""The labeler as a step of somebody's own Ray Data pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from fer_ray.errors import ImageError, UsageError
from fer_ray.label.labeler import Labeler
from fer_ray.label.result import image_columns, nested_faces
from fer_ray.schema import Status
from fer_ray.vision.source import Source, source_of

COLUMNS = ("status", "error", "face_count", "left_out_count", "width", "height")


class LabelBatches:
    """For `Dataset.map_batches`: adds to every row what was found in its image, a row for a broken one too.

    The columns `status`, `error`, `face_count`, `left_out_count`, `width` and `height` mean what they mean in the table
    `images`; `faces` is a list of structs with the columns of the table `faces`. Columns of these names are replaced.

    Example:
        ds = ray.data.read_binary_files("photos", include_paths=True)
        ds = ds.map_batches(fer_ray.LabelBatches, fn_constructor_kwargs={"column": "bytes"}, batch_size=64, concurrency=2)
    """

    def __init__(self, column: str = "bytes", model: str | Path | None = None, threads: int = 1, **settings: float) -> None:
        """Load the model, once in each of Ray's processes.

        Args:
            column: where the images are: bytes, paths or s3:// addresses, or arrays.
            model: as in `Labeler`.
            threads: CPUs that a process uses; give `map_batches` as many `num_cpus`.
            settings: fields of `LabelingOptions`.

        Raises:
            BundleError: the model cannot be used.
            UsageError: there is no such setting.
        """
        self.column = column
        self.labeler = Labeler(model, None, threads, **settings)

    def __call__(self, batch: Any) -> Any:
        """Label a batch; it comes back in the form that it had: a dict of arrays, a `pyarrow.Table`, a data frame.

        Raises:
            UsageError: the batch has no such column, or it holds no images.
        """
        images = self.labeler.label_sources([self._source(cell) for cell in self._cells(batch)])
        columns = image_columns(images)
        added = {name: columns[name] for name in COLUMNS} | {"faces": nested_faces(images)}
        if isinstance(batch, pa.Table):
            kept = batch.drop_columns([name for name in added if name in batch.column_names])
            for name, values in added.items():
                kept = kept.append_column(name, values)
            return kept
        if isinstance(batch, Mapping):
            return {**batch, **added}
        return batch.assign(**{name: values.to_pylist() for name, values in added.items()})

    def _cells(self, batch: Any) -> Iterable[Any]:
        names = list(batch.column_names if isinstance(batch, pa.Table) else batch)
        if self.column not in names:
            raise UsageError(f"The batch has no column {self.column}, only {', '.join(map(str, names))}: name the one with the images.")
        values = batch[self.column]
        if not isinstance(values, pa.ChunkedArray):
            return values  # type: ignore[no-any-return]  # a column of whatever form the batch has
        if isinstance(values.type, pa.BaseExtensionType):  # arrays in Ray's own type
            return (cell for chunk in values.chunks for cell in chunk.to_numpy(zero_copy_only=False))
        return values.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types

    def _source(self, cell: Any) -> Source:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):  # what data frames make of None
            return ImageError(Status.UNREADABLE, f"The row has no image in the column {self.column}.")
        return source_of(cell, self.labeler.options.max_file_megabytes, f"An image of the column {self.column}")
