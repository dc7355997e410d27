"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Ray would print a page where it ends a process for want of memory; what that means for the job is said in a sentence.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "failed due to oom")

import psutil
import ray

from fer_ray.errors import FerRayError, MemoryShortError
from fer_ray.text import sanitize

LOGGER = logging.getLogger(__name__)
_ADDRESS = "RAY_ADDRESS"
_PORT = "RAY_GCS_SERVER_PORT"
_TRIES = 3
SECONDS_BETWEEN_LOOKS = 5.0  # each leaves a line in the log of the raylet
SECONDS_WITHOUT = {"raylet": 5.0, "head": 40.0}  # Ray ends this process after about 18 and 60
NOTE_SECONDS = 60.0  # between two lines that say what is waited for
_TOO_SLOW = "timed out during startup"  # in Ray's words


def connect(dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), or start a local one; nothing if joined already.

    What the workers print stays in Ray's logs. A local cluster has a `dashboard` where it is asked for.
    """
    if ray.is_initialized():
        return
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a thread that outlives the job must not start Ray again
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or a local cluster starts a process that tells Ray's makers of it
    on_terminate = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, object] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": dashboard}
    try:
        if _names_a_cluster():
            ray.init(**quiet)
        else:
            _have_a_token()
            start_with_retries(lambda: start_with_known_address(quiet) if dashboard else ray.init(**quiet))
    except Exception as error:  # Ray raises many kinds, bare ones too
        where = os.environ[_ADDRESS] if _names_a_cluster() else ""
        what = f"The Ray cluster at {where} cannot be joined" if where else "Ray could not be started on this machine"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FerRayError(f"{what} ({sanitize(reason)}): see the logs in /tmp/ray/session_latest/logs, and try again.") from error
    signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own in place, which prints a stack


def _have_a_token() -> None:
    """Make the token of a local cluster, which Ray would keep in the home folder, where a service account has none to write to."""
    told = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not told and not _home_keeps_a_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # what Ray starts inherits it; nobody else's processes see it


def _home_keeps_a_token() -> bool:
    try:
        folder = Path.home() / ".ray"
    except RuntimeError:  # the account has no name
        return False
    existing = folder if folder.is_dir() else folder.parent
    return (folder / "auth_token").is_file() or (existing.is_dir() and os.access(existing, os.W_OK))


def _names_a_cluster() -> bool:
    return os.environ.get(_ADDRESS, "local") not in ("", "local")


class Watch:
    """Tells that the cluster died. Ray waits for it in every call, and in the end ends this process without a word."""

    def __init__(self) -> None:
        node = getattr(ray._private.worker, "_global_node", None)
        head, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
        self._addresses: dict[str, Any] = {"head": (head.strip("[]"), int(port)), "raylet": getattr(node, "raylet_socket_name", None)}
        self._seen = dict.fromkeys(self._addresses, time.monotonic())
        self._look_at = 0.0

    def check(self) -> None:
        """Look at both.

        Raises:
            FerRayError: one did not answer for longer than it is waited for.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + SECONDS_BETWEEN_LOOKS
        for name, address in self._addresses.items():
            if address is None or _answers(address):
                self._seen[name] = now
                continue
            self._look_at = now
            if now - self._seen[name] > SECONDS_WITHOUT[name]:
                raise FerRayError(f"the Ray {name} died: see the logs in /tmp/ray/session_latest/logs, and whether memory ran out")


def _answers(address: str | tuple[str, int]) -> bool:
    if isinstance(address, tuple):
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return True
        return False
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(1)
        return opened.connect_ex(address) == 0


def leave() -> None:
    """End a local cluster, or leave the one that was joined."""
    ray.shutdown()


