"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import signal

import ray


def connect(dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), or start a local one; nothing if joined already.

    What the workers print stays in Ray's logs. A local cluster has a `dashboard` where it is asked for: Ray Train asks it which
    trainings are dead, and without an answer keeps the CPUs of a trial that was stopped.
    """
    if ray.is_initialized():
        return
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that outlives the job must not start Ray again
    on_terminate = signal.getsignal(signal.SIGTERM)
    ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=dashboard)
    signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place, which prints a stack


def cluster_cpus() -> int:
    """The CPUs of the cluster, at least one."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def is_too_much(cpus: int, gpus: float) -> bool:
    """Whether this machine alone lacks what is asked for; a cluster that was joined may still grow."""
    here = ray.cluster_resources()
    return not os.environ.get("RAY_ADDRESS") and (cpus > here.get("CPU", 0) or gpus > here.get("GPU", 0))
