"""TensorFlow and its converters, some of them in C++, kept from writing to the terminal."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_OUTPUT = 1
STANDARD_ERROR = 2


def load_keras() -> None:
    """Load Keras and its backend without the lines that TensorFlow prints before it reads its own settings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the driver of a search, too, leaves the GPU's memory to its trainings
    if "keras" not in sys.modules:
        with silence(STANDARD_ERROR):
            importlib.import_module("keras")


@contextmanager
def silence(*descriptors: int) -> Iterator[None]:
    """Keep from the terminal what is written to these file descriptors, also by C++; where the block raises, it is shown after all.

    Args:
        descriptors: STANDARD_OUTPUT, STANDARD_ERROR, or (where none is named) both.
    """
    silenced = descriptors or (STANDARD_OUTPUT, STANDARD_ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in silenced]
    with tempfile.TemporaryFile() as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in silenced:
            os.dup2(written.fileno(), number)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip(silenced, kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            if failed:
                written.seek(0)
                sys.stderr.write(written.read().decode(errors="replace"))
