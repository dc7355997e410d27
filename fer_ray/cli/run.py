"""From a job's command line to its exit code: errors become one sentence, the summary the last line."""

from __future__ import annotations

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

_UPLOADS = "working_dir_files"  # where Ray 2.60 unpacks uploaded folders


def run_job(job: Job, arguments: Sequence[str]) -> NoReturn:
    """Parse the arguments, do the job, print its summary as the last line, and exit with its code."""

    def terminate(number: int, frame: Any) -> NoReturn:
        # SIGTERM (`ray job stop`, a scheduler, a machine that shuts down): end at once, since whatever is half done is done again.
        os.write(2, f"error: terminated; {job.after_interruption}.\n".encode())
        os._exit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        config = parse(job.config_class, arguments, job.help, f"fer-ray {job.name}", job.epilogue)
        set_up_logging()
        _check_output_lasts(getattr(config, "output", ""))
        summary, exit_code = job.run(config)
        _leave_ray()
    except FerRayError as error:
        _leave_ray()
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"error: interrupted; {job.after_interruption}.", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    print(json.dumps(round_floats(dict(summary))), flush=True)
    sys.exit(exit_code)


def _leave_ray() -> None:
    """Let Ray end, where it was used: what it still has to say comes before the last line."""
    if cluster := sys.modules.get("fer_ray.cluster"):
        cluster.leave()


def _check_output_lasts(output: str) -> None:
    """Refuse an output inside the folder that `ray job submit --working-dir` uploaded: Ray removes it with the job."""
    relative = output and "://" not in output and not Path(output).is_absolute()
    if relative and _UPLOADS in Path.cwd().parts:
        raise UsageError(f"The output {output} would lie in Ray's copy of the working folder: give an absolute path or s3://bucket/prefix.")
