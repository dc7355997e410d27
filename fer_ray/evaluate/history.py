"""The epochs of a training, as they come with a bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import StorageError, TooLargeError
from fer_ray.io.storage import Storage, join
from fer_ray.models.bundle import HISTORY_FILE
from fer_ray.typing import Float64Array

COLUMNS = ("epoch", "train_loss", "nll", "accuracy", "macro_f1", "learning_rate")
MAX_BYTES = 4 << 20
MAX_EPOCHS = 10_000
MAX_VALUE = 1e12  # larger numbers are no figures of a training


@dataclass(frozen=True)
class History:
    """One float64 per epoch: the loss on training images, figures on validation images, and the learning rate."""

    epoch: Float64Array
    train_loss: Float64Array
    nll: Float64Array
    accuracy: Float64Array
    macro_f1: Float64Array
    learning_rate: Float64Array

    @property
    def drops(self) -> Float64Array:
        """The epochs whose learning rate fell at once to half or less; the smooth end of a cosine is no such fall."""
        kept = self.learning_rate[1:] / np.maximum(self.learning_rate[:-1], 1e-30)
        before = np.concatenate([[1.0], kept[:-1]])
        return self.epoch[1:][(kept <= 0.5) & (before > 0.75)]


def read_history(storage: Storage, place: str) -> tuple[History | None, str]:
    """The training's epochs that came with a bundle; or None, and a sentence that says why there are none.

    Bundles come from strangers: only a short table of plain numbers is read.
    """
    try:
        content = storage.read(join(place, HISTORY_FILE), MAX_BYTES)
        values = _read_numbers(content)
    except FileNotFoundError:
        return None, "The bundle came without the history of its training."
    except TooLargeError:
        return None, f"The bundle's {HISTORY_FILE} is too large to be the history of a training."
    except (ValueError, KeyError, OSError, pa.ArrowException, StorageError) as error:
        return None, f"The bundle's {HISTORY_FILE} cannot be read ({' '.join(str(error).split())[:200]})."
    return History(**values), ""


def _read_numbers(content: bytes) -> dict[str, Float64Array]:
    file = pq.ParquetFile(pa.BufferReader(content))
    kinds = [file.schema_arrow.field(name).type for name in COLUMNS]
    if not all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        raise ValueError("a column does not hold plain numbers")
    if not 0 < file.metadata.num_rows <= MAX_EPOCHS:
        raise ValueError(f"it has {file.metadata.num_rows:,} rows")
    table = file.read(columns=list(COLUMNS))
    values = {name: np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64) for name in COLUMNS}
    if not np.isfinite(values["epoch"]).all() or any((np.abs(column) > MAX_VALUE).any() for column in values.values()):
        raise ValueError("it holds impossible numbers")
    return values
