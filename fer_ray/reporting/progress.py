"""How far a job is: a bar that moves on a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

LOGGER = logging.getLogger(__name__)
LOG_SECONDS = 60.0
BAR_COLUMNS = 20
COLUMNS_FOR_NOTE = 110  # narrower terminals show counts, rate and time left only


class Progress(Protocol):
    """What a job tells while it works; `make_progress` has the one for people at a terminal or readers of a log."""

    def start(self, what: str) -> None:
        """Name what is being waited for before the work can be counted: "starting Ray"."""

    def update(self, done: int, total: int, note: str = "", unit: str = "images") -> None:
        """Say how much is done. The clock of rate and time left starts with the first call, so that start-up is left out."""

    def close(self) -> None:
        """End the telling; the job may go on to say what came out."""


def make_progress() -> Progress:
    """For a command: a bar where standard error is a terminal, else a line a minute in the package's log."""
    return BarProgress() if sys.stderr.isatty() else LogProgress()


class Pace:
    """Rate and time left, measured from the first count on."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def describe(self, done: int, total: int, unit: str) -> list[str]:
        """`["210 images/s", "0:07 h left"]`; nothing before there is something to measure."""
        now = time.monotonic()
        if self._first is None or done < self._first[1]:  # counts that fall belong to the next piece of work
            self._first = now, done
        since, already = self._first
        if done <= already or now <= since:
            return []
        rate = (done - already) / (now - since)
        return [format_rate(rate, unit), format_left((total - done) / rate)] if done < total else [format_rate(rate, unit)]


def format_rate(per_second: float, unit: str) -> str:
    """`210 images/s`, `7.3 images/s`, `12 epochs/min`, `3.1 trials/h`: two digits or more, in the unit of time that suits."""
    for period, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if per_second * seconds >= 1 or period == "h":
            break
    value = per_second * seconds
    return f"{value:,.{0 if value >= 10 else 1}f} {unit}/{period}"


def format_left(seconds: float) -> str:
    """`0:07 h left`: hours and minutes, rounded up, since the end of a run takes a moment too."""
    minutes = int(seconds // 60) + 1
    return f"{minutes // 60}:{minutes % 60:02d} h left"


class LogProgress:
    """A line a minute in the package's log, which is also what library code uses where nobody asks for more."""

    def __init__(self) -> None:
        self._pace, self._last_line = Pace(), float("-inf")

    def start(self, what: str) -> None:
        LOGGER.info("%s", what)
        self._pace = Pace()
        self._last_line = time.monotonic()

    def update(self, done: int, total: int, note: str = "", unit: str = "images") -> None:
        facts = [f"{done:,}/{total:,} {unit} ({done / max(1, total):.0%})", *filter(None, [note]), *self._pace.describe(done, total, unit)]
        if time.monotonic() - self._last_line >= LOG_SECONDS:
            LOGGER.info("%s", ", ".join(facts))
            self._last_line = time.monotonic()

    def close(self) -> None:
        pass


class BarProgress:
    """One line at the bottom of the terminal; what is printed meanwhile scrolls above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_COLUMNS),
            TextColumn("{task.fields[facts]}", markup=False),
            console=_console(),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._add("")
        self._pace = Pace()

    def start(self, what: str) -> None:
        self._pace = Pace()
        self._bar.remove_task(self._task)
        self._task = self._add(what)
        self._bar.start()

    def update(self, done: int, total: int, note: str = "", unit: str = "images") -> None:
        facts = self._pace.describe(done, total, unit)
        if note and self._bar.console.width >= COLUMNS_FOR_NOTE:
            facts.append(note)
        self._bar.start()
        self._bar.start_task(self._task)
        description = f"{done:,}/{total:,} {unit}"
        self._bar.update(self._task, description=description, total=max(1, total), completed=done, facts=", ".join(facts))

    def close(self) -> None:
        self._bar.stop()

    def _add(self, what: str) -> TaskID:
        return self._bar.add_task(what, total=None, facts="", start=False)


def _console() -> Console:
    from rich.console import Console

    class BarConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Leave the cursor: a process that is killed could not bring it back."""
            return False

    return BarConsole(stderr=True, soft_wrap=True, highlight=False)
