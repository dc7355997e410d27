"""What Python processes of a test do when they start: a `sitecustomize` of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

DEADLY = """
import os, signal
import cv2
real = cv2.imdecode
def imdecode(content, *arguments):
    if b"POISON" in bytes(content[-64:]):
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"SLEEPY" in bytes(content[-64:]):
        signal.pause()
    if b"HUNGRY" in bytes(content[-64:]):
        held = [bytearray(b"x") * (1 << 24) for _ in range(192)]
    return real(content, *arguments)
cv2.imdecode = imdecode
"""  # images with such an end do that to their decoder


def with_site(folder: Path) -> dict[str, str]:
    """An environment whose Pythons load the folder's `sitecustomize.py`."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
