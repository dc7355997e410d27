"""From a job's command line to its exit code: errors become one sentence, the summary the last line."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fer_ray.cli.flags import parse
from fer_ray.cli.logs import set_up_logging
from fer_ray.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, FerRayError, UsageError
from fer_ray.text import round_floats

if TYPE_CHECKING:
    from fer_ray.cli.main import Job

LAST_SECONDS = 5.0  # for an alarm: whoever terminates a process kills it after 10 or more
_UPLOADS = "working_dir_files"  # where Ray 2.60 unpacks uploaded folders


def run_job(job: Job, arguments: Sequence[str]) -> NoReturn:
    """Parse the arguments, do the job, print its summary as the last line, and exit with its code."""
    alarm = _Alarm(arguments)

    def terminate(number: int, frame: Any) -> NoReturn:
        # SIGTERM (`ray job stop`, a scheduler, a machine that shuts down): end at once, since whatever is half done is done again.
        os.write(2, f"error: terminated; {job.after_interruption}.\n".encode())
        alarm.sound(EXIT_TERMINATED, "terminated")
        os._exit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        config = parse(job.config_class, arguments, job.help, f"fer-ray {job.name}", job.epilogue, job.takes)
        alarm.command = getattr(config, "alarm_command", "")
        set_up_logging()
        _check_output_lasts(getattr(config, "output", ""))
        alarm.is_left_to_job = True
        summary, exit_code = job.run(config)
        _leave_ray()
    except FerRayError as error:
        _leave_ray()
        print(f"error: {error}", file=sys.stderr, flush=True)
        if not alarm.is_left_to_job:
            alarm.sound(error.exit_code, str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"error: interrupted; {job.after_interruption}.", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    for line in summary.get("lines", ()):
        print(line)
    print(json.dumps(round_floats({name: value for name, value in summary.items() if name != "lines"})), flush=True)
    sys.exit(exit_code)


class _Alarm:
    """The operator's command, as far as it is known: from the arguments while these may be wrong."""

    def __init__(self, arguments: Sequence[str]) -> None:
        words = itertools.chain.from_iterable(argument.split("=", 1) for argument in arguments)
        self.command = next((word for before, word in itertools.pairwise(words) if before == "--alarm-command"), "")
        self.is_left_to_job = False

    def sound(self, exit_code: int, reason: str) -> None:
        """Run it with the reason."""
        if self.command:
            from fer_ray.label.outcome import raise_alarm

            raise_alarm(self.command, {"status": "failed", "exit_code": exit_code, "reason": reason}, LAST_SECONDS)


def _leave_ray() -> None:
    """Let Ray end, where it was used: what it still has to say comes before the last line."""
    if cluster := sys.modules.get("fer_ray.cluster"):
        cluster.leave()


def _check_output_lasts(output: str) -> None:
    """Refuse an output inside the folder that `ray job submit --working-dir` uploaded: Ray removes it with the job."""
    relative = output and "://" not in output and not Path(output).is_absolute()
    if relative and _UPLOADS in Path.cwd().parts:
        raise UsageError(f"The output {output} would lie in Ray's copy of the working folder: give an absolute path or s3://bucket/prefix.")
