"""Other people's greetings kept from the terminal."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2


def load_keras() -> None:
    """Load Keras and its backend without the lines that TensorFlow prints before it reads its own settings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        with quiet(STANDARD_ERROR):
            importlib.import_module("keras")


@contextmanager
def quiet(*descriptors: int) -> Iterator[None]:
    """Keep what libraries print, some of them in C++, from the terminal (output and errors, unless one is named); where the block
    raises, it is shown after all.
    """
    silenced = descriptors or (STANDARD_OUTPUT, STANDARD_ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in silenced]
    with tempfile.TemporaryFile() as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in silenced:
            os.dup2(printed.fileno(), number)
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
                printed.seek(0)
                sys.stderr.write(printed.read().decode(errors="replace"))