def start_with_retries(start: Callable[[], object]) -> None:
    """Start a local cluster, in up to three tries.

    Ray's node process ends itself when its agents take more than 15 s to start, as they do now and then on a busy machine (Ray issue
    65983; no setting changes it). What such a try leaves running is ended.
    """
    here = psutil.Process()
    before = set(here.children(recursive=True))
    for left in reversed(range(_TRIES)):
        try:
            start()
            return
        except Exception as error:  # Ray raises a bare one
            if not left or _TOO_SLOW not in str(error):
                raise
        for process in set(here.children(recursive=True)) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def start_with_known_address(options: dict[str, object]) -> None:
    """Start a local cluster whose processes know its address.

    Ray Train asks the dashboard which trainings are dead, to free the CPUs of a trial that was stopped; without an address, it
    gives up where several clusters run on one machine, and the search would wait for those CPUs for ever.
    """
    with socket.socket() as opened:
        opened.bind(("", 0))
        port = opened.getsockname()[1]
    told = {_PORT: str(port), _ADDRESS: f"{ray.util.get_node_ip_address()}:{port}"}
    os.environ.update(told)  # what Ray starts inherits it
    try:
        ray.init("local", **options)
    finally:
        for name in told:
            del os.environ[name]


def cluster_cpus() -> int:
    """The CPUs that the cluster has now: none where only the head is there and runs no work."""
    return int(ray.cluster_resources().get("CPU", 0))


def may_grow() -> bool:
    """Whether the cluster was joined: one that starts machines on demand does not say how many it may have."""
    return _names_a_cluster()


def wait_for_cpus() -> None:
    """Make an empty cluster start its first machine, and wait for it."""
    if may_grow() and not cluster_cpus():
        LOGGER.info("the cluster has no CPUs yet: waiting for its first machine (--workers N asks for several)")
        first = ray.remote(num_cpus=1)(_nothing).remote()
        while not ray.wait([first], timeout=NOTE_SECONDS)[0]:
            LOGGER.info("waiting for 1 CPU: %s", describe_resources())
        ray.get(first)


def _nothing() -> None:
    pass


@contextmanager
def waiting_told(resources: dict[str, float]) -> Iterator[None]:
    """Say each minute that a training waits for machines while the block runs; `resources` are those of each of its workers."""
    ended = threading.Event()
    each = {name: amount for name, amount in resources.items() if amount}

    def look() -> None:
        while not ended.wait(NOTE_SECONDS):
            with contextlib.suppress(Exception):  # a cluster that does not answer is told by whoever works on it
                if ray.is_initialized() and (waiting := _waiting_groups(each)):
                    needed = _described({name: amount * waiting[0] for name, amount in each.items()})
                    more = f", {len(waiting)} times" if len(waiting) > 1 else ""
                    LOGGER.info("waiting for %s%s: %s", needed, more, describe_resources())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _waiting_groups(each: dict[str, float]) -> list[int]:
    """How many workers each training has that waits, of those whose workers take these resources."""
    groups = [group for group in ray.util.placement_group_table().values() if group["state"] in ("PENDING", "RESCHEDULING")]
    return [len(group["bundles"]) for group in groups if all(bundle == each for bundle in group["bundles"].values())]


def describe_resources() -> str:
    """The CPUs and GPUs of the cluster, for people."""
    there, free = ray.cluster_resources(), ray.available_resources()
    has = {name: there.get(name, 0) for name in ("CPU", "GPU") if name == "CPU" or there.get(name)}
    return f"the cluster has {_described(has)}, of which {_described({name: free.get(name, 0) for name in has})} are free"


def _described(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in resources.items())


def is_short_of_memory(error: BaseException | None) -> bool:
    """Whether this error came about since Ray ended processes on a machine that had no memory left; Ray's words fill a page."""
    while error is not None:
        if isinstance(error, MemoryShortError | ray.exceptions.OutOfMemoryError) or "running low on memory" in str(error):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def exceeds_this_machine(cpus: float, gpus: float) -> bool:
    """Whether this machine alone lacks what is asked for; a cluster that was joined may still grow."""
    here = ray.cluster_resources()
    return not may_grow() and (cpus > here.get("CPU", 0) or gpus > here.get("GPU", 0))
