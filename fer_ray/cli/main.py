"""The command `fer-ray`: the jobs by name, and the way from its first word to one of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn

from fer_ray.errors import EXIT_DONE, EXIT_USAGE, UsageError

_EXIT_CODES = {
    0: "done",
    1: "failed: try again",
    2: "wrong usage or configuration: nothing was written",
    3: "done, but too many images failed or folders moved",
}


@dataclass(frozen=True)
class Job:
    """One job: where its options and its function are, both loaded when they are needed.

    Args:
        name: The word behind `fer-ray`.
        help: What it does, in one sentence.
        config: Its class of options, as `module:class`.
        function: What does the work, as `module:function`: a configuration in, the summary out, with an exit code where the job has
            more than one. `lines` in the summary are printed before it.
        exit_codes: Those that it may end with.
        after_interruption: What to do after it was interrupted.
        shows_progress: Whether its function takes a progress object as well.
        needs: A package that is not installed with what labels.
        takes: The option whose value may be given without its name.
    """

    name: str
    help: str
    config: str
    function: str
    exit_codes: tuple[int, ...] = (0, 1, 2)
    after_interruption: str = "start the same command again"
    shows_progress: bool = False
    needs: str = ""
    takes: str = ""

    @property
    def config_class(self) -> Any:
        """The class of its options."""
        return _load(self.config)

    @property
    def epilogue(self) -> str:
        """The end of its help."""
        codes = "; ".join(f"{code} {_EXIT_CODES[code]}" for code in self.exit_codes)
        return f"Exit codes: {codes}. The last line of the output is a summary in JSON."

    def run(self, config: Any) -> tuple[Mapping[str, Any], int]:
        """Do the work; gives the summary and the exit code.

        Raises:
            UsageError: only what labels is installed.
        """
        if self.needs and find_spec(self.needs) is None:
            raise UsageError(f"This needs more than labeling does ({self.needs} and others): pip install 'fer-ray[train]'.")
        from fer_ray.reporting.progress import make_progress

        function = _load(self.function)
        answer = function(config, make_progress()) if self.shows_progress else function(config)
        return answer if isinstance(answer, tuple) else (answer, EXIT_DONE)


def _load(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return loaded


_JOBS = (
    Job(
        "label",
        "Label the emotion of every face in folders or buckets of photographs and write Parquet tables.",
        "fer_ray.config.jobs.label:LabelConfig",
        "fer_ray.label.job:label",
        exit_codes=(0, 1, 2, 3),
        after_interruption="start the same command again to finish the run",
        shows_progress=True,
    ),
    Job(
        "relabel",
        "Label the faces that `label --keep-crops` kept with another model, without their images.",
        "fer_ray.config.jobs.relabel:RelabelConfig",
        "fer_ray.relabel.job:relabel",
        after_interruption="start the same command again to finish the run",
        shows_progress=True,
    ),
    Job(
        "train",
        "Train an emotion model on labeled faces, calibrate it, and save it as a bundle.",
        "fer_ray.config.jobs.train:TrainConfig",
        "fer_ray.train.job:train",
        needs="tensorflow",
        after_interruption="start the same command with --resume to continue after the last checkpoint",
        shows_progress=True,
    ),
    Job(
        "tune",
        "Search hyperparameters with Ray Tune; every trial is a training.",
        "fer_ray.config.jobs.tune:TuneConfig",
        "fer_ray.tune.job:tune",
        needs="tensorflow",
        after_interruption="start the same command with --resume to continue the search",
        shows_progress=True,
    ),
    Job(
        "evaluate",
        "Judge one model or several on labeled faces: figures, pictures and a page.",
        "fer_ray.config.jobs.evaluate:EvaluateConfig",
        "fer_ray.evaluate.job:evaluate",
        needs="sklearn",
    ),
    Job(
        "ensemble",
        "Make one bundle of several: the mean of their answers or of their weights.",
        "fer_ray.config.jobs.ensemble:EnsembleConfig",
        "fer_ray.models.ensemble:combine",
        needs="tensorflow",
    ),
    Job(
        "calibrate",
        "Fit a bundle's confidences anew, so that they know how much of a face is to be seen.",
        "fer_ray.config.jobs.calibrate:CalibrateConfig",
        "fer_ray.calibrate.job:calibrate_bundle",
        shows_progress=True,
    ),
    Job(
        "export",
        "Write a bundle as ONNX, SavedModel or TFLite, checked on real faces, or as a page that labels in the browser.",
        "fer_ray.config.jobs.export:ExportConfig",
        "fer_ray.export.job:export",
    ),
    Job(
        "import-model",
        "Make a bundle of a network that others trained, from its ONNX file.",
        "fer_ray.config.jobs.import_model:ImportConfig",
        "fer_ray.models.import_model:import_model",
    ),
    Job(
        "upgrade",
        "Add the ONNX networks that label to a bundle of version 0.1.",
        "fer_ray.config.jobs.models:UpgradeConfig",
        "fer_ray.models.upgrade:upgrade",
        needs="tensorflow",
    ),
    Job(
        "live",
        "Show the emotions of the faces that a camera sees, in a page on this machine.",
        "fer_ray.config.jobs.live:LiveConfig",
        "fer_ray.live.job:live",
    ),
    Job(
        "models",
        "List model bundles with their figures, and name the one that a nightly line labels with.",
        "fer_ray.config.jobs.models:ModelsConfig",
        "fer_ray.catalog.job:models",
    ),
    Job(
        "inspect",
        "Look at a data set: counts, findings, duplicates, a sheet of sample faces.",
        "fer_ray.config.jobs.inspect:InspectConfig",
        "fer_ray.data.inspect:inspect",
    ),
    Job(
        "runs", "List the runs of some tables, the newest first.", "fer_ray.config.jobs.browse:RunsConfig", "fer_ray.browse.runs:list_runs"
    ),
    Job(
        "show",
        "Say what a run was asked for and what came of it.",
        "fer_ray.config.jobs.browse:ShowConfig",
        "fer_ray.browse.runs:show_run",
        takes="run_id",
    ),
    Job(
        "errors",
        "Name the images of a run that failed, by reason.",
        "fer_ray.config.jobs.browse:ErrorsConfig",
        "fer_ray.browse.runs:list_errors",
        takes="run_id",
    ),
    Job(
        "audit",
        "Ask people about a sample of faces, and say how right the labels of this archive are.",
        "fer_ray.config.jobs.audit:AuditConfig",
        "fer_ray.audit.job:audit",
    ),
    Job(
        "forget",
        "Remove what the tables hold of some images, with crops and reports, and leave them out of later runs.",
        "fer_ray.config.jobs.forget:ForgetConfig",
        "fer_ray.forget.job:forget",
        takes="addresses",
    ),
    Job(
        "crops",
        "Write the faces that a condition in SQL picks, as files or as a contact sheet.",
        "fer_ray.config.jobs.browse:CropsConfig",
        "fer_ray.browse.crops:write_crops",
    ),
)
JOBS = {job.name: job for job in _JOBS}


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command: `fer-ray JOB [--flags]`. Ends the process with the job's exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in JOBS:
        from fer_ray.cli.run import run_job

        run_job(JOBS[given[0]], given[1:])
    try:
        _overview(given)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_USAGE)
    sys.exit(EXIT_DONE)


def _overview(given: list[str]) -> None:
    """Answer `--help` and `--version`, and refuse what is no job."""
    from cyclopts import App

    import fer_ray
    from fer_ray.cli.flags import one_sentence

    app = App(
        "fer-ray",
        help="Emotion labels for image archives, at scale, on Ray. Labels are apparent expressions, not felt emotions.",
        help_epilogue="`fer-ray JOB --help` lists the flags of a job.",
        version=fer_ray.__version__,
        result_action="return_value",
    )
    for job in JOBS.values():
        app.command(_no_job, name=job.name, help=job.help)
    with one_sentence("fer-ray"):
        app(given or ["--help"], exit_on_error=False, print_error=False)


def _no_job() -> None:
    """What has a name here is run before this is reached."""
