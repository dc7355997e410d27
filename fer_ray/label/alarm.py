"""The operator's command for a run with too many failed images."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
from typing import Any

LOGGER = logging.getLogger(__name__)
TIMEOUT_SECONDS = 60.0


def raise_alarm(command: str, summary: dict[str, Any]) -> None:
    """Run the command with the summary on its standard input; what it may hold is not shown, and its trouble is a warning."""
    try:
        done = subprocess.run(shlex.split(command), input=json.dumps(summary).encode(), timeout=TIMEOUT_SECONDS, check=False)
        trouble = f"ended with {done.returncode}" if done.returncode else ""
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        trouble = f"could not be run ({type(error).__name__})"
    if trouble:
        LOGGER.warning("the alarm_command %s.", trouble)
