"""What the command says: the package's log as plain sentences on a terminal, with time stamps in a log file."""

from __future__ import annotations

import logging
import sys
import time

PACKAGE = "fer_ray"


def set_up_logging() -> None:
    """Show what the package logs: news on standard output, warnings and worse on standard error.

    Other packages' logs stay as they are: what they have to say to their own makers is no news of a run.
    """
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(logging.INFO)
    logger.handlers = [_Speaker()]


class _Speaker(logging.Handler):
    """Writes to the streams as they are now, so that a bar that is shown meanwhile can keep below the sentences."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            is_news = record.levelno < logging.WARNING
            stream = sys.stdout if is_news else sys.stderr
            stamp = "" if stream.isatty() else time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(record.created))
            stream.write(f"{stamp}{'' if is_news else 'warning: '}{record.getMessage()}\n")
            stream.flush()
        except Exception:  # noqa: BLE001 - as every handler of `logging`: a full disk under the log must not end a night
            self.handleError(record)
