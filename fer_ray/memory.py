"""How much memory this process may still take."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def free_bytes() -> int:
    """Free memory of the machine, or what the container may have at most, if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no such file, or no limit
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return free
