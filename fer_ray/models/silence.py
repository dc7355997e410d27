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
# Keras loads these where they are installed, for wrappers and pictures that nothing here uses; without them it is there a third sooner.
UNUSED_BY_KERAS = ("sklearn", "matplotlib")


def load_keras() -> None:
    """Load Keras and its backend, without what it needs for other things, nor the lines that TensorFlow prints before it reads settings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the driver of a search, too, leaves the GPU's memory to its trainings
    if "keras" in sys.modules:
        return
    hidden = [name for name in UNUSED_BY_KERAS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is how Python is told that a module is not there
    try:
        with silence(STANDARD_ERROR):
            importlib.import_module("keras")
    finally:
        for name in hidden:
            del sys.modules[name]


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
